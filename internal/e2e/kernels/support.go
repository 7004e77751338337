package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// support is a line of support.tsv: what a rung of a probe does on a kernel.
type support struct {
	arch, kernel, probe, rung, result string
}

func (s support) key() string { return strings.Join([]string{s.arch, s.kernel, s.probe, s.rung}, " ") }

const supportHeader = "arch\tkernel\tprobe\trung\tresult\n"

func readSupport(file string) ([]support, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseSupport(file, data)
}

func parseSupport(file string, data []byte) ([]support, error) {
	rest, ok := bytes.CutPrefix(data, []byte(supportHeader))
	if !ok {
		return nil, fmt.Errorf("%s:1: want the columns %q", file, supportHeader)
	}
	var table []support
	n := 1
	for line := range strings.Lines(string(rest)) {
		n++
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 || slices.Contains(f, "") {
			return nil, fmt.Errorf("%s:%d: want five columns, none empty", file, n)
		}
		table = append(table, support{f[0], f[1], f[2], f[3], f[4]})
	}
	return table, nil
}

func formatSupport(table []support) []byte {
	slices.SortStableFunc(table, func(x, y support) int {
		return cmp.Or(
			strings.Compare(x.arch, y.arch),
			compareSeries(x.kernel, y.kernel),
			strings.Compare(x.probe, y.probe),
			strings.Compare(x.rung, y.rung),
		)
	})
	b := bytes.NewBufferString(supportHeader)
	for _, s := range table {
		fmt.Fprintf(b, "%s\t%s\t%s\t%s\t%s\n", s.arch, s.kernel, s.probe, s.rung, s.result)
	}
	return b.Bytes()
}

// compareSeries orders "5.10" after "5.9", and "6.12-rt" after "6.12".
func compareSeries(x, y string) int {
	var a, b [2]int
	fmt.Sscanf(x, "%d.%d", &a[0], &a[1])
	fmt.Sscanf(y, "%d.%d", &b[0], &b[1])
	return cmp.Or(slices.Compare(a[:], b[:]), strings.Compare(x, y))
}

// supports converts a report to the table's form.
func (r *report) supports() []support {
	var found []support
	for _, o := range r.outcomes {
		found = append(found, support{r.machine.arch, r.machine.kernel.series(), o.probe, o.rung, o.result()})
	}
	return found
}

// compare compares a VM's results with the table. For a series that the table does
// not have, such as a newer kernel, it fails only if no rung of a probe works.
func compare(r *report, table []support) (failures, notes []string) {
	arch, series := r.machine.arch, r.machine.kernel.series()
	expected := map[string]string{}
	for _, s := range table {
		if s.arch == arch && s.kernel == series {
			expected[s.key()] = s.result
		}
	}
	if len(expected) == 0 {
		works := map[string]bool{}
		for _, o := range r.outcomes {
			works[o.probe] = works[o.probe] || o.taken && !o.wrong
		}
		for _, probe := range r.probes() {
			if !works[probe] {
				failures = append(failures, fmt.Sprintf("%s has no hook that works, and support.tsv knows nothing of this kernel", probe))
			}
		}
		return failures, []string{fmt.Sprintf("support.tsv has no rows for %s %s: -update writes them", arch, series)}
	}
	for _, s := range r.supports() {
		want, ok := expected[s.key()]
		delete(expected, s.key())
		switch {
		case !ok:
			failures = append(failures, fmt.Sprintf("%s %s: %q, which support.tsv does not list", s.probe, s.rung, s.result))
		case !same(want, s.result):
			failures = append(failures, fmt.Sprintf("%s %s: %q, support.tsv says %q", s.probe, s.rung, s.result, want))
		}
	}
	for _, s := range table {
		if want, ok := expected[s.key()]; ok {
			failures = append(failures, fmt.Sprintf("%s %s: not tried, support.tsv says %q", s.probe, s.rung, want))
		}
	}
	return failures, nil
}

// same reports whether two results mean the same. A rung of several programs may be
// refused for several reasons, and which one the kernel reports first is arbitrary.
func same(want, got string) bool {
	return want == got || strings.HasPrefix(want, "refused: ") && strings.HasPrefix(got, "refused: ")
}

// updated returns the table with the rows of the kernels that ran replaced.
func updated(table []support, reports []*report) []support {
	for _, r := range reports {
		table = slices.DeleteFunc(table, func(s support) bool {
			return s.arch == r.machine.arch && s.kernel == r.machine.kernel.series()
		})
		table = append(table, r.supports()...)
	}
	return table
}
