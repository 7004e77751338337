package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Error texts of the library about flags, which has no error types for them.
var (
	badValue    = regexp.MustCompile(`^invalid (?:boolean )?value ("(?s:.*)") for (?:flag )?-([^\s:]+): `)
	badVariable = regexp.MustCompile(`^could not parse ("(?s:.*)") as \S+ value from environment variable ("[^"]*") for flag ([^\s:]+): `)
	unknownFlag = regexp.MustCompile(`^flag provided but not defined: -(.*)$`)
	noValue     = regexp.MustCompile(`^flag needs an argument: -(.*)$`)
)

// usageError explains a wrong flag, the valid alternatives, and where to find help.
func usageError(help string, flags []cli.Flag) cli.OnUsageErrorFunc {
	return func(_ *cli.Context, err error, _ bool) error {
		text := err.Error()
		if m := badValue.FindStringSubmatch(text); m != nil {
			text = dashes(m[2]) + ": " + m[1] + " " + wants(flags, m[2])
		} else if m := badVariable.FindStringSubmatch(text); m != nil {
			text = strings.Trim(m[2], `"`) + ": " + m[1] + " " + wants(flags, m[3])
		} else if m := unknownFlag.FindStringSubmatch(text); m != nil {
			text = "there is no flag " + dashes(m[1])
		} else if m := noValue.FindStringSubmatch(text); m != nil {
			text = dashes(m[1]) + " needs a value"
		}
		return cli.Exit(text+"; see "+help, exitUsage)
	}
}

// dashes formats a flag as typed on a command line.
func dashes(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + strings.TrimLeft(name, "-")
}

// wants describes the values that a flag accepts.
func wants(flags []cli.Flag, name string) string {
	i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) })
	if i < 0 {
		return "is no value for it"
	}
	switch flags[i].(type) {
	case *cli.DurationFlag:
		return "is not a duration: give a unit, such as 5s"
	case *cli.IntFlag:
		return "is not a whole number"
	case *cli.BoolFlag:
		return "is neither true nor false"
	}
	return "is no value for it"
}

// noCommand is the error for a command, or a page, that does not exist.
func noCommand(kind, name string, commands []*cli.Command, help string) error {
	var names []string
	for _, c := range commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return cli.Exit(fmt.Sprintf("no %s %q: the %ss are %s; see %s", kind, name, kind, strings.Join(names, ", "), help), exitUsage)
}

func helpCommand() *cli.Command {
	return &cli.Command{
		Name:      "help",
		Usage:     "print the help of a command",
		ArgsUsage: "[COMMAND [PAGE]]",
		Args:      true,
		Action: func(c *cli.Context) error {
			commands, kind, help := c.App.Commands, "command", "nodeskoop help"
			for _, name := range c.Args().Slice() {
				i := slices.IndexFunc(commands, func(cmd *cli.Command) bool { return cmd.HasName(name) })
				switch {
				case i < 0 && len(commands) == 0:
					return cli.Exit(fmt.Sprintf("help: there is nothing below %s, got %q", strings.TrimPrefix(help, "nodeskoop help "), name), exitUsage)
				case i < 0:
					return noCommand(kind, name, commands, help)
				}
				commands, kind, help = commands[i].Subcommands, "page", help+" "+name
			}
			app := newApp(c.App.Writer, c.App.ErrWriter)
			return app.RunContext(c.Context, slices.Concat([]string{app.Name}, c.Args().Slice(), []string{"--help"}))
		},
	}
}
