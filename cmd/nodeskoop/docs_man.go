package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nodeskoop/collect/catalog"
)

// roff writes a manual page. Its text methods escape what roff would read as
// its own.
type roff struct {
	b     bytes.Buffer
	fresh bool // a section begins, where a paragraph need not
}

// newRoff begins a page. Its date is that of SOURCE_DATE_EPOCH, so that two
// builds of one commit are the same.
func newRoff(name string, section int, summary string) *roff {
	date := ""
	if epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		date = time.Unix(epoch, 0).UTC().Format(time.DateOnly)
	}
	r := &roff{}
	fmt.Fprintf(&r.b, ".\\\" Made by nodeskoop docs. Do not edit.\n.TH %s %d \"%s\" \"nodeskoop %s\" \"System administration\"\n",
		strings.ToUpper(name), section, date, version)
	r.section("NAME")
	fmt.Fprintf(&r.b, "%s \\-\n", roffText(name))
	r.text(summary)
	return r
}

func roffText(s string) string {
	s = strings.NewReplacer("\\", "\\e", "-", "\\-", "'", "\\(aq", "`", "\\(ga", "^", "\\(ha", "~", "\\(ti", "\"", "\\(dq").Replace(s)
	if strings.HasPrefix(s, ".") {
		s = "\\&" + s
	}
	return s
}

func (r *roff) section(title string) {
	fmt.Fprintf(&r.b, ".SH %s\n", roffText(title))
	r.fresh = true
}

func (r *roff) sub(title string) {
	fmt.Fprintf(&r.b, ".SS %s\n", roffText(title))
	r.fresh = true
}

// text writes prose; what stands between backquotes is bold.
func (r *roff) text(s string) {
	r.fresh = false
	const width = 78
	n, bold := 0, false
	for _, word := range strings.Fields(s) {
		var b strings.Builder
		for i, part := range strings.Split(word, "`") {
			if i > 0 {
				if bold = !bold; bold {
					b.WriteString("\\fB")
				} else {
					b.WriteString("\\fR")
				}
			}
			b.WriteString(roffText(part))
		}
		w := b.String()
		switch {
		case n > 0 && n+1+len(w) <= width:
			r.b.WriteByte(' ')
			n++
		case n > 0:
			r.b.WriteByte('\n')
			n = 0
		}
		r.b.WriteString(w)
		n += len(w)
	}
	r.b.WriteByte('\n')
}

// para writes a paragraph, item one behind a term.
func (r *roff) para(s string) { r.b.WriteString(".PP\n"); r.text(s) }
func (r *roff) item(term, s string) {
	fmt.Fprintf(&r.b, ".TP\n\\fB%s\\fR\n", roffText(term))
	r.text(s)
}

// example writes lines as they are.
func (r *roff) example(lines ...string) {
	if !r.fresh {
		r.b.WriteString(".PP\n")
	}
	r.b.WriteString(".nf\n.RS 4\n")
	for _, l := range lines {
		r.b.WriteString(roffText(l) + "\n")
	}
	r.b.WriteString(".RE\n.fi\n")
}

// flags writes the flags as items.
func (r *roff) flags(flags []cli.Flag) {
	for _, f := range flags {
		term, usage, env := flagWords(f)
		if env != "" {
			usage += " (environment variable `" + env + "`)"
		}
		r.item(term, upperFirst(usage)+".")
	}
}

// flagWords are a flag as it is typed, what it does, and its variable.
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

// ownFlags are the flags of a command that are not common to all.
func ownFlags(cmd *cli.Command) []cli.Flag {
	common := map[string]bool{}
	for _, f := range commonFlags() {
		common[f.Names()[0]] = true
	}
	var own []cli.Flag
	for _, f := range cmd.VisibleFlags() {
		if name := f.Names()[0]; !common[name] && name != "help" {
			own = append(own, f)
		}
	}
	return own
}

// docMan writes nodeskoop(8).
func docMan(w io.Writer) error {
	app := newApp(io.Discard, io.Discard)
	r := newRoff("nodeskoop", 8, app.Usage)
	r.section("SYNOPSIS")
	r.b.WriteString("\\fBnodeskoop\\fR [\\fIoption\\fR...] \\fIcommand\\fR [\\fIoption\\fR...]\n")
	r.section("DESCRIPTION")
	r.text("nodeskoop runs network probes on one Linux host. It writes their metrics as a textfile that node_exporter serves, writes events to the systemd journal, and names the pods by asking containerd. It opens no port and asks no API server.")
	r.para("The service `nodeskoop.service` runs `nodeskoop run`. Script mode, for those who want no daemon, is `nodeskoop-collect.timer`. systemctl refuses to enable both.")
	r.section("COMMANDS")
	for _, cmd := range app.Commands {
		if cmd.Hidden {
			continue
		}
		r.sub("nodeskoop " + cmd.Name)
		r.text(upperFirst(cmd.Usage) + ".")
		if cmd.Description != "" {
			r.para(cmd.Description)
		}
		r.flags(ownFlags(cmd))
		for _, sub := range cmd.Subcommands {
			r.item(sub.Name, upperFirst(sub.Usage)+".")
		}
	}
	r.section("OPTIONS")
	r.text("These are accepted before and after the command's name.")
	r.flags(commonFlags())
	r.item("--help, -h", "Show help.")
	r.item("--version, -v", "Print the version.")
	r.section("EXIT STATUS")
	r.item("0", "Done; every requested probe gave all its values.")
	r.item("1", "It could not be done; the message says why.")
	r.item("2", "The command line is wrong.")
	r.item("3", "`collect`: some probes gave no complete values, those of the others were written.")
	r.section("SIGNALS")
	r.item("SIGHUP", "`run` reads the configuration again. A mistake in it is logged, and what was in effect is kept.")
	r.item("SIGTERM, SIGINT", "`run` ends, and removes the textfile unless textfile.keep is set.")
	r.section("PROBES")
	for _, p := range catalog.Probes() {
		on := ""
		if !p.Default {
			on = " Off unless enabled."
		}
		r.item(p.Name, fmt.Sprintf("%s, from %s.%s", upperFirst(p.Title), p.Source, on))
	}
	r.section("EVENTS")
	r.text("Events are in the journal under the identifier nodeskoop. With `journalctl -x` each comes with what it usually means and what to look at next.")
	r.example("journalctl -t nodeskoop -x", "journalctl KUBESKOOP_EVENT=PacketLoss K8S_POD=web-0 -o json")
	for _, e := range catalog.Events() {
		r.item(e.Name, e.Summary+" (probe "+e.Probe()+").")
	}
	r.section("METRICS")
	r.text("`nodeskoop docs metrics` prints the table of metrics. Alert on their age, since node_exporter serves a file for ever:")
	r.example("time() - nodeskoop_last_cycle_timestamp_seconds > 60")
	r.section("FILES")
	r.item(defaultConfigFile, "The configuration; see nodeskoop.toml(5). If it is absent the defaults apply.")
	def := defaultConfig()
	r.item(def.text("textfile.dir")+"/"+def.text("textfile.file"), "The textfile.")
	r.item(defaultStateDir+"/counters", "What the next start, or the next `collect`, goes on from: what deleted interfaces and ended processes had counted, and the counters of the BPF programs. It is replaced each cycle before the textfile, so that no reader has seen more than a start after a kill begins with. It belongs to one boot; one that is damaged, another user's or of another boot is not used, which is logged, and counters are reset. The daemon holds "+defaultStateDir+"/lock meanwhile; a `collect` beside it goes on from the file and leaves it as it is. See `[state]` in nodeskoop.toml(5).")
	r.section("SEE ALSO")
	r.text("nodeskoop.toml(5), prometheus-node-exporter(1), journalctl(1), systemctl(1)")
	_, err := w.Write(r.b.Bytes())
	return err
}

// docManConfig writes nodeskoop.toml(5).
func docManConfig(w io.Writer) error {
	r := newRoff("nodeskoop.toml", 5, "configuration of nodeskoop")
	r.section("SYNOPSIS")
	r.text("`" + defaultConfigFile + "`")
	r.section("DESCRIPTION")
	r.text("The file is in TOML. Every key may be left out; each stands below with its default. A mistake is refused with its file, line and key; a daemon that runs keeps what it had.")
	r.para("`systemctl reload nodeskoop` applies a change. `nodeskoop config` prints what is in effect, `nodeskoop check` tests it.")
	r.para("If textfile.dir is not the default, the service needs `ReadWritePaths=` for it: see `systemctl edit nodeskoop`.")
	table := "\x00"
	for _, s := range settings {
		t, key := "", s.key
		if i := strings.LastIndexByte(s.key, '.'); i >= 0 {
			t, key = s.key[:i], s.key[i+1:]
		}
		if t != table {
			if table = t; t == "" {
				r.section("KEYS")
			} else {
				r.section("[" + t + "]")
			}
		}
		r.item(key+" = "+literal(s.def), s.help)
	}
	r.section("[pods.labels]")
	r.text("Labels of your own for the series of pods. A key is the label's name, its value a template: ${labels:KEY} is the pod's label KEY.")
	r.example("[pods.labels]", "app = \"${labels:app}\"")
	r.section("EXAMPLE")
	r.example("interval = \"30s\"", "", "[probes]", "enabled = [\"default\", \"-io\", \"socketlatency\"]", "", "[metrics]", "skip_zero = true")
	r.section("SEE ALSO")
	r.text("nodeskoop(8)")
	_, err := w.Write(r.b.Bytes())
	return err
}
