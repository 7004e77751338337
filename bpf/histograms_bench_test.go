package bpf

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/need"
)

// histogramProbes are the probes that keep histograms, with the number per
// namespace; biolatency keeps them per disk.
var histogramProbes = map[string]int{"biolatency": 0, "kernellatency": 2, "net_softirq": 4, "netiftxlatency": 2, "socketlatency": 2}

// BenchmarkHistogramCost reports the cost per run of each program without
// histograms, with the node's, and with those of pods. All three variants are
// attached and see the same packets. Each result is the median, over windows, of
// the difference within a window.
func BenchmarkHistogramCost(b *testing.B) {
	need.Root(b)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Skipf("needs the kernel's BPF statistics: %v", err)
	}
	defer stats.Close()
	x, y := newPair(b)
	traffic := everything(b, x, y)
	disk, err := os.OpenFile(loopdev.New(b), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer disk.Close()
	block := aligned(4096)
	reads := func(length time.Duration) error {
		for start := time.Now(); time.Since(start) < length; {
			if _, err := disk.ReadAt(block, 0); err != nil {
				return err
			}
		}
		return nil
	}

	names := make([]string, 0, len(histogramProbes))
	for name := range histogramProbes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		step := traffic
		if name == "biolatency" {
			step = reads
		}
		b.Run(name, func(b *testing.B) {
			kinds := []HistogramsBy{HistogramsOff, HistogramsNode, HistogramsPods}
			diffs := map[string]map[HistogramsBy][]float64{}
			base := map[string][]float64{}
			// Programs at a tracepoint run in the order of their attachment, and each
			// finds in the cache what those before it used: take all orders in turn.
			for _, order := range permutations(kinds) {
				l := newTestLoader(b, Options{NoEvents: true, NoChains: true})
				probes := map[HistogramsBy]*Probe{}
				for _, by := range order {
					p, err := l.Load(name, Config{Histograms: by})
					if err != nil {
						b.Skip(err)
					}
					probes[by] = p
				}
				read := func() map[HistogramsBy]map[string]*ebpf.ProgramStats {
					out := map[HistogramsBy]map[string]*ebpf.ProgramStats{}
					for by, p := range probes {
						out[by] = map[string]*ebpf.ProgramStats{}
						for program, loaded := range p.programs {
							s, err := loaded.Stats()
							if err != nil {
								b.Fatal(err)
							}
							out[by][program] = s
						}
					}
					return out
				}
				before := read()
				for range 10 {
					w := &worker{work: func() error { return step(100 * time.Millisecond) }}
					together(b, w)
					now := read()
					for program := range before[HistogramsOff] {
						per := map[HistogramsBy]float64{}
						for by := range probes {
							a, z := before[by][program], now[by][program]
							if a == nil || z == nil || z.RunCount-a.RunCount < 20 {
								continue
							}
							per[by] = float64(z.Runtime-a.Runtime) / float64(z.RunCount-a.RunCount)
						}
						if len(per) < len(kinds) {
							continue
						}
						base[program] = append(base[program], per[HistogramsOff])
						if diffs[program] == nil {
							diffs[program] = map[HistogramsBy][]float64{}
						}
						for _, by := range kinds[1:] {
							diffs[program][by] = append(diffs[program][by], per[by]-per[HistogramsOff])
						}
					}
					before = now
				}
				for _, p := range probes {
					if err := p.Close(); err != nil {
						b.Fatal(err)
					}
				}
			}
			for program, by := range diffs {
				b.Run(program, func(b *testing.B) {
					for b.Loop() {
						continue // the total has been measured already
					}
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(median(base[program]), "off-ns")
					b.ReportMetric(median(by[HistogramsNode]), "node-ns")
					b.ReportMetric(median(by[HistogramsPods]), "pods-ns")
				})
			}
		})
	}
}

// permutations returns all orders of some values.
func permutations[T any](of []T) (all [][]T) {
	if len(of) < 2 {
		return [][]T{of}
	}
	for i := range of {
		rest := slices.Delete(slices.Clone(of), i, i+1)
		for _, p := range permutations(rest) {
			all = append(all, append([]T{of[i]}, p...))
		}
	}
	return all
}
