package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect"
	"nodeskoop/collect/event"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/quote"
	"nodeskoop/output"
)

// argumentsKey is the key of the command line in the App's Metadata.
const argumentsKey = "arguments"

// tracingRights are the capabilities of which a process without root needs one to
// load BPF programs. Before Linux 5.8 only CAP_SYS_ADMIN exists.
const tracingRights = 1<<unix.CAP_BPF | 1<<unix.CAP_SYS_ADMIN

// unprivileged reports whether sudo would help: the process is not root and has
// none of tracingRights. Tests replace it.
var unprivileged = func() bool {
	if os.Geteuid() == 0 {
		return false
	}
	have, err := kernel.OwnCapabilities()
	return err != nil || have&tracingRights == 0
}

// argumentsOf returns the original command line.
func argumentsOf(c *cli.Context) []string {
	args, _ := c.App.Metadata[argumentsKey].([]string)
	return args
}

// withSudo returns the command line with sudo, ready to paste.
func withSudo(args []string) string {
	words := []string{"sudo"}
	for _, a := range args {
		words = append(words, shellWord(a))
	}
	return strings.Join(words, " ")
}

// shellWord quotes a word for the shell if needed.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./=,:@%+", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return quote.Shell(s)
}

// rootOnly are the commands that are useless without root. The other commands
// work in part.
var rootOnly = []string{"diagnose", "events", "top"}

// needRoot is the error of a command that needs root.
func needRoot(c *cli.Context) error {
	if unprivileged() {
		return cli.Exit("needs root: "+withSudo(argumentsOf(c)), exitFailure)
	}
	return nil
}

// complaint formats the error that ends the program. If permission was denied, it
// suggests sudo.
func complaint(err error, args []string) string {
	if errors.Is(err, fs.ErrPermission) && unprivileged() {
		return err.Error() + "; needs root: " + withSudo(args)
	}
	if errors.Is(err, context.Canceled) {
		return errInterrupted.Error() + " by a signal before it was done: nothing was written; start it again"
	}
	return err.Error()
}

// errInterrupted is the error of a command that a signal has ended before its result.
var errInterrupted = errors.New("interrupted")

// unknownPod is the error for a --pod that does not exist here; it is a usage error
// if the list of pods is known.
func unknownPod(err error) error {
	if errors.Is(err, session.ErrNoSuchPod) {
		return cli.Exit(err.Error(), exitUsage)
	}
	return err
}

// say writes words to the log, wrapped to the width of the window, and nothing for
// an empty text.
func say(w io.Writer, text string) {
	if text == "" {
		return
	}
	for _, line := range column.Wrap(text, logWidth(w)) {
		fmt.Fprintln(w, line)
	}
}

// firstWords is the first line of a command that runs until interrupted: what it
// watches, and what it cannot watch. named is why pods have no names, nil if they
// have.
func firstWords(status []collect.ProbeStatus, named error) string {
	up := 0
	var unsupported, failed []string
	for _, st := range status {
		switch {
		case st.Up:
			up++
		case st.Unsupported:
			unsupported = append(unsupported, st.Name)
		default:
			failed = append(failed, st.Name)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Watching %d probe%s", up, plural(up, "", "s"))
	if n := len(unsupported); n > 0 {
		fmt.Fprintf(&b, "; %s %s not supported by this kernel", list(unsupported), plural(n, "is", "are"))
	}
	if n := len(failed); n > 0 {
		fmt.Fprintf(&b, "; %s %s not work (nodeskoop probes says why)", list(failed), plural(n, "does", "do"))
	}
	if named != nil {
		b.WriteString("; pods have no names, as containerd does not answer (nodeskoop check says why)")
	}
	b.WriteString(". Ctrl-C ends.")
	return b.String()
}

// list joins words with commas and "and".
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// mostSummaryRows is the maximum number of kinds in the summary of events.
const mostSummaryRows = 30

// writeSummary writes the result of a Summary in lines of at most width columns; 0
// means unlimited. span describes the period: "in 5s".
func writeSummary(w io.Writer, s *event.Summary, span string, width int) error {
	kinds, more := s.Kinds()
	total := more
	for _, k := range kinds {
		total += k.Count
	}
	if total == 0 {
		_, err := fmt.Fprintf(w, "No events %s.\n", span)
		return err
	}
	for _, k := range kinds[min(len(kinds), mostSummaryRows):] {
		more += k.Count
	}
	rows := [][]string{{"COUNT", "EVENT", "WHOSE", "REASON, PEER", "WORST", "FIRST", "LAST"}}
	clock := "15:04:05"
	if slices.ContainsFunc(kinds, func(k event.SummaryKind) bool {
		return !sameDay(k.First, kinds[0].Last) || !sameDay(k.Last, kinds[0].Last)
	}) {
		clock = "01-02 15:04:05"
	}
	for _, k := range kinds[:min(len(kinds), mostSummaryRows)] {
		worst := "-"
		if k.Worst > 0 {
			worst = string(event.AppendLatency(nil, k.Worst))
		}
		rows = append(rows, []string{strconv.FormatUint(k.Count, 10), k.Type.Name, k.Whose, column.Dash(k.What), worst, k.First.Local().Format(clock), k.Last.Local().Format(clock)})
	}
	fit(rows, width, 3, 2)
	if _, err := fmt.Fprintf(w, "\n%d event%s %s:\n", total, plural(int(min(total, 2)), "", "s"), span); err != nil {
		return err
	}
	if err := column.Write(w, rows); err != nil {
		return err
	}
	if more == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "%d of them are of kinds not listed.\n", more)
	return err
}

// fit shortens cells of the named columns, the first column first, until each row
// is at most width columns wide.
func fit(rows [][]string, width int, columns ...int) {
	if width <= 0 {
		return
	}
	widths := column.Widths(rows)
	over := 2*(len(widths)-1) - width
	for _, n := range widths {
		over += n
	}
	for _, c := range columns {
		const least = 12 // minimum readable width
		room := max(min(widths[c], least), widths[c]-max(over, 0))
		over -= widths[c] - room
		for _, r := range rows {
			if displaywidth.String(r[c]) > room {
				r[c] = displaywidth.TruncateString(r[c], room, "…")
			}
		}
	}
}

// lasting formats a duration without needless fractions.
func lasting(d time.Duration) string {
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// logWidth is the width of the terminal that the log goes to, 0 if it is not a
// terminal.
func logWidth(w io.Writer) int { return output.Width(behind(w)) }

// logIsTerminal reports whether the log goes to a terminal.
func logIsTerminal(w io.Writer) bool { return output.IsTerminal(behind(w)) }

// behind returns the underlying writer of the log.
func behind(w io.Writer) io.Writer {
	if p, ok := w.(*output.Patient); ok {
		return p.Writer()
	}
	return w
}
