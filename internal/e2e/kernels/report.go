package main

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"nodeskoop/internal/testkit/proof"
)

// byDefault is the rung that stands for the probe's own choice.
const byDefault = "default"

// outcome is the result of one rung of one probe on one kernel.
type outcome struct {
	probe, rung string
	chosen      string // for the rung byDefault: the kinds of hooks that were chosen
	taken       bool
	limitations []string
	refused     string
	counts      int
	caused      uint64
	counted     uint64
	wrong       bool
}

// result returns the outcome as the table spells it.
func (o *outcome) result() string {
	partly := ""
	if len(o.limitations) > 0 {
		partly = " partly"
	}
	switch {
	case o.wrong:
		return "counts wrong"
	case o.refused != "" && o.counts == 0:
		return "refused: " + class(o.refused)
	case o.rung == byDefault:
		return o.chosen + partly
	case o.counts > 0:
		return "counts" + partly
	default:
		return "loads" + partly
	}
}

// classes of refusals, by the loader's message; the first match applies.
var classes = []struct{ text, class string }{
	{"no such function or tracepoint", "absent"},
	{"has no type information", "no BTF"},
	{"has no kprobes", "no kprobes"},
	{"the process lacks", "not permitted"},
	{"the kernel forbids this", "forbidden"},
	{"the kernel's verifier rejects it", "verifier"},
	{"does not support it", "not supported"},
}

// class returns the kind of a reason, without details that differ between versions.
func class(reason string) string {
	for _, c := range classes {
		if strings.Contains(reason, c.text) {
			return c.class
		}
	}
	return "other"
}

// report is what one VM's output says.
type report struct {
	machine  *machine
	release  string
	err      error // error of the VM
	ended    []string
	passed   int
	failed   []string          // names of tests
	skipped  map[string]string // by test: the reason
	said     map[string][]string
	notes    []string
	seconds  float64
	outcomes []*outcome
}

func (r *report) ok() bool { return r.err == nil && len(r.failed) == 0 }

func (r *report) outcome(probe, rung string) *outcome {
	for _, o := range r.outcomes {
		if o.probe == probe && o.rung == rung {
			return o
		}
	}
	o := &outcome{probe: probe, rung: rung}
	r.outcomes = append(r.outcomes, o)
	return o
}

var (
	resultLine = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) \(`)
	nameLine   = regexp.MustCompile(`^=== (?:RUN|CONT|NAME|PAUSE) +(\S+)`)
	saidLine   = regexp.MustCompile(`^ *\S+\.go:\d+: (.*)`)
)

// read parses a VM's output.
func (r *report) read(text string) {
	r.skipped, r.said = map[string]string{}, map[string][]string{}
	var suite, test string
	var lines []proof.Line
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if word, rest, ok := strings.Cut(line, " "); ok && strings.HasPrefix(word, "@") {
			switch word {
			case "@boot":
				r.release, _, _ = strings.Cut(rest, " ")
			case "@module":
				r.notes = append(r.notes, "module "+rest)
			case "@kernel", "@note":
				r.notes = append(r.notes, rest)
			case "@run":
				suite, test = rest, ""
			case "@end":
				var name, result string
				var seconds float64
				if _, err := fmt.Sscanf(rest, "%s %f", &name, &seconds); err == nil {
					_, result, _ = strings.Cut(rest, " ")
					_, result, _ = strings.Cut(result, " ")
				}
				r.ended = append(r.ended, name)
				r.seconds += seconds
				if result != "ok" {
					r.failed = append(r.failed, name+": "+result)
				}
				suite = ""
			}
			continue
		}
		if suite == "" {
			continue
		}
		if m := nameLine.FindStringSubmatch(line); m != nil {
			test = suite + "." + m[1]
			continue
		}
		if m := resultLine.FindStringSubmatch(line); m != nil {
			test = suite + "." + m[2]
			switch m[1] {
			case "PASS":
				r.passed++
			case "FAIL":
				r.failed = append(r.failed, test)
			case "SKIP":
				said := r.said[test]
				r.skipped[test] = "no reason given"
				if len(said) > 0 {
					r.skipped[test] = said[len(said)-1]
				}
			}
			continue
		}
		if m := saidLine.FindStringSubmatch(line); m != nil {
			if p, ok := strings.CutPrefix(m[1], proof.Mark); ok {
				var l proof.Line
				if err := json.Unmarshal([]byte(p), &l); err != nil {
					r.failed = append(r.failed, test+": "+err.Error()+": "+p)
				} else {
					lines = append(lines, l)
				}
				continue
			}
			r.said[test] = append(r.said[test], m[1])
		} else if strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
			r.failed = append(r.failed, suite+": "+line)
		}
	}
	// A count belongs to a forced rung, or to the probe's choice; which of them is
	// known after all lines are read.
	for _, l := range lines {
		switch {
		case l.Chosen:
			o := r.outcome(l.Probe, byDefault)
			o.taken, o.chosen, o.limitations = true, l.Hook, l.Limitations
		case l.Taken:
			o := r.outcome(l.Probe, l.Hook)
			o.taken, o.limitations = true, l.Limitations
		case l.Refused != "":
			rung := l.Hook
			if rung == "" {
				rung = byDefault
			}
			r.outcome(l.Probe, rung).refused = l.Refused
		}
	}
	for _, l := range lines {
		if l.Chosen || l.Taken || l.Refused != "" {
			continue
		}
		o := r.counted(l)
		o.counts++
		o.caused += l.Caused
		o.counted += l.Counted
		o.wrong = o.wrong || l.Caused != l.Counted
	}
}

func (r *report) counted(l proof.Line) *outcome {
	var def *outcome
	for _, o := range r.outcomes {
		if o.probe == l.Probe && o.rung == l.Hook {
			return o
		}
		if o.probe == l.Probe && o.rung == byDefault {
			def = o
		}
	}
	if def != nil {
		return def
	}
	// For a probe without rungs, the hook is its source.
	o := r.outcome(l.Probe, byDefault)
	o.taken, o.chosen = true, l.Hook
	return o
}

// probes returns the report's probes, sorted by name.
func (r *report) probes() []string {
	var names []string
	for _, o := range r.outcomes {
		if !slices.Contains(names, o.probe) {
			names = append(names, o.probe)
		}
	}
	slices.Sort(names)
	return names
}

// table prints a line per probe: the hooks in use, the caused and counted numbers,
// and the result of each rung.
func table(reports []*report) string {
	rows := [][]string{{"KERNEL", "PROBE", "USES", "CAUSED", "COUNTED", "RESULT", "EVERY RUNG: COUNTED/CAUSED, OR WHY NOT"}}
	for _, r := range reports {
		for _, probe := range r.probes() {
			uses, result := "nothing", "unsupported"
			var caused, counted uint64
			counts := 0
			var rungs []string
			wrong := false
			for _, o := range r.outcomes {
				if o.probe != probe {
					continue
				}
				caused, counted, counts = caused+o.caused, counted+o.counted, counts+o.counts
				wrong = wrong || o.wrong
				if o.rung == byDefault {
					if o.refused == "" {
						uses, result = o.chosen, "pass"
						if len(o.limitations) > 0 {
							result = "pass, partly"
						}
					} else {
						result = "unsupported: " + class(o.refused)
					}
					continue
				}
				text := o.rung + " "
				switch {
				case o.counts > 0:
					text += fmt.Sprintf("%d/%d", o.counted, o.caused)
				case o.taken:
					text += "loads"
				default:
					text += class(o.refused)
				}
				rungs = append(rungs, text)
			}
			if wrong {
				result = "FAIL"
			}
			numbers := []string{"-", "-"}
			if counts > 0 {
				numbers = []string{fmt.Sprint(caused), fmt.Sprint(counted)}
			}
			rows = append(rows, []string{r.machine.name(), probe, uses, numbers[0], numbers[1], result, strings.Join(rungs, "; ")})
		}
	}
	return columns(rows)
}

// columns aligns rows in columns as wide as needed, except for the last one.
func columns(rows [][]string) string {
	width := make([]int, 16)
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if i == len(row)-1 {
				line.WriteString(cell)
				break
			}
			fmt.Fprintf(&line, "%-*s  ", width[i], cell)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}
