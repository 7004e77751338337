package docs

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/clipperhouse/displaywidth"
	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/column"
)

// helpWidth is the maximum width of help, that of the smallest common terminal.
const helpWidth = 80

// commonNames are the flags that every command has.
var commonNames = []string{"config", "probe", "log-level"}

func isCommon(f cli.Flag) bool { return slices.Contains(commonNames, f.Names()[0]) }

// Help writes the --help output of the program (*cli.App) or of a command
// (*cli.Command). It is a cli.HelpPrinter.
func Help(w io.Writer, _ string, of any) {
	var h help
	switch of := of.(type) {
	case *cli.App:
		h.title(of.Name, of.Usage)
		h.text("Usage: "+of.Name+" [FLAG...] COMMAND [FLAG...]", 0)
		h.head("Commands")
		h.commands(of.Commands)
		h.head("Flags, before or after the command")
		h.flags(of.Flags)
		h.head("Examples")
		h.example(examples["check"][0])
		h.example(examples["events"][1])
		h.example(examples["top"][0])
		h.b.WriteByte('\n')
		h.text(of.Name+" help COMMAND has the flags of a command, and more examples.", 0)
	case *cli.Command:
		h.command(of)
	}
	_, _ = io.WriteString(w, h.b.String())
}

// help is a page of help.
type help struct{ b strings.Builder }

func (h *help) command(cmd *cli.Command) {
	name := strings.TrimSpace(cmd.HelpName)
	h.title(name, cmd.Usage)
	usage := "Usage: " + name
	switch {
	case len(cmd.Subcommands) > 0:
		usage += " PAGE"
	case cmd.ArgsUsage != "":
		usage += " " + cmd.ArgsUsage
	default:
		usage += " [FLAG...]"
	}
	h.text(usage, 0)
	if cmd.Description != "" {
		h.b.WriteByte('\n')
		h.text(cmd.Description, 0)
	}
	if len(cmd.Subcommands) > 0 {
		h.head("Pages")
		h.commands(cmd.Subcommands)
	}
	var own, common []cli.Flag
	for _, f := range cmd.Flags {
		if isCommon(f) {
			common = append(common, f)
		} else {
			own = append(own, f)
		}
	}
	if len(own) > 0 {
		h.head("Flags")
		h.flags(own)
	}
	if len(common) > 0 {
		h.head("Flags of every command")
		h.flags(common)
	}
	if all := examples[cmd.Name]; len(all) > 0 && strings.Count(name, " ") == 1 {
		h.head("Examples")
		for _, e := range all {
			h.example(e)
		}
	}
}

func (h *help) title(name, usage string) { h.text(name+" - "+usage, 0); h.b.WriteByte('\n') }

func (h *help) head(title string) { h.b.WriteString("\n" + title + ":\n") }

// text writes wrapped text, indented by spaces.
func (h *help) text(s string, indent int) {
	for _, line := range column.Wrap(s, helpWidth-indent) {
		h.b.WriteString(strings.Repeat(" ", indent) + line + "\n")
	}
}

// item writes a term with its meaning beside it, or below it if the term is long.
func (h *help) item(term, means string, at int) {
	const indent = 3
	h.b.WriteString(strings.Repeat(" ", indent) + term)
	if n := indent + displaywidth.String(term); n+2 <= at {
		var of help
		of.text(means, at)
		h.b.WriteString(of.b.String()[n:])
		return
	}
	h.b.WriteByte('\n')
	h.text(means, at)
}

func (h *help) commands(cmds []*cli.Command) {
	width := 0
	for _, c := range cmds {
		width = max(width, len(c.Name))
	}
	for _, c := range cmds {
		if !c.Hidden {
			h.item(c.Name, c.Usage, 3+width+2)
		}
	}
}

func (h *help) flags(flags []cli.Flag) {
	for _, f := range flags {
		term, usage, env := flagWords(f)
		if f.Names()[0] == "help" {
			usage = "print this"
		}
		if v := defaultOf(f); v != "" {
			usage += " (default " + v + ")"
		}
		if env != "" {
			usage += " [$" + env + "]"
		}
		h.item(term, usage, 24)
	}
}

// defaultOf returns a flag's default value, "" if the default is obvious.
func defaultOf(f cli.Flag) string {
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok || !doc.TakesValue() {
		return ""
	}
	switch v := strings.Trim(doc.GetDefaultText(), `"`); v {
	case "0", "0s":
		return ""
	default:
		return v
	}
}

func (h *help) example(e Example) {
	fmt.Fprintf(&h.b, "   %s\n", e.Line)
	h.text(e.Does, 7)
}
