package history

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit/need"
)

// machine simulates a node: the Catalogue's metrics for the host and three kinds of pods.
// The same metrics move as in the pods of BenchmarkHistory, and more, since those have
// traffic on loopback only: there, 99 pods with health checks and 11 under load moved 990
// counters and 170 gauges in a minute. Values of pods under load are independent of each
// other, which is a worst case.
type machine struct {
	rnd      *rand.Rand
	fams     []*dto.MetricFamily
	all      []moving
	spread   []spread
	requests float64 // per cycle, of the whole node
	n        int     // cycles so far
}

// moving is a series whose value changes at times.
type moving struct {
	value *float64
	pod   int // 0: the host
	rate  float64
	often float64 // probability of a change in a cycle
	gauge bool
	rare  bool
	node  bool // the same value in all namespaces
}

// traffic are the counters that move with traffic, and their increase per request.
var traffic = []struct {
	match string
	rate  float64
}{
	{"kubeskoop_netdev_rxpackets", 7}, {"kubeskoop_netdev_txpackets", 6}, {"kubeskoop_netdev_rxbytes", 900}, {"kubeskoop_netdev_txbytes", 2100},
	{"kubeskoop_tcp_insegs", 7}, {"kubeskoop_tcp_outsegs", 6}, {"kubeskoop_tcp_passiveopens", 1}, {"kubeskoop_tcp_activeopens", 0.3},
	{"kubeskoop_io_ioreadsyscall", 9}, {"kubeskoop_io_iowritesyscall", 4}, {"kubeskoop_qdisc_packets", 6}, {"kubeskoop_qdisc_bytes", 2100},
	{"kubeskoop_tcp_currestab", -2}, {"kubeskoop_tcpsummary_tcpestablishedconn", -2}, {"kubeskoop_tcpsummary_tcptimewaitconn", -6},
	{"kubeskoop_sock_inuse", -2}, {"kubeskoop_sock_tw", -6}, {"kubeskoop_fd_opensocket", -2}, {"kubeskoop_fdopenfd", -2},
}

// rare are counters that move at times under heavy traffic.
var rare = []string{
	"kubeskoop_tcp_retranssegs", "kubeskoop_tcp_estabresets", "kubeskoop_tcp_outrsts", "kubeskoop_tcp_attemptfails", "kubeskoop_udp_indatagrams", "kubeskoop_udp_outdatagrams",
	"kubeskoop_tcpext_tcptimeouts", "kubeskoop_tcpext_tcplossprobes", "kubeskoop_tcpext_tcpsackreorder", "kubeskoop_tcpext_delayedacks", "kubeskoop_tcpext_tcpabort",
	"kubeskoop_socketlatency_", "kubeskoop_packetloss_total", "kubeskoop_io_iowritebytes", "kubeskoop_tcpsummary_tcprxqueue",
}

func newMachine(pods int) *machine {
	x := &machine{rnd: rand.New(rand.NewPCG(7, 7))}
	sets := [][]*dto.LabelPair{pairs("k8s_node", "ip-10-0-12-34.eu-central-1.compute.internal", "k8s_namespace", "hostNetwork", "k8s_pod", "hostNetwork")}
	busy := []float64{20} // requests per cycle
	for i := range pods {
		sets = append(sets, pairs("k8s_node", "ip-10-0-12-34.eu-central-1.compute.internal", "k8s_namespace", fmt.Sprintf("team-%c", 'a'+i%9), "k8s_pod", fmt.Sprintf("service-%d-%09x-%05x", i/3, x.rnd.Uint64()>>28, x.rnd.IntN(1<<20))))
		// Most pods have only health checks, 10 % are used, and 10 % are busy.
		busy = append(busy, []float64{0.3, 0.3, 0.3, 0.3, 0.3, 5, 0.3, 0.3, 0.3, 400}[i%10])
	}
	for _, b := range busy {
		x.requests += b
	}
	for _, m := range catalog.Metrics() {
		if m.Scope == catalog.PerFlow {
			continue
		}
		f := &dto.MetricFamily{Name: &m.Name, Type: dto.MetricType_GAUGE.Enum()}
		switch m.Type {
		case catalog.Counter:
			f.Type = dto.MetricType_COUNTER.Enum()
		case catalog.Histogram:
			f.Type = dto.MetricType_HISTOGRAM.Enum()
			x.addHistograms(f, m, sets[0])
			x.fams = append(x.fams, f)
			continue
		}
		over := sets
		if m.Scope == catalog.PerHost || strings.HasPrefix(m.Name, "kubeskoop_softnet") {
			over = sets[:1]
		}
		for p, set := range over {
			labels := set
			if len(m.Labels) > 0 {
				labels = slices.Clone(set)
				for _, l := range m.Labels {
					labels = append(labels, pairs(l, "SOMETHING")...)
				}
			}
			v := new(float64)
			s := &dto.Metric{Label: labels, Counter: &dto.Counter{Value: v}}
			if m.Type == catalog.Gauge {
				s = &dto.Metric{Label: labels, Gauge: &dto.Gauge{Value: v}}
			}
			f.Metric = append(f.Metric, s)
			for _, k := range traffic {
				if k.match == m.Name {
					x.all = append(x.all, moving{value: v, pod: p, rate: k.rate * busy[p], often: min(1, busy[p]), gauge: k.rate < 0})
				}
			}
			for _, k := range rare {
				if strings.HasPrefix(m.Name, k) {
					x.all = append(x.all, moving{value: v, pod: p, rate: 1 + busy[p]/50, often: min(0.5, busy[p]/50), gauge: m.Type == catalog.Gauge, rare: true})
				}
			}
			switch m.Name {
			case "kubeskoop_sock_alloc", "kubeskoop_sock_mem", "kubeskoop_sock_orphan":
				x.all = append(x.all, moving{value: v, pod: p, rate: -40, gauge: true, node: true})
			case "nodeskoop_events_seen_total", "nodeskoop_packetloss_ignored_total", "kubeskoop_softnet_processed", "kubeskoop_conntrack_entries", "nodeskoop_bpf_runs_total":
				x.all = append(x.all, moving{value: v, rate: 300, often: 1})
			}
		}
		x.fams = append(x.fams, f)
	}
	return x
}

// kinds are the series of the node's histograms, with their medians and the number of
// values per request on the node. Both numbers are close to those of a busy machine
// with two disks and all probes: there, 65 buckets of 15 series changed in 20 s.
var kinds = map[string]struct {
	median map[string]float64
	rate   float64
}{
	"nodeskoop_biolatency_seconds":     {map[string]float64{"vda read": 300e-6, "vda write": 3e-3, "vda flush": 2e-3, "nvme0n1 read": 100e-6, "nvme0n1 write": 200e-6}, 0.2},
	"nodeskoop_kernellatency_seconds":  {map[string]float64{"rx": 5e-6, "tx": 4e-6}, 7},
	"nodeskoop_netiftxlatency_seconds": {map[string]float64{"qdisc": 5e-6, "driver": 2e-6}, 6},
	"nodeskoop_socketlatency_seconds":  {map[string]float64{"read": 500e-6, "write": 4e-6}, 4},
	"nodeskoop_softirq_seconds":        {map[string]float64{"NET_TX delay": 2e-6, "NET_TX run": 2e-6, "NET_RX delay": 2e-6, "NET_RX run": 15e-6}, 5},
}

// spread is a growing histogram whose latencies have a lognormal distribution
// around a median.
type spread struct {
	of           *dto.Histogram
	median, rate float64
}

func (x *machine) addHistograms(f *dto.MetricFamily, m *catalog.Metric, host []*dto.LabelPair) {
	k := kinds[m.Name]
	for _, values := range slices.Sorted(maps.Keys(k.median)) {
		labels := slices.Clone(host)
		for j, v := range strings.Fields(values) {
			labels = append(labels, pairs(m.Labels[j], v)...)
		}
		h := &dto.Histogram{SampleCount: new(uint64), SampleSum: new(float64)}
		for b := range m.Bounds {
			h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &m.Bounds[b], CumulativeCount: new(uint64)})
		}
		f.Metric = append(f.Metric, &dto.Metric{Label: labels, Histogram: h})
		x.spread = append(x.spread, spread{h, k.median[values], k.rate})
	}
}

// grow adds the latencies of a number of requests to the histograms.
func (x *machine) grow(requests float64) {
	for _, s := range x.spread {
		// Draw a tenth of the latencies, and count each ten times.
		for range int(requests * s.rate / 10) {
			v := s.median * math.Exp(1.2*x.rnd.NormFloat64())
			*s.of.SampleCount += 10
			*s.of.SampleSum += 10 * v
			for _, b := range s.of.Bucket {
				if v < *b.UpperBound {
					*b.CumulativeCount += 10
				}
			}
		}
	}
}

func (x *machine) series() (n int) {
	for _, f := range x.fams {
		n += len(f.Metric)
		for _, m := range f.Metric {
			if m.Histogram != nil {
				n += len(m.Histogram.Bucket) + 2
			}
		}
	}
	return n
}

// cycle simulates one cycle.
func (x *machine) cycle() {
	x.n++
	x.grow(x.requests)
	shared := math.Round(300 + 40*x.rnd.NormFloat64())
	requests := map[int]float64{}
	for _, m := range x.all {
		switch r, ok := requests[m.pod]; {
		case m.node:
			*m.value = shared
		case m.gauge:
			if x.rnd.Float64() < m.often {
				*m.value = math.Abs(math.Round(m.rate * (1 + 0.3*x.rnd.NormFloat64())))
			}
		case m.rare:
			if x.rnd.Float64() < m.often {
				*m.value += math.Ceil(m.rate * x.rnd.ExpFloat64())
			}
		case m.often < 1:
			// A health check every 10 s. Each has the same cost, except for a delayed ACK.
			*m.value += math.Round(float64(1+x.n%2) * (m.rate/m.often + 0.52*x.rnd.Float64()))
		default:
			if !ok {
				r = math.Exp(0.5 * x.rnd.NormFloat64())
				requests[m.pod] = r
			}
			*m.value += math.Abs(math.Round(m.rate * r * (1 + 0.02*x.rnd.NormFloat64())))
		}
	}
}

// mostADay is the maximum size of a day in TestSizes, in bytes.
const mostADay = 3_050_000

// TestSizes measures the size of a day of the simulated node. It is about three times
// the size measured by BenchmarkHistory on real pods. docs/fleet.md has both numbers.
func TestSizes(t *testing.T) {
	need.Short(t)
	var before int64
	for _, c := range []struct {
		pods       int
		histograms bool
	}{{1, true}, {30, true}, {110, false}, {110, true}} {
		pods := c.pods
		dir, at := filepath.Join(t.TempDir(), Folder), newClock()
		h := open(t, dir, at)
		x := newMachine(pods)
		if !c.histograms {
			x.spread = nil
		}
		const hours = 2
		for range hours * 240 {
			x.cycle()
			h.Observe(x.fams)
			settle(t, h)
			at.pass(15 * time.Second)
		}
		h.Close(time.Minute)
		counters, gauges, minutes := 0, 0, 0
		r := &Reader{Dir: dir}
		for m, err := range r.Minutes(Query{}) {
			if err != nil {
				t.Fatal(err)
			}
			minutes++
			for _, s := range m.Samples {
				if s.Kind == Counter {
					counters++
				} else {
					gauges++
				}
			}
		}
		day := h.Stats().Bytes * 24 / hours
		t.Logf("%d pods, histograms %v: of %d series %d counters and %d gauges moved in a minute; %.2f MB a day", pods, c.histograms, x.series(), counters/minutes, gauges/minutes, float64(day)/1e6)
		if !c.histograms {
			before = day
			if day > mostADay {
				t.Errorf("%d pods: %d bytes a day", pods, day)
			}
		} else if most := max(before, mostADay-300_000) + 300_000; day > most {
			t.Errorf("%d pods: %d bytes a day with histograms, want %d at most", pods, day, most)
		}
	}
}

// BenchmarkObserve is the cost of a cycle of a full node.
func BenchmarkObserve(b *testing.B) {
	x, at := newMachine(110), newClock()
	before := heap()
	h := open(b, filepath.Join(b.TempDir(), Folder), at)
	h.Observe(x.fams)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		x.cycle()
		at.pass(15 * time.Second)
		b.StartTimer()
		h.Observe(x.fams)
	}
	settle(b, h)
	b.ReportMetric(float64(x.series()), "series")
	b.ReportMetric(float64(heap()-before)/1e6, "heap-MB")
	h.Observe(x.fams)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkFrame is the cost of a minute of a full node, in addition to the cycles.
func BenchmarkFrame(b *testing.B) {
	x, at := newMachine(110), newClock()
	tr := newTracker(time.Minute)
	var hour []*minute
	for len(hour) < 60 {
		x.cycle()
		if over := tr.observe(at.now(), x.fams); over != nil {
			hour = append(hour, over)
		}
		at.pass(15 * time.Second)
	}
	var e encoder
	var n *names
	b.ReportAllocs()
	size, frames := 0, 0
	for b.Loop() {
		if frames%len(hour) == 0 {
			n = newNames()
		}
		f, err := e.frame(n, hour[frames%len(hour)])
		if err != nil {
			b.Fatal(err)
		}
		size += len(f)
		frames++
	}
	b.ReportMetric(float64(size)/float64(frames), "bytes")
}
