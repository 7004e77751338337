package proc

import (
	"fmt"
	"testing"

	"nodeskoop/bpf"
)

// BenchmarkLedger is a cycle over pods of six processes each, one of which has reaped a child
// since the last cycle.
func BenchmarkLedger(b *testing.B) {
	for _, pods := range []int{110, 500} {
		b.Run(fmt.Sprintf("%dpods", pods), func(b *testing.B) {
			l, host := &ledger{procs: map[int]*process{}}, &ioTotals{}
			totals := make([]*ioTotals, pods)
			for i := range totals {
				totals[i] = &ioTotals{}
			}
			faults := uint64(1)
			look := func(pid int, _ uint64) (reading, sight, error) {
				return reading{pid: pid, start: 1}, there, nil
			}
			sample := func(s *ioTotals, first, n int) {
				s.samples++
				for pid := first; pid < first+n; pid++ {
					r := reading{pid: pid, start: 1, parent: first, faults: faults}
					if pid == first {
						r.reaped, r.parent = faults, 1
					}
					l.observe(s, &r, s == host, bpf.Activity{})
				}
				if err := l.reconcile(s, s == host, nil, look); err != nil {
					b.Fatal(err)
				}
				l.end(s, s == host)
			}
			b.ReportAllocs()
			for b.Loop() {
				faults++
				for i, s := range totals {
					sample(s, 10+10*i, 6)
				}
				sample(host, 1, 1)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*pods), "ns/pod")
		})
	}
}
