package faults

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// page is docs/faults.md.
func page(watch time.Duration, ones, twos, quiet []outcome) []byte {
	var w strings.Builder
	var u unix.Utsname
	_ = unix.Uname(&u)
	first := 0
	var scenes []string
	for _, o := range quiet {
		scenes = append(scenes, o.how[0])
	}
	release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
	for _, o := range ones {
		if o.first() {
			first++
		}
	}
	about, title, rule := "", "", ""
	compared := slices.ContainsFunc(ones, func(o outcome) bool { return o.beside != "" })
	if compared {
		about, title, rule = besideText, " bpftrace beside it |", "---|"
	}
	fmt.Fprintf(&w, `# What diagnose finds

`+"`make faults-doc`"+` wrote this page on Linux %s. It makes each fault for real, in
pods of containerd, on a node that is a network namespace, and on a wire behind it;
proves by a counter of another tool that the fault is there; and runs
`+"`nodeskoop diagnose --for %.0fs`"+` beside it. Five pods in good health are there
all the time.

- %d of %d faults are named first, with the end that is to blame.
- Of two faults at once, one is named first in %d of %d pairs, and both are named in %d.
- On the node in good health %d of %d looks found nothing: beside %s.

## One fault

Rank is the place of the fault among the findings. `+"`-`"+` is a fault that is not named, or
with another end.
%s
| Fault | Made how | Proof | Named first | Rank | Evidence |%s
|---|---|---|---|---|---|%s
`, release, watch.Seconds(), first, len(ones), count(twos, outcome.first), len(twos),
		count(twos, func(o outcome) bool { return o.rank(0) > 0 && o.rank(1) > 0 }),
		count(quiet, func(o outcome) bool { return len(o.Findings) == 0 }), len(quiet), strings.Join(scenes, ", "), about, title, rule)
	for _, o := range ones {
		fmt.Fprintf(&w, "| %s | %s | %s | %s | %s | %s |", o.names[0], cell(o.how[0]), cell(o.proofs[0]), o.firstNamed(), place(o.rank(0)), cell(o.evidence()))
		if compared {
			fmt.Fprintf(&w, " %s |", cell(o.beside))
		}
		w.WriteByte('\n')
	}
	w.WriteString("\n## Two faults at once\n\n| Faults | Named first | Ranks | Also named |\n|---|---|---|---|\n")
	for _, o := range twos {
		fmt.Fprintf(&w, "| %s, %s | %s | %s, %s | %s |\n", o.names[0], o.names[1], o.firstNamed(), place(o.rank(0)), place(o.rank(1)), cell(strings.Join(o.others(), "; ")))
	}
	return []byte(w.String())
}

// besideText introduces the output of bpftrace.
const besideText = `
The last column is what a bpftrace program shows of the whole node in the same time: packets
that the kernel dropped, by reason, and TCP's retransmissions and resets, each from five
on. It says neither whose they are nor why. Of bcc's tools, tcpdrop and tcpretrans need
function hooks and the kernel's headers; where this page was made there are neither.
`

func count(list []outcome, is func(outcome) bool) (n int) {
	for _, o := range list {
		if is(o) {
			n++
		}
	}
	return n
}

func place(rank int) string {
	if rank == 0 {
		return "-"
	}
	return fmt.Sprint(rank)
}

func (o outcome) firstNamed() string {
	if len(o.Findings) == 0 {
		return "nothing"
	}
	return o.Findings[0].Cause + ", " + o.Findings[0].Blame
}

// evidence is the evidence of the first finding.
func (o outcome) evidence() string {
	if len(o.Findings) == 0 {
		return ""
	}
	var list []string
	for _, e := range o.Findings[0].Evidence {
		list = append(list, e.Text)
	}
	return strings.Join(list[:min(len(list), 2)], "; ")
}

// others are the findings that belong to none of the faults.
func (o outcome) others() (list []string) {
	for i, f := range o.Findings {
		if i+1 != o.rank(0) && i+1 != o.rank(1) {
			list = append(list, f.Cause+", "+f.Blame)
		}
	}
	return list
}

// cell formats text for a table cell.
func cell(text string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ", "<", "&lt;").Replace(text)
}
