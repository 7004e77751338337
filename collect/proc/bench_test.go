package proc

import (
	"fmt"
	"runtime"
	"testing"

	"nodeskoop/collect"
	"nodeskoop/collect/netlink"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// all are the probes that need no eBPF.
func all() []collect.Factory { return append(Probes(), netlink.Probes()...) }

func names(list []collect.Factory) (out []string) {
	for _, f := range list {
		out = append(out, f.Name)
	}
	return out
}

// measure runs f b.N times. Beside the elapsed time it reports the CPU time of one run,
// also divided by n.
func measure(b *testing.B, n int, per string, f func()) {
	f() // the first run builds state that later ones reuse
	f()
	runtime.GC()
	b.ReportAllocs()
	b.ResetTimer()
	start := testkit.OwnCPU()
	for range b.N {
		f()
	}
	used := float64(testkit.OwnCPU()-start) / float64(b.N)
	b.StopTimer()
	b.ReportMetric(used, "cpu-ns/op")
	if n > 0 {
		b.ReportMetric(used/float64(n), "cpu-ns/"+per)
	}
}

// spaces makes n network namespaces, each with a process and 20 sockets: nine connections
// over lo, a listening socket and a UDP socket.
func spaces(b *testing.B, n int) *nsnet.Pods {
	b.Helper()
	nsnet.MoreFiles()
	pods := &nsnet.Pods{}
	for i := range n {
		s := nsnet.Make(b)
		s.Connections(9)
		s.Packets("udp", "127.0.0.1:0")
		pods.List = append(pods.List, s.Pod(fmt.Sprintf("pod-%d", i)))
	}
	return pods
}

// BenchmarkCycle is one cycle of all these probes over the host and some pods, each with
// its own namespace, a process and 20 sockets.
func BenchmarkCycle(b *testing.B) {
	need.Root(b)
	for _, n := range []int{1, 10, 110, 500} {
		b.Run(fmt.Sprintf("%dpods", n), func(b *testing.B) {
			pods := spaces(b, n)
			s := nsnet.NewSampler(b, collect.Options{Enabled: names(all()), Pods: pods}, all()...)
			measure(b, n, "pod", s.Cycle)
		})
	}
}

// BenchmarkProbe is one cycle of each probe alone over 110 pods; "none" is a cycle without
// any probe.
func BenchmarkProbe(b *testing.B) {
	need.Root(b)
	const n = 110
	pods := spaces(b, n)
	for _, name := range append([]string{"none"}, names(all())...) {
		b.Run(name, func(b *testing.B) {
			var enabled []string
			if name != "none" {
				enabled = []string{name}
			}
			s := nsnet.NewSampler(b, collect.Options{Enabled: enabled, Pods: pods}, all()...)
			measure(b, n, "pod", s.Cycle)
		})
	}
}

// BenchmarkTCP50000 reads one namespace with 50,000 TCP sockets in both ways, alternately,
// so that changes of the machine's speed affect both.
func BenchmarkTCP50000(b *testing.B) {
	need.Root(b)
	need.Short(b)
	const sockets = 50000
	s := nsnet.New(b)
	s.Sockets(sockets)
	pods := &nsnet.Pods{List: []*owner.Pod{s.Pod("a")}}
	var got netlink.TCPTable
	sampler := func(read func(*collect.View, *netlink.TCPTable) error) *nsnet.Sampler {
		return nsnet.NewSampler(b, collect.Options{Enabled: []string{"tcpsummary"}, Pods: pods},
			collect.Factory{Name: "tcpsummary", New: func(collect.Env) (collect.Probe, error) {
				return sampleFunc(func(v *collect.View) error {
					if v.Pod() == nil {
						return nil
					}
					return read(v, &got)
				}), nil
			}})
	}
	diag := sampler(func(v *collect.View, t *netlink.TCPTable) error {
		return netlink.ReadTCP(v, t, nil)
	})
	text := sampler(readTCPText)
	for _, x := range []*nsnet.Sampler{diag, text} {
		if _, errs := x.Try(); got.States[netlink.TCPEstablished] != sockets || len(errs) > 0 {
			b.Fatalf("%d sockets, want %d (%v)", got.States[netlink.TCPEstablished], sockets, errs)
		}
	}
	var used [2]float64
	b.ReportAllocs()
	for b.Loop() {
		for i, x := range []*nsnet.Sampler{diag, text} {
			start := testkit.OwnCPU()
			x.Cycle()
			used[i] += float64(testkit.OwnCPU() - start)
		}
	}
	b.ReportMetric(used[0]/float64(b.N), "cpu-ns/sockdiag")
	b.ReportMetric(used[1]/float64(b.N), "cpu-ns/text")
	b.ReportMetric(used[1]/used[0], "times-faster")
}
