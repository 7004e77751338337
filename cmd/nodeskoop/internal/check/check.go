// Package check tests whether nodeskoop works on a machine, and says how to fix
// each problem. It tests the configuration, the kernel, the process's privileges,
// each probe, the outputs and containerd.
package check

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/quote"
)

// Verdict is the result of one check.
type Verdict string

const (
	Good    Verdict = "ok"
	Warning Verdict = "warn"
	Bad     Verdict = "FAIL"
)

// Finding is one line of `nodeskoop check`.
type Finding struct {
	Check   string  `json:"check"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	// Do is the command or change that fixes the problem.
	Do string `json:"do,omitempty"`
}

// Problems returns the findings that are not ok.
func Problems(findings []Finding) []Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return f.Verdict == Good })
}

// Write prints one line per finding with its fix below. It then repeats the
// problems, since the first lines may have scrolled off the screen, and prints
// totals. With problems set it prints only findings that are not ok. A width other
// than 0 wraps lines.
func Write(w io.Writer, findings []Finding, width int, color, problems bool) error {
	name := 0
	count := map[Verdict]int{}
	for _, f := range findings {
		name = max(name, displaywidth.String(f.Check))
		count[f.Verdict]++
	}
	indent := len(Bad) + 2 + name + 2
	paint := func(v Verdict, text string) string {
		seq := map[Verdict]string{Good: "\x1b[32m", Warning: "\x1b[1;33m", Bad: "\x1b[1;31m"}[v]
		if !color || seq == "" {
			return text
		}
		return seq + text + "\x1b[0m"
	}
	var b strings.Builder
	put := func(first, text string) {
		for i, line := range column.Wrap(text, width-indent-len(first)) {
			if i > 0 {
				b.WriteString(strings.Repeat(" ", indent+len(first)))
			} else {
				b.WriteString(first)
			}
			b.WriteString(line)
			b.WriteByte('\n')
		}
	}
	line := func(f Finding) {
		b.WriteString(paint(f.Verdict, column.Pad(string(f.Verdict), len(Bad), true)))
		b.WriteString("  " + column.Pad(f.Check, name, true) + "  ")
		put("", quote.SafeLine(f.Found))
		if f.Do != "" {
			b.WriteString(strings.Repeat(" ", indent))
			put("-> ", quote.SafeLine(f.Do))
		}
	}
	bad := Problems(findings)
	if !problems {
		for _, f := range findings {
			line(f)
		}
		if len(bad) > 0 && len(bad) < len(findings) {
			b.WriteString("\nNot ok:\n")
		}
	}
	if problems || len(bad) < len(findings) {
		for _, f := range bad {
			line(f)
		}
	}
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d checks: %s", len(findings), paint(Good, fmt.Sprintf("%d ok", count[Good])))
	for _, v := range []struct {
		Verdict
		one, more string
	}{{Warning, "warning", "warnings"}, {Bad, "failure", "failures"}} {
		word := v.more
		if count[v.Verdict] == 1 {
			word = v.one
		}
		text := fmt.Sprintf("%d %s", count[v.Verdict], word)
		if count[v.Verdict] > 0 {
			text = paint(v.Verdict, text)
		}
		b.WriteString(", " + text)
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// checker checks one machine. Tests give it the file tree of another machine.
type checker struct {
	cfg  *config.Config
	root string // root of the machine's file tree, "" for this machine
	now  time.Time
	// Capabilities and user of the checked process.
	capabilities uint64
	uid          int
	release      string // the kernel's release
}

// path returns the location of a file of the machine.
func (k *checker) path(name string) string { return k.root + name }

// traces reports whether an eBPF probe is enabled.
func (k *checker) traces() bool { return len(k.enabled(catalog.EBPF)) > 0 }

// enabled returns the enabled probes of the given sources.
func (k *checker) enabled(sources ...catalog.Source) []string {
	return slices.DeleteFunc(slices.Clone(k.cfg.Probes), func(name string) bool {
		return !slices.Contains(sources, catalog.ProbeByName(name).Source)
	})
}

// BadConfig returns the findings for a configuration that cannot be used.
func BadConfig(err error) []Finding {
	return []Finding{{"configuration", Bad, strings.ReplaceAll(err.Error(), "\n", "; "),
		"fix what the message names; nodeskoop config --default prints the shipped file"}}
}

// Run checks this machine. The session has inspected the host, or holds the error
// of the inspection.
func Run(ctx context.Context, s *session.Session) []Finding {
	k := &checker{cfg: s.Config, now: time.Now(), uid: os.Geteuid()}
	out := []Finding{{"configuration", Good, cmp.Or(strings.Join(s.Config.Files, ", "), "no "+config.DefaultFile+": the defaults"), ""}}
	out = append(out, k.kernel())
	var capErr error
	if k.capabilities, capErr = kernel.Capabilities("/proc", 0); capErr != nil {
		out = append(out, Finding{"capabilities", Bad, capErr.Error(), "mount procfs on /proc"})
	} else {
		out = append(out, k.capabilityLines()...)
	}
	out = append(out, k.userNamespace(), checkHost(s), k.btf(), k.lockdown(), k.kprobes(), k.symbols())
	out = append(out, k.memlock()...)
	out = append(out, k.probes(s)...)
	out = append(out, k.folder(), k.file(), k.state(), k.history())
	out = append(out, k.otherWriters()...)
	out = append(out, k.exporters(), k.modes())
	out = append(out, k.daemonRights()...)
	out = append(out, k.journal()...)
	out = append(out, k.containers(ctx, s)...)
	return append(out, k.clock())
}

func checkHost(s *session.Session) Finding {
	if s.HostErr != nil {
		what, do, _ := strings.Cut(s.HostErr.Error(), ": start ")
		if do != "" {
			do = "start " + do
		} else {
			do = "let host_netns name a file that is a network namespace, or remove it; run it as root with CAP_SYS_PTRACE"
		}
		return Finding{"host's namespace", Bad, what, do}
	}
	return judgeHost(s.Host, s.Config.HostNetns)
}

// judgeHost says which parts of the host are visible; named is the option
// host_netns.
func judgeHost(v session.Host, named string) Finding {
	const name = "host's namespace"
	switch {
	case v.Machine:
		return Finding{name, Warning, "this is a container that has booted a system of its own: \"hostNetwork\" is what this container has, not the host around it", "nothing, if that is wanted; else run nodeskoop on the host"}
	case len(v.Refused) > 0:
		var names []string
		for p := range v.Refused {
			names = append(names, p)
		}
		slices.Sort(names)
		return Finding{name, Warning, "the host's network is visible, but not everything of the host: " + strings.Join(names, ", ") + " are refused (see below)", "the flags that the probes' lines name"}
	case named != "":
		return Finding{name, Good, named, ""}
	case v.Guessed != nil:
		return Finding{name, Good, fmt.Sprintf("this process is in it; that of process 1 cannot be read (%v)", v.Guessed), ""}
	}
	return Finding{name, Good, "that of process 1, which is the host's", ""}
}

// lacking returns the verdict on probes that this machine cannot run: a failure
// only if the user named one of them.
func (k *checker) lacking(probes []string) Verdict {
	if slices.ContainsFunc(probes, func(name string) bool { return slices.Contains(k.cfg.Named, name) }) {
		return Bad
	}
	return Warning
}

// probes runs each probe once.
func (k *checker) probes(s *session.Session) []Finding {
	if s.HostErr != nil {
		return []Finding{{"probes", Bad, "not tried: their values would not be the host's", "see the host's namespace above"}}
	}
	rows, err := s.TryProbes()
	if err != nil {
		return []Finding{{"probes", Bad, err.Error(), "run it as root"}}
	}
	return k.probeLines(rows)
}

// probeLines returns the lines for enabled and escalated probes. Working procfs and netlink
// probes share a line, working eBPF probes have one each, and probes that fail for
// the same reason share one.
func (k *checker) probeLines(rows []session.Probe) []Finding {
	var out []Finding
	var plain []string
	type cause struct {
		reason               string
		supported, escalated bool
	}
	failed := map[cause][]string{}
	var causes []cause
	for _, r := range rows {
		switch {
		case !r.Enabled && !r.Escalated:
		case !r.Works:
			// The line's name already contains the probe, which the loader repeats.
			why := cause{strings.TrimPrefix(r.Reason, "load probe "+r.Probe+": "), r.Supported, r.Escalated}
			if failed[why] == nil {
				causes = append(causes, why)
			}
			failed[why] = append(failed[why], r.Probe)
		case r.Hook == "" && len(r.Limitations) == 0 && len(r.Refused) == 0:
			plain = append(plain, r.Probe)
		case len(r.Limitations) > 0 && r.Hook != "":
			found := "works in part, by " + r.Hook + "; it does not see " + strings.Join(r.Limitations, "; nor ")
			if len(r.Refused) > 0 {
				found += ". The kernel refused " + strings.Join(r.Refused, "; ")
			}
			out = append(out, Finding{"probe " + r.Probe, Warning, found, "nothing here; a kernel that allows the refused hooks sees the rest"})
		case len(r.Limitations) > 0:
			out = append(out, Finding{"probe " + r.Probe, Good, "works; " + strings.Join(r.Limitations, "; "), ""})
		default:
			found := "attached by " + r.Hook
			if len(r.Refused) > 0 {
				found += "; the kernel refused " + strings.Join(r.Refused, "; ")
			}
			out = append(out, Finding{"probe " + r.Probe, Good, found, ""})
		}
	}
	if len(plain) > 0 {
		out = append([]Finding{{"probes", Good, fmt.Sprintf("%d work that need no hook: %s", len(plain), strings.Join(plain, ", ")), ""}}, out...)
	}
	for _, why := range causes {
		names, reason := failed[why], why.reason
		name := "probe " + names[0]
		if len(names) > 1 {
			name = fmt.Sprintf("%d probes", len(names))
			reason = strings.Join(names, ", ") + ": " + reason
		}
		without := make([]string, len(names))
		for i, n := range names {
			without[i] = `"-` + n + `"`
		}
		key := "probes.enabled"
		if why.escalated {
			key = "probes.escalate"
		}
		do := "or leave it out: " + key + " = [\"default\", " + strings.Join(without, ", ") + "]"
		switch {
		case strings.Contains(reason, "CAP_"):
			do = "give it the capabilities (see above), " + do
		case strings.Contains(reason, "although the process has the capabilities"):
			do = k.refusedBPF() + "; " + do
		case strings.Contains(reason, "type information"):
			do = "boot a kernel with BTF (see above), " + do
		case !why.supported:
			do = "nothing, or boot a kernel that has it, " + do
		default:
			do = "fix the cause, " + do
		}
		verdict := Bad
		if !why.supported {
			verdict, reason = k.lacking(names), "not supported here: "+reason
		}
		out = append(out, Finding{name, verdict, reason, do})
	}
	return out
}

// refusedBPF suggests causes of a refusal that missing capabilities do not explain.
func (k *checker) refusedBPF() string {
	if k.status("Seccomp") == "2" {
		return "a system call filter is on this process: allow bpf and perf_event_open in it (SystemCallFilter= of the unit, --system-call-filter= of systemd-nspawn, the seccomp profile of a container)"
	}
	return "look at lockdown above, and for a security module in dmesg | grep -i -e lockdown -e denied"
}
