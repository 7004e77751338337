// Package docs generates pages from the catalogue and the command line: manual
// pages, references, shell completions.
package docs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/urfave/cli/v2"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/top"
	"nodeskoop/collect/catalog"
	"nodeskoop/output/history"
)

// page is a manual page in Markdown. Its methods treat backquotes as bold and
// escape everything else.
type page struct{ b bytes.Buffer }

// newPage starts a page. The date comes from SOURCE_DATE_EPOCH, for reproducible
// builds.
func newPage(app *cli.App, name string, section int, summary string) *page {
	date := ""
	if epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		date = time.Unix(epoch, 0).UTC().Format(time.DateOnly)
	}
	p := &page{}
	fmt.Fprintf(&p.b, "# %s %d \"%s\" \"nodeskoop %s\" \"System administration\"\n", strings.ToUpper(name), section, date, app.Version)
	p.section("NAME")
	p.text(name + " - " + summary)
	return p
}

func (p *page) section(title string) { p.b.WriteString("# " + markdown(title) + "\n\n") }
func (p *page) sub(title string)     { p.b.WriteString("### " + markdown(title) + "\n\n") }
func (p *page) text(s string)        { p.b.WriteString(markdown(s) + "\n\n") }
func (p *page) item(term, s string) {
	fmt.Fprintf(&p.b, "**%s**\n: %s\n\n", markdown(term), markdown(s))
}

// example writes lines verbatim.
func (p *page) example(lines ...string) {
	p.b.WriteString("> ```\n")
	for _, l := range lines {
		p.b.WriteString("> " + l + "\n")
	}
	p.b.WriteString("> ```\n\n")
}

// flags writes a list of flags.
func (p *page) flags(flags []cli.Flag) {
	for _, f := range flags {
		if f == cli.HelpFlag {
			continue
		}
		term, usage, env := flagWords(f)
		var more []string
		if v := defaultOf(f); v != "" {
			more = append(more, "default "+v)
		}
		if env != "" {
			more = append(more, "environment variable `"+env+"`")
		}
		if len(more) > 0 {
			usage += " (" + strings.Join(more, "; ") + ")"
		}
		p.item(term, upperFirst(usage)+".")
	}
}

// markdown escapes a text of one paragraph.
func markdown(s string) string {
	parts := strings.Split(strings.Join(strings.Fields(s), " "), "`")
	for i := 0; i < len(parts); i += 2 {
		parts[i] = strings.NewReplacer("\\", "\\\\", "*", "\\*", "_", "\\_", "[", "\\[", "]", "\\]", "<", "\\<", ">", "\\>", "&", "\\&", "|", "\\|", "~", "\\~").Replace(parts[i])
	}
	return strings.Join(parts, "`")
}

// exact escapes characters of commands for which roff would print typographic
// variants, and which md2man does not escape.
var exact = strings.NewReplacer("\\-", "\\-", "-", "\\-", "'", "\\(aq", "`", "\\(ga", "^", "\\(ha", "~", "\\(ti", "\"", "\\(dq")

// typed applies exact and replaces non-ASCII characters by their number, since
// troff reads bytes.
func typed(line string) string {
	var b strings.Builder
	for _, r := range exact.Replace(line) {
		if r < utf8.RuneSelf {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\[u%04X]", r)
		}
	}
	return b.String()
}

// roff writes the page as roff. It removes from md2man's output what mandoc -Tlint
// rejects: empty lines, lines over 80 bytes, and a paragraph at the start of a
// section.
func (p *page) roff(w io.Writer) error {
	var b strings.Builder
	b.WriteString(".\\\" Made by nodeskoop docs. Do not edit.\n")
	example, fresh := false, false
	for line := range strings.Lines(string(md2man.Render(p.b.Bytes()))) {
		line = strings.TrimSuffix(line, "\n")
		if line == ".EX" || line == ".EE" {
			example = line == ".EX"
		}
		switch {
		case line == "" && !example, line == ".PP" && fresh:
			continue
		case strings.HasPrefix(line, "."):
			b.WriteString(line + "\n")
		case example:
			b.WriteString(typed(line) + "\n")
		default:
			fold(&b, typed(line))
		}
		fresh = strings.HasPrefix(line, ".S")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// fold wraps a line of text.
func fold(b *strings.Builder, line string) {
	const width = 78
	n := 0
	for _, word := range strings.Fields(line) {
		switch {
		case n > 0 && n+1+len(word) <= width:
			b.WriteByte(' ')
			n++
		case n > 0:
			b.WriteByte('\n')
			n = 0
		}
		if n == 0 && strings.HasPrefix(word, ".") {
			word = "\\&" + word
		}
		b.WriteString(word)
		n += len(word)
	}
	b.WriteByte('\n')
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// flagWords returns a flag as typed, its usage, and its environment variable.
func flagWords(f cli.Flag) (term, usage, env string) {
	doc, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return "", "", ""
	}
	usage = doc.GetUsage()
	value := ""
	if doc.TakesValue() {
		if _, rest, ok := strings.Cut(usage, "`"); ok {
			value, _, _ = strings.Cut(rest, "`")
		}
		usage = strings.ReplaceAll(usage, "`", "")
		if value == "" {
			value = "VALUE"
		}
	}
	var names []string
	for _, n := range f.Names() {
		if len(n) > 1 {
			n = "-" + n
		}
		names = append(names, "-"+n)
	}
	term = strings.Join(names, ", ")
	if value != "" {
		term += " " + value
	}
	if vars := doc.GetEnvVars(); len(vars) > 0 {
		env = vars[0]
	}
	return term, usage, env
}

// ownFlags returns the flags of a command that are not common to all.
func ownFlags(cmd *cli.Command) []cli.Flag {
	var own []cli.Flag
	for _, f := range cmd.VisibleFlags() {
		if !isCommon(f) && f != cli.HelpFlag {
			own = append(own, f)
		}
	}
	return own
}

// Man writes nodeskoop(8).
func Man(w io.Writer, app *cli.App) error {
	p := newPage(app, "nodeskoop", 8, app.Usage)
	p.section("SYNOPSIS")
	p.b.WriteString("**nodeskoop** [*option*...] *command* [*option*...]\n\n")
	p.section("DESCRIPTION")
	p.text("nodeskoop runs network probes on one Linux host. It writes their metrics as a textfile that node_exporter serves, writes events to the systemd journal, and asks containerd for the names of pods. It opens no port and needs no API server.")
	p.text("The service `nodeskoop.service` runs `nodeskoop run`. Script mode, without a daemon, is `nodeskoop-collect.timer`. Each refuses to start beside the other.")
	p.section("COMMANDS")
	for _, cmd := range app.Commands {
		if cmd.Hidden {
			continue
		}
		p.sub("nodeskoop " + cmd.Name)
		p.text(upperFirst(cmd.Usage) + ".")
		if cmd.Description != "" {
			p.text(cmd.Description)
		}
		p.flags(ownFlags(cmd))
		for _, sub := range cmd.Subcommands {
			p.item(sub.Name, upperFirst(sub.Usage)+".")
		}
	}
	p.section("OPTIONS")
	p.text("These options are accepted before and after the command's name.")
	p.flags(app.Flags)
	p.item("--help, -h", "Show help.")
	p.item("--version, -v", "Print the version.")
	p.section("EXAMPLES")
	for _, cmd := range app.Commands {
		for _, e := range examples[cmd.Name] {
			p.text(upperFirst(e.Does) + ":")
			p.example(e.Line)
		}
	}
	p.section("TOP")
	p.text("The columns of `nodeskoop top`. Rates are those of the last interval; - means unknown.")
	columns, keys := top.Reference()
	for _, c := range columns {
		p.item(c.Head, fmt.Sprintf("%s, %s. `--sort %s` or the key %s sorts by it.", upperFirst(c.Shows), c.Unit, c.Name, c.Key))
	}
	p.text("The keys:")
	for _, k := range keys {
		p.item(k.Press, upperFirst(k.Does)+".")
	}
	p.section("EXIT STATUS")
	p.item("0", "Done; every requested probe gave all its values.")
	p.item("1", "The command failed; the message says why.")
	p.item("2", "The command line is wrong.")
	p.item("3", "`collect`: some probes gave no complete values, or containerd did not list its pods; the other values were written. `pods`: containerd did not list its pods. `report`: the journal or the history could not be read, which the report says.")
	p.item("4", "`run`: nodeskoop-collect.timer is active and writes the same textfile.")
	p.section("SIGNALS")
	p.item("SIGHUP", "`run` reads the configuration again. If it contains a mistake, that is logged and the old configuration stays in effect.")
	p.item("SIGTERM, SIGINT", "`run` ends, and removes the textfile unless textfile.keep is set.")
	p.section("PROBES")
	for _, probe := range catalog.Probes() {
		on := ""
		if !probe.Default {
			on = " Off unless enabled."
		}
		p.item(probe.Name, fmt.Sprintf("%s, from %s.%s", upperFirst(probe.Title), probe.Source, on))
	}
	p.section("EVENTS")
	p.text("Events are in the journal under the identifier nodeskoop. `journalctl -x` adds the usual meaning of each, and commands for further investigation.")
	p.example("journalctl -t nodeskoop -x", "journalctl KUBESKOOP_EVENT=PacketLoss K8S_POD=web-0 -o json")
	for _, e := range catalog.Events() {
		p.item(e.Name, e.Summary+" (probe "+e.Probe()+").")
	}
	p.section("CAUSES")
	p.text("What `nodeskoop diagnose` names. `nodeskoop docs causes` prints what each rests on.")
	for _, c := range catalog.Causes() {
		p.item(c.ID, c.Means)
	}
	p.section("METRICS")
	p.text("`nodeskoop docs metrics` prints the table of metrics. Alert on their age, since node_exporter serves an old file forever:")
	p.example("time() - nodeskoop_last_cycle_timestamp_seconds > 60")
	p.section("FILES")
	p.item(config.DefaultFile, "The configuration; see nodeskoop.toml(5). If it is absent the defaults apply.")
	p.item(config.Folder(config.DefaultFile)+"/*.toml", "Drop-in files, read after it in the order of their names.")
	textfile := config.Default().Textfile
	p.item(textfile.Dir+"/"+textfile.File, "The textfile.")
	p.item(config.DefaultStateDir+"/counters", "The counts from which the next start, or the next `collect`, continues: those of deleted interfaces, exited processes and BPF programs. The file is replaced each cycle before the textfile, so that counters do not fall after a kill. It is valid for one boot: if it is damaged, another user's or of another boot, that is logged and counters are reset. The daemon holds "+config.DefaultStateDir+"/lock while it runs; a `collect` beside it reads the file and does not change it. See `[state]` in nodeskoop.toml(5).")
	p.item(config.DefaultStateDir+"/"+history.Folder+"/", "The history that `run` records: one frame per minute, one file per hour (UTC). A frame holds the increase of each counter that rose, and the last and highest values of gauges that top shows or that are fill levels. A killed daemon loses the current minute; a damaged file loses the damaged frames. The oldest files are removed when the history exceeds history.max or history.max_age. On a full or read-only disk the history pauses until the next hour, which is logged; nothing else is affected. See `[history]` in nodeskoop.toml(5).")
	p.item("/usr/share/doc/nodeskoop", "The guides and references that `nodeskoop docs` prints. Dashboards and alert rules are in examples/.")
	p.section("SEE ALSO")
	p.text("nodeskoop.toml(5), prometheus-node-exporter(1), journalctl(1), systemctl(1)")
	return p.roff(w)
}

// ManConfig writes nodeskoop.toml(5).
func ManConfig(w io.Writer, app *cli.App) error {
	p := newPage(app, "nodeskoop.toml", 5, "configuration of nodeskoop")
	p.section("SYNOPSIS")
	p.text("`" + config.DefaultFile + "`")
	p.text("`" + config.Folder(config.DefaultFile) + "/*.toml`")
	p.section("DESCRIPTION")
	p.text("The file is in TOML. Every key is optional; the list below shows the defaults. A mistake is reported with file, line and key, and a running daemon keeps its old configuration.")
	p.text("Files in the folder that end in .toml are read after it, in the order of their names; hidden files are ignored. Each may set any key, and the last value wins. `--config` DIR/NAME.toml reads that file and DIR/NAME.d/*.toml instead.")
	p.text("`systemctl reload nodeskoop` applies a change, and fails on a mistake. `nodeskoop config` prints the effective configuration, with the file and line that set each key. `nodeskoop config --check` only validates it; `nodeskoop check` also tests it on this machine.")
	p.text("If textfile.dir is not the default, the service needs `ReadWritePaths=` for it: see `systemctl edit nodeskoop`.")
	table := "\x00"
	for _, s := range config.Settings() {
		t, key := "", s.Key
		if i := strings.LastIndexByte(s.Key, '.'); i >= 0 {
			t, key = s.Key[:i], s.Key[i+1:]
		}
		if t != table {
			if table = t; t == "" {
				p.section("KEYS")
			} else {
				p.section("[" + t + "]")
			}
		}
		p.item(key+" = "+config.Literal(s.Default), s.Help)
	}
	p.section("[pods.labels]")
	p.text("Labels of your own for the series of pods. A key is the label's name, its value a template: ${labels:KEY} is the pod's label KEY.")
	p.example("[pods.labels]", "app = \"${labels:app}\"")
	p.section("EXAMPLE")
	p.example("interval = \"30s\"", "", "[probes]", "enabled = [\"default\", \"-io\", \"socketlatency\"]", "", "[metrics]", "skip_zero = true")
	p.section("SEE ALSO")
	p.text("nodeskoop(8)")
	return p.roff(w)
}
