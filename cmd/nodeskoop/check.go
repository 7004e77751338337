package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/clipperhouse/displaywidth"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/quote"
	"nodeskoop/output"
)

// verdict is how one check came out.
type verdict string

const (
	good    verdict = "ok"
	warning verdict = "warn"
	bad     verdict = "FAIL"
)

// finding is one line of `nodeskoop check`.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Found   string  `json:"found"`
	// Do is the command, or the change, that mends it.
	Do string `json:"do,omitempty"`
}

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "test the configuration and this machine, and say what mends each failure",
		Description: "Run it as the daemon runs, that is as root: it looks at what this process may do.\n" +
			"Exit code 0: nothing failed; warnings may stand. 1: something failed. 2: the command line is wrong.",
		Flags:  append(commonFlags(), jsonFlag("print JSON: a list of check, verdict (ok, warn or FAIL), found and do")),
		Action: runCheck,
	}
}

func runCheck(c *cli.Context) error {
	findings, err := runChecks(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = writeJSON(c, findings)
	} else {
		err = writeFindings(c.App.Writer, findings, terminalWidth(c.App.Writer), output.UseColor(c.App.Writer))
	}
	if err != nil {
		return outputError(err)
	}
	if slices.ContainsFunc(findings, func(f finding) bool { return f.Verdict == bad }) {
		return cli.Exit("", exitFailure) // the lines have said why
	}
	return nil
}

// writeFindings prints one line each, what is to be done below it, and how many
// there were. Lines are broken at width, if it is not 0.
func writeFindings(w io.Writer, findings []finding, width int, color bool) error {
	name := 0
	count := map[verdict]int{}
	for _, f := range findings {
		name = max(name, displaywidth.String(f.Check))
		count[f.Verdict]++
	}
	indent := len(bad) + 2 + name + 2
	paint := func(v verdict, text string) string {
		seq := map[verdict]string{good: "\x1b[32m", warning: "\x1b[1;33m", bad: "\x1b[1;31m"}[v]
		if !color || seq == "" {
			return text
		}
		return seq + text + "\x1b[0m"
	}
	var b strings.Builder
	put := func(first, text string) {
		for i, line := range wrap(text, width-indent-len(first)) {
			if i > 0 {
				b.WriteString(strings.Repeat(" ", indent+len(first)))
			} else {
				b.WriteString(first)
			}
			b.WriteString(line)
			b.WriteByte('\n')
		}
	}
	for _, f := range findings {
		b.WriteString(paint(f.Verdict, pad(string(f.Verdict), len(bad), true)))
		b.WriteString("  " + pad(f.Check, name, true) + "  ")
		put("", quote.SafeLine(f.Found))
		if f.Do != "" {
			b.WriteString(strings.Repeat(" ", indent))
			put("-> ", quote.SafeLine(f.Do))
		}
	}
	fmt.Fprintf(&b, "\n%d checks: %s", len(findings), paint(good, fmt.Sprintf("%d ok", count[good])))
	for _, v := range []struct {
		verdict
		one, more string
	}{{warning, "warning", "warnings"}, {bad, "failure", "failures"}} {
		word := v.more
		if count[v.verdict] == 1 {
			word = v.one
		}
		text := fmt.Sprintf("%d %s", count[v.verdict], word)
		if count[v.verdict] > 0 {
			text = paint(v.verdict, text)
		}
		b.WriteString(", " + text)
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// wrap breaks text at spaces into lines of at most width characters, where
// its words allow. A width that is too small to be worth it breaks nothing.
func wrap(text string, width int) []string {
	if width < 24 {
		return []string{text}
	}
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case displaywidth.String(line)+1+displaywidth.String(word) > width:
			lines = append(lines, line)
			line = word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// terminalWidth is 0 where w is no terminal.
func terminalWidth(w io.Writer) int {
	f, ok := w.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	width := 0
	err = raw.Control(func(fd uintptr) {
		if size, err := unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ); err == nil {
			width = int(size.Col)
		}
	})
	if err != nil {
		return 0
	}
	return width
}

// checker looks at one machine. Tests give it the tree of another.
type checker struct {
	cfg  *Config
	root string // where the machine's files are, "" for this one's
	now  time.Time
	// capabilities of the process in question, and its user.
	capabilities uint64
	uid          int
	release      string // of the kernel
}

// path is where a file of the machine is.
func (k *checker) path(name string) string { return k.root + name }

// traces reports whether any of the probes that are enabled is eBPF's.
func (k *checker) traces() bool { return len(k.enabled(catalog.EBPF)) > 0 }

// enabled are the probes that are, of some sources.
func (k *checker) enabled(sources ...catalog.Source) []string {
	return slices.DeleteFunc(slices.Clone(k.cfg.probes), func(name string) bool {
		return !slices.Contains(sources, catalog.ProbeByName(name).Source)
	})
}

func runChecks(c *cli.Context) ([]finding, error) {
	// What the log would say of this machine, the findings say.
	s, err := newSetupLogging(c, io.Discard)
	var coder cli.ExitCoder
	if errors.As(err, &coder) {
		return nil, err // the command line
	}
	if err != nil {
		return []finding{{"configuration", bad, strings.ReplaceAll(err.Error(), "\n", "; "),
			"mend what the message names; nodeskoop config --default prints the shipped file"}}, nil
	}
	s.log = slog.New(slog.DiscardHandler)
	k := &checker{cfg: s.cfg, now: time.Now(), uid: os.Geteuid()}
	out := []finding{{"configuration", good, cmp.Or(s.cfg.File, "no "+defaultConfigFile+": the defaults"), ""}}
	out = append(out, k.kernel())
	var capErr error
	if k.capabilities, capErr = kernel.Capabilities("/proc", 0); capErr != nil {
		out = append(out, finding{"capabilities", bad, capErr.Error(), "mount procfs on /proc"})
	} else {
		out = append(out, k.capabilityLines()...)
	}
	out = append(out, k.userNamespace(), checkHostNetns(s), k.btf(), k.lockdown(), k.kprobes(), k.symbols())
	out = append(out, k.memlock()...)
	out = append(out, k.probes(s)...)
	out = append(out, k.folder(), k.file(), k.state())
	out = append(out, k.otherWriters()...)
	out = append(out, k.exporters(), k.modes())
	out = append(out, k.daemonRights()...)
	out = append(out, k.journal()...)
	out = append(out, checkContainerd(c, s)...)
	return append(out, k.clock()), nil
}

func checkHostNetns(s *setup) finding {
	if s.hostErr != nil {
		what, do, _ := strings.Cut(s.hostErr.Error(), ": start ")
		if do != "" {
			do = "start " + do
		} else {
			do = "let host_netns name a file that is a network namespace, or remove it; run it as root with CAP_SYS_PTRACE"
		}
		return finding{"host's namespace", bad, what, do}
	}
	return s.view.finding(s.cfg.text("host_netns"))
}

// probes tries each probe for real.
func (k *checker) probes(s *setup) []finding {
	if s.hostErr != nil {
		return []finding{{"probes", bad, "not tried: what they gave would not be the host's", "see the host's namespace above"}}
	}
	rows, err := s.tryProbes()
	if err != nil {
		return []finding{{"probes", bad, err.Error(), "run it as root"}}
	}
	return k.probeLines(rows)
}

// probeLines are those of the probes that are enabled: the ones that read
// procfs or ask netlink together where they work, the others one by one, and
// those that fail for one reason together.
func (k *checker) probeLines(rows []probeRow) []finding {
	var out []finding
	var plain []string
	failed := map[string][]string{}
	var reasons []string
	for _, r := range rows {
		reason := firstLine(r.Reason)
		switch {
		case !r.Enabled:
		case !r.Works:
			// The Runner names the target, the loader the probe: they are in
			// the line's name already.
			reason = strings.TrimPrefix(strings.TrimPrefix(reason, "load probe "+r.Probe+": "), "probe "+r.Probe+" ")
			if failed[reason] == nil {
				reasons = append(reasons, reason)
			}
			failed[reason] = append(failed[reason], r.Probe)
		case r.Hook == "" && len(r.Lacks) == 0 && len(r.Refused) == 0:
			plain = append(plain, r.Probe)
		case len(r.Lacks) > 0 && r.Hook != "":
			found := "works in part, by " + r.Hook + "; it does not see " + strings.Join(r.Lacks, "; nor ")
			if len(r.Refused) > 0 {
				found += ". The kernel refused " + strings.Join(r.Refused, "; ")
			}
			out = append(out, finding{"probe " + r.Probe, warning, found, "nothing here; a kernel that allows the refused hooks sees the rest"})
		case len(r.Lacks) > 0:
			out = append(out, finding{"probe " + r.Probe, good, "works; " + strings.Join(r.Lacks, "; "), ""})
		default:
			found := "attached by " + r.Hook
			if len(r.Refused) > 0 {
				found += "; the kernel refused " + strings.Join(r.Refused, "; ")
			}
			out = append(out, finding{"probe " + r.Probe, good, found, ""})
		}
	}
	if len(plain) > 0 {
		out = append([]finding{{"probes", good, fmt.Sprintf("%d work that need no hook: %s", len(plain), strings.Join(plain, ", ")), ""}}, out...)
	}
	for _, reason := range reasons {
		names := failed[reason]
		name := "probe " + names[0]
		if len(names) > 1 {
			name = fmt.Sprintf("%d probes", len(names))
			reason = strings.Join(names, ", ") + ": " + reason
		}
		without := make([]string, len(names))
		for i, n := range names {
			without[i] = `"-` + n + `"`
		}
		do := "or leave it out: probes.enabled = [\"default\", " + strings.Join(without, ", ") + "]"
		switch {
		case strings.Contains(reason, "CAP_"):
			do = "give it the capabilities (see above), " + do
		case strings.Contains(reason, "although the process has the capabilities"):
			do = k.refusedBPF() + "; " + do
		case strings.Contains(reason, "type information"):
			do = "boot a kernel with BTF (see above), " + do
		default:
			do = "mend the cause, " + do
		}
		out = append(out, finding{name, bad, reason, do})
	}
	return out
}

// refusedBPF says what may be behind a refusal that no capability explains.
func (k *checker) refusedBPF() string {
	if k.status("Seccomp") == "2" {
		return "a system call filter is on this process: allow bpf and perf_event_open in it (SystemCallFilter= of the unit, --system-call-filter= of systemd-nspawn, the seccomp profile of a container)"
	}
	return "look at lockdown above, and for a security module in dmesg | grep -i -e lockdown -e denied"
}
