package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
)

// costs is the CPU time that a VM used for each test. Time outside tests counts under
// the name of the next suite.
type costs map[string]time.Duration

// sampling is the interval at which the running test is determined, and thus the
// accuracy of a test's cost.
const sampling = 250 * time.Millisecond

// begun matches the line at the start of a suite or a test; a subtest counts as its
// test.
var begun = regexp.MustCompile(`(?m)^(?:=== RUN +|@run )([^/\s]+)`)

// measure samples the CPU time of a process, and assigns it to the test that its
// output names last, until stop is closed.
func measure(pid int, output string, stop <-chan struct{}) costs {
	c := costs{}
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return c
	}
	test, before := "boot", 0.0
	var read int64
	var left []byte
	tick := time.NewTicker(sampling)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return c
		case <-tick.C:
		}
		stat, err := proc.Stat()
		if err != nil {
			return c
		}
		now := stat.CPUTime()
		c[test] += time.Duration((now - before) * float64(time.Second))
		before = now
		if f, err := os.Open(output); err == nil {
			more, _ := io.ReadAll(io.NewSectionReader(f, read, 1<<20))
			f.Close()
			read += int64(len(more))
			left = append(left, more...)
			end := bytes.LastIndexByte(left, '\n') + 1
			if names := begun.FindAllSubmatch(left[:end], -1); len(names) > 0 {
				test = string(names[len(names)-1][1])
			}
			left = append([]byte(nil), left[end:]...)
		}
	}
}

// costTable prints the tests that used the most CPU time in all VMs together.
func costTable(reports []*report, most int) string {
	sum := costs{}
	for _, r := range reports {
		for test, took := range r.machine.costs {
			sum[test] += took
		}
	}
	tests := slices.SortedFunc(maps.Keys(sum), func(a, b string) int { return int((sum[b] - sum[a]) / time.Millisecond) })
	var b strings.Builder
	fmt.Fprintf(&b, "%-44s %6s", "seconds of CPU", "all")
	for _, r := range reports {
		fmt.Fprintf(&b, " %6.6s", r.machine.name())
	}
	for _, test := range tests[:min(most, len(tests))] {
		fmt.Fprintf(&b, "\n%-44.44s %6.1f", test, sum[test].Seconds())
		for _, r := range reports {
			fmt.Fprintf(&b, " %6.1f", r.machine.costs[test].Seconds())
		}
	}
	return b.String()
}
