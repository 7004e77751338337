package proc

import (
	"fmt"
	"net"
	"testing"

	"nodeskoop/collect"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// BenchmarkTCPWalk compares one walk for all namespaces with a request for each, in
// alternating cycles, while TCP segments pass through each namespace ("busy") or none.
func BenchmarkTCPWalk(b *testing.B) {
	need.Root(b)
	for _, n := range []int{1, 4, 10, 110, 500} {
		pods := &nsnet.Pods{}
		nsnet.MoreFiles()
		var used []net.Conn
		for i := range n {
			s := nsnet.Make(b)
			s.Connections(9)
			l := s.Listen("tcp", "127.0.0.1:0")
			c := s.Dial("tcp", l.Addr().String())
			d, err := l.Accept()
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = d.Close() })
			go func() {
				var buf [64]byte
				for {
					if _, err := d.Read(buf[:]); err != nil {
						return
					}
				}
			}()
			used = append(used, c)
			pods.List = append(pods.List, s.Pod(fmt.Sprintf("pod-%d", i)))
		}
		sampler := func(enabled []string, change func(*tcpsummary)) *nsnet.Sampler {
			return nsnet.NewSampler(b, collect.Options{Enabled: enabled, Pods: pods},
				append(Probes(), summaryFactory(change))...)
		}
		ways := []*nsnet.Sampler{
			sampler([]string{"sock", "tcp"}, func(*tcpsummary) {}), // the files that tcpsummary reads
			sampler([]string{"sock", "tcp", "tcpsummary"}, func(p *tcpsummary) { _ = p.walk.drop() }),
			sampler([]string{"sock", "tcp", "tcpsummary"}, func(p *tcpsummary) { p.walk.always = true }),
			sampler([]string{"sock", "tcp", "tcpsummary"}, func(p *tcpsummary) {}),
		}
		for _, busy := range []bool{true, false} {
			b.Run(fmt.Sprintf("%dpods,busy=%v", n, busy), func(b *testing.B) {
				for _, w := range ways {
					w.Cycle()
					w.Cycle()
				}
				sum := make([]float64, len(ways))
				b.ResetTimer()
				for range b.N {
					for i, w := range ways {
						if busy {
							for _, c := range used {
								_, _ = c.Write([]byte{1})
							}
						}
						start := testkit.OwnCPU()
						w.Cycle()
						sum[i] += float64(testkit.OwnCPU() - start)
					}
				}
				for i, name := range []string{"files", "each", "walk", "chosen"} {
					b.ReportMetric(sum[i]/float64(b.N)/1000, name+"-us")
				}
			})
		}
	}
}
