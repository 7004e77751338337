package bpf

import (
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/loopdev"
)

// BenchmarkBiolatency reads a loop device and reports the nanoseconds per run of
// each program, by the kernel's statistics, for I/O that is never slow.
func BenchmarkBiolatency(b *testing.B) {
	for _, rung := range rungsOf("biolatency") {
		b.Run("hooks="+string(rung), func(b *testing.B) {
			stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
			if err != nil {
				b.Skipf("needs the kernel's BPF statistics: %v", err)
			}
			defer stats.Close()
			f, err := os.OpenFile(loopdev.New(b), os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			l := newTestLoader(b, Options{Hooks: rung})
			l.load("biolatency", Config{Slow: time.Hour, Slow100: time.Hour})
			buffer := aligned(4096)
			for b.Loop() {
				if _, err := f.ReadAt(buffer, 0); err != nil {
					b.Fatal(err)
				}
			}
			cost, err := l.Stats()
			if err != nil {
				b.Fatal(err)
			}
			for _, p := range cost.Programs {
				if p.Runs > 0 {
					b.ReportMetric(float64(p.RunTime.Nanoseconds())/float64(p.Runs), p.Program+"-ns")
				}
			}
		})
	}
}
