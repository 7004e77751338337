package main

import "github.com/urfave/cli/v2"

func configCommand() *cli.Command {
	return &cli.Command{
		Name:  "config",
		Usage: "print the effective configuration as commented TOML",
		Flags: append(commonFlags(), &cli.BoolFlag{Name: "default", Usage: "print the file that is shipped, every key at its default"}),
		Action: func(c *cli.Context) error {
			if c.Bool("default") {
				return defaultConfig().write(c.App.Writer, true)
			}
			s, err := newSetup(c)
			if err != nil {
				return err
			}
			if _, given := common(c, "probe"); given {
				s.cfg.values["probes.enabled"] = s.cfg.probes
			}
			return s.cfg.write(c.App.Writer, false)
		},
	}
}
