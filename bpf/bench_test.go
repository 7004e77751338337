package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// Costs are measured in pairs of short turns, one with probes and one without.
// Quickly alternating turns meet the same load from other processes; the median
// over the pairs ignores outliers.
const (
	costPairs = 16
	costTurn  = 150 * time.Millisecond
)

// BenchmarkCost measures the cost of probes for a node's traffic, as
// Cost/WORKLOAD/PROBES. Each result compares turns with probes to turns without:
//
//	%rate, %rate-iqr   change of transactions, packets or bytes per second
//	%cpu, %cpu-iqr     change of the CPU time of each
//	cpu-ns             the same in nanoseconds
//	base/s, base-ns    rate and CPU time without probes
//	%received, %lost   UDP only: change of the datagrams received per second,
//	                   and the share lost to a full socket buffer
//
// Changes are medians over the pairs, with the distance of their quartiles. The
// probes "none" change nothing: their result shows the noise. The probes "empty"
// are programs that only return, at all the hooks of the probes: their result is
// the cost of the hooks themselves.
//
// On a busy machine the rate is unreliable, but the CPU time is still useful: it is
// that of the threads that generate the traffic (and of ksoftirqd). If the kernel
// accounts interrupt time separately (CONFIG_IRQ_TIME_ACCOUNTING), it excludes the
// receiving half of the network stack.
//
// Cost/programs/PROBE.PROGRAM reports nanoseconds per run by the kernel's
// statistics, those of an empty program at the same hook (the cost of the
// statistics), and the difference.
func BenchmarkCost(b *testing.B) {
	need.Root(b)
	// Threads that generate traffic keep their P of the Go scheduler until their
	// turn ends, so there must be more Ps than such threads.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 4))
	counting := newSwitches(b, Options{NoEvents: true})
	events := newSwitches(b, Options{})

	type probes struct {
		name    string
		on      []toggle
		lacking error
	}
	cases := []probes{{name: "none"}, {name: "empty", on: counting.empty(b)}}
	for _, name := range Probes() {
		c := probes{name: name, lacking: counting.refused[name]}
		if c.lacking == nil {
			c.on = []toggle{counting.byName[name]}
		}
		cases = append(cases, c)
	}
	cases = append(cases, probes{name: "all", on: toggles(counting.all())}, probes{name: "all_events", on: toggles(events.all())})

	for _, w := range []struct {
		name  string
		start func(b *testing.B, x, y *namespace) traffic
	}{{"tcp_rr", tcpRequests}, {"udp", udpFlood}, {"udp_batch", udpBatch}, {"tcp_stream", tcpStream}} {
		b.Run(w.name, func(b *testing.B) {
			x, y := newPair(b)
			run := w.start(b, x, y)
			for _, c := range cases {
				b.Run(c.name, func(b *testing.B) {
					if c.lacking != nil {
						b.Skip(c.lacking)
					}
					for b.Loop() {
						measurePairs(b, c.on, run)
					}
				})
			}
		})
	}
	b.Run("programs", func(b *testing.B) {
		benchmarkEachProgram(b, newSwitches(b, Options{NoEvents: true, NoChains: true}))
	})
}

// probeSwitches are loaded probes that are attached only when switched on, since
// loading a program takes much longer than attaching it.
type probeSwitches struct {
	byName  map[string]*probeSwitch
	refused map[string]error
}

func newSwitches(b testing.TB, options Options) *probeSwitches {
	b.Helper()
	l := newTestLoader(b, options)
	s := &probeSwitches{byName: map[string]*probeSwitch{}, refused: map[string]error{}}
	for _, name := range Probes() {
		p, err := l.Load(name, Config{})
		var unsupported *UnsupportedError
		if errors.As(err, &unsupported) {
			s.refused[name] = err
			continue
		}
		if err != nil {
			b.Fatal(err)
		}
		spec, err := p.definition.spec()
		if err != nil {
			b.Fatal(err)
		}
		one := &probeSwitch{Probe: p, spec: spec}
		one.off(b)
		s.byName[name] = one
	}
	l.ReleaseBTF()
	return s
}

func (s *probeSwitches) all() (all []*probeSwitch) {
	for _, name := range Probes() {
		if one := s.byName[name]; one != nil {
			all = append(all, one)
		}
	}
	return all
}

// toggle is a set of programs that a turn has on or off.
type toggle interface {
	on(t testing.TB)
	off(t testing.TB)
	// runs returns how often the toggle's programs ran while statistics were on.
	runs() uint64
}

func toggles(probes []*probeSwitch) (all []toggle) {
	for _, p := range probes {
		all = append(all, p)
	}
	return all
}

// empty returns an empty program for each program that is attached with the probes, thus one
// for each chain.
func (s *probeSwitches) empty(b testing.TB) (all []toggle) {
	b.Helper()
	seen := map[*chain]bool{}
	for _, p := range s.all() {
		for name := range p.programs {
			one := p.loader.chains.of(p.Probe, p.spec.Programs[name])
			if one != nil && seen[one] {
				continue
			}
			seen[one] = true
			if e := newEmpty(b, p.spec.Programs[name].SectionName, p.spec.Programs[name].AttachTo); e != nil {
				all = append(all, e)
			}
		}
	}
	return all
}

type probeSwitch struct {
	*Probe
	spec *ebpf.CollectionSpec
}

func (s *probeSwitch) on(b testing.TB) {
	b.Helper()
	for _, h := range s.hooks {
		for _, name := range h.Programs {
			l, err := s.attachProgram(s.spec.Programs[name], s.programs[name])
			if err != nil {
				b.Fatalf("attach %s of probe %s again: %v", name, s.name, err)
			}
			s.links = append(s.links, l)
		}
	}
}

func (s *probeSwitch) off(b testing.TB) {
	b.Helper()
	for _, l := range slices.Backward(s.links) {
		if err := l.Close(); err != nil {
			b.Fatalf("detach probe %s: %v", s.name, err)
		}
	}
	s.links = nil
}

func (s *probeSwitch) runs() (n uint64) {
	for _, p := range s.programs {
		n += runsOf(p)
	}
	return n
}

func runsOf(p *ebpf.Program) uint64 {
	stats, err := p.Stats()
	if err != nil {
		return 0
	}
	return stats.RunCount
}

// traffic runs one turn of a workload.
type traffic func(b *testing.B, length time.Duration) turn

// turn is the result of one turn: work done, elapsed time and CPU time.
type turn struct {
	done     float64 // transactions, packets sent, bytes received
	received float64 // packets, UDP only
	lost     float64 // packets, UDP only
	clock    time.Duration
	cpu      time.Duration
}

func (t turn) rate() float64  { return t.done / t.clock.Seconds() }
func (t turn) cpuNs() float64 { return float64(t.cpu) / t.done }

// measurePairs alternates in the order off on, on off, off on, ..., so that a
// steady trend affects both sides alike.
func measurePairs(b *testing.B, probes []toggle, run traffic) {
	b.Helper()
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	isOn := false
	set := func(on bool) {
		for _, p := range probes {
			switch {
			case on && !isOn:
				p.on(b)
			case !on && isOn:
				p.off(b)
			}
		}
		isOn = on
	}
	defer set(false)
	counted := func() (n uint64) {
		for _, p := range probes {
			n += p.runs()
		}
		return n
	}
	before := counted()
	run(b, costTurn/3) // warm up caches, windows, buffers

	var rate, cpu, cpuNs, received, baseRate, baseNs, lost []float64
	for i := range costPairs {
		var pair [2]turn // off, on
		for j := range pair {
			side := (i + j) % 2
			set(side == 1)
			pair[side] = run(b, costTurn)
			if pair[side].done == 0 {
				b.Fatal("no traffic came through in a turn")
			}
		}
		off, on := pair[0], pair[1]
		change := func(off, on float64) float64 { return (on/off - 1) * 100 }
		rate = append(rate, change(off.rate(), on.rate()))
		cpu = append(cpu, change(off.cpuNs(), on.cpuNs()))
		cpuNs = append(cpuNs, on.cpuNs()-off.cpuNs())
		baseRate = append(baseRate, off.rate())
		baseNs = append(baseNs, off.cpuNs())
		if off.received > 0 {
			received = append(received, change(off.received/off.clock.Seconds(), on.received/on.clock.Seconds()))
			lost = append(lost, off.lost/off.done*100, on.lost/on.done*100)
		}
	}
	if n := counted() - before; n > 0 {
		b.Logf("somebody had the kernel's BPF statistics on during %d runs: the measured costs of probes are too high", n)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rate), "%rate")
	b.ReportMetric(quartiles(rate), "%rate-iqr")
	b.ReportMetric(median(cpu), "%cpu")
	b.ReportMetric(quartiles(cpu), "%cpu-iqr")
	b.ReportMetric(median(cpuNs), "cpu-ns")
	b.ReportMetric(median(baseRate), "base/s")
	b.ReportMetric(median(baseNs), "base-ns")
	if len(received) > 0 {
		b.ReportMetric(median(received), "%received")
		b.ReportMetric(quartiles(received), "%received-iqr")
		b.ReportMetric(median(lost), "%lost")
	}
}

func median(v []float64) float64 { return testkit.Quantile(v, 0.5) }

func quartiles(v []float64) float64 { return testkit.Quantile(v, 0.75) - testkit.Quantile(v, 0.25) }

// worker is a thread that runs one end of the traffic. It uses raw system calls, so
// that Go's scheduler does not affect the measurement.
type worker struct {
	cpu     int // index among the CPUs that the process may use
	work    func() error
	clock   time.Duration // elapsed time of the work
	cpuTime time.Duration
	err     error
}

// together runs workers in parallel and returns their CPU time plus that of
// ksoftirqd.
func together(b *testing.B, workers ...*worker) time.Duration {
	b.Helper()
	before := testkit.SoftirqCPU()
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(w.run)
	}
	wg.Wait()
	total := testkit.SoftirqCPU() - before
	for _, w := range workers {
		if w.err != nil {
			b.Fatal(w.err)
		}
		total += w.cpuTime
	}
	return total
}

func (w *worker) run() {
	// The thread ends with the goroutine, since no other goroutine may use it.
	runtime.LockOSThread()
	if w.err = pinThread(w.cpu); w.err != nil {
		return
	}
	// Real-time scheduling keeps other processes from delaying a turn. If it is not
	// permitted, the spread shows that.
	_ = unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
	var from, to unix.Timespec
	start := time.Now()
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &from)
	w.err = w.work()
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &to)
	w.clock = time.Since(start)
	w.cpuTime = time.Duration(to.Nano() - from.Nano())
}

// pinThread pins the thread to the nth of the CPUs that it may run on.
func pinThread(n int) error {
	cpus, err := allowedCPUs()
	if err != nil {
		return err
	}
	return pinTo(cpus[n%len(cpus)])
}

// allowedCPUs returns the CPUs that the thread may run on.
func allowedCPUs() (cpus []int, err error) {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return nil, fmt.Errorf("ask for the CPUs of the thread: %w", err)
	}
	for cpu := range len(may) * 64 {
		if may.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus, nil
}

func pinTo(cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("keep the thread on CPU %d: %w", cpu, err)
	}
	return nil
}

// plainSocket returns a connection's socket for threads that block in it, with a
// short timeout.
func plainSocket(b *testing.B, c syscall.Conn) int {
	b.Helper()
	fd := -1
	rawConn(b, c, func(from int) (err error) {
		if fd, err = unix.FcntlInt(uintptr(from), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(10 * time.Millisecond))
		return errors.Join(unix.SetNonblock(fd, false),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	})
	b.Cleanup(func() { unix.Close(fd) })
	return fd
}

// transfer reads or writes once. It returns 0 without an error if the socket's
// timeout expires.
func transfer(call uintptr, fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
	switch errno {
	case 0:
		if n == 0 {
			return 0, errors.New("the other end of the traffic closed its socket")
		}
		return int(n), nil
	case unix.EAGAIN, unix.EINTR, unix.ENOBUFS:
		return 0, nil
	}
	return 0, fmt.Errorf("traffic on a socket: %w", errno)
}

// message transfers all of p, unless stop returns true.
func message(call uintptr, fd int, p []byte, stop func() bool) (bool, error) {
	for done := 0; done < len(p); {
		n, err := transfer(call, fd, p[done:])
		if err != nil {
			return false, err
		}
		if done += n; n == 0 && stop() {
			return false, nil
		}
	}
	return true, nil
}

// tcpRequests: 64 bytes back and forth on one connection. Both ends share a CPU,
// since waking another CPU takes longer, and less evenly, than the rest of a
// transaction.
func tcpRequests(b *testing.B, x, y *namespace) traffic {
	client, server := connect(b, x, y, y.v4)
	near, far := plainSocket(b, client), plainSocket(b, server)
	request, answer := make([]byte, 64), make([]byte, 64)
	return func(b *testing.B, length time.Duration) turn {
		var over atomic.Bool
		transactions := 0
		asks := &worker{cpu: 1, work: func() error {
			defer over.Store(true)
			for start := time.Now(); time.Since(start) < length; transactions++ {
				late := func() bool { return time.Since(start) > length+5*time.Second }
				for _, call := range []uintptr{unix.SYS_WRITE, unix.SYS_READ} {
					if ok, err := message(call, near, request, late); err != nil || !ok {
						return errors.Join(err, fmt.Errorf("transaction %d was not answered", transactions+1))
					}
				}
			}
			return nil
		}}
		answers := &worker{cpu: 1, work: func() error {
			for {
				for _, call := range []uintptr{unix.SYS_READ, unix.SYS_WRITE} {
					if ok, err := message(call, far, answer, over.Load); err != nil || !ok {
						return err
					}
				}
			}
		}}
		cpu := together(b, asks, answers)
		return turn{done: float64(transactions), clock: asks.clock, cpu: cpu}
	}
}

// udpFlood: datagrams of 64 bytes, as fast as one thread can send.
func udpFlood(b *testing.B, x, y *namespace) traffic {
	client, server := udpPair(b, x, y, y.v4)
	if err := server.SetReadBuffer(4 << 20); err != nil {
		b.Fatal(err)
	}
	near, far := plainSocket(b, client.(*net.UDPConn)), plainSocket(b, server)
	datagram, buffer := make([]byte, 64), make([]byte, 64)
	return func(b *testing.B, length time.Duration) turn {
		received, lost := y.counter(b, "Udp.InDatagrams"), y.counter(b, "Udp.RcvbufErrors")
		var over atomic.Bool
		sent := 0
		sends := &worker{cpu: 0, work: func() error {
			defer over.Store(true)
			for start := time.Now(); time.Since(start) < length; {
				for range 16 {
					n, err := transfer(unix.SYS_WRITE, near, datagram)
					if err != nil {
						return err
					}
					if n > 0 {
						sent++
					}
				}
			}
			return nil
		}}
		receives := &worker{cpu: 1, work: func() error {
			for {
				n, err := transfer(unix.SYS_READ, far, buffer)
				if err != nil || n == 0 && over.Load() {
					return err
				}
			}
		}}
		cpu := together(b, sends, receives)
		return turn{
			done: float64(sent), clock: sends.clock, cpu: cpu,
			received: float64(y.counter(b, "Udp.InDatagrams") - received),
			lost:     float64(y.counter(b, "Udp.RcvbufErrors") - lost),
		}
	}
}

// udpBatch: one thread sends 64 datagrams and receives them. Without wakeups and
// sharing between CPUs, the time is that of the network stack and the probes alone.
func udpBatch(b *testing.B, x, y *namespace) traffic {
	client, server := udpPair(b, x, y, y.v4)
	near, far := plainSocket(b, client.(*net.UDPConn)), plainSocket(b, server)
	datagram := make([]byte, 64)
	return func(b *testing.B, length time.Duration) turn {
		packets := 0
		both := &worker{cpu: 1, work: func() error {
			for start := time.Now(); time.Since(start) < length; {
				late := func() bool { return time.Since(start) > length+5*time.Second }
				for i := range 128 {
					call, fd := uintptr(unix.SYS_WRITE), near
					if i >= 64 {
						call, fd = unix.SYS_READ, far
					}
					if ok, err := message(call, fd, datagram, late); err != nil || !ok {
						return errors.Join(err, fmt.Errorf("one of the datagrams from %d on did not arrive", packets+1))
					}
				}
				packets += 64
			}
			return nil
		}}
		cpu := together(b, both)
		return turn{done: float64(packets), clock: both.clock, cpu: cpu}
	}
}

// tcpStream: one connection at full throughput.
func tcpStream(b *testing.B, x, y *namespace) traffic {
	client, server := connect(b, x, y, y.v4)
	near, far := plainSocket(b, client), plainSocket(b, server)
	out, in := make([]byte, 128<<10), make([]byte, 128<<10)
	return func(b *testing.B, length time.Duration) turn {
		var over atomic.Bool
		bytes := 0
		sends := &worker{cpu: 0, work: func() error {
			defer over.Store(true)
			for start := time.Now(); time.Since(start) < length; {
				if _, err := transfer(unix.SYS_WRITE, near, out); err != nil {
					return err
				}
			}
			return nil
		}}
		receives := &worker{cpu: 1, work: func() error {
			for {
				n, err := transfer(unix.SYS_READ, far, in)
				if err != nil || n == 0 && over.Load() {
					return err
				}
				bytes += n
			}
		}}
		cpu := together(b, sends, receives)
		return turn{done: float64(bytes), clock: sends.clock, cpu: cpu}
	}
}

// benchmarkEachProgram triggers every program, and reads the kernel's statistics of
// them in windows. The median over the windows excludes those in which an
// interruption fell between two readings of the clock.
func benchmarkEachProgram(b *testing.B, switches *probeSwitches) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Skipf("needs the kernel's BPF statistics: %v", err)
	}
	b.Cleanup(func() { stats.Close() })
	x, y := newPair(b)
	step := everything(b, x, y)

	programs := map[string]*ebpf.Program{}
	floors := map[string]*ebpf.Program{}
	floorOf := map[string]string{}
	for _, p := range switches.all() {
		p.on(b)
		b.Cleanup(func() { p.off(b) })
		for name, program := range p.programs {
			key := p.name + "." + name
			programs[key] = program
			// Measure an empty program at the same hook, under the same load.
			section, to := p.spec.Programs[name].SectionName, p.spec.Programs[name].AttachTo
			floorOf[key] = section
			if floors[section] != nil {
				continue
			}
			if e := newEmpty(b, section, to); e != nil {
				e.on(b)
				b.Cleanup(func() { e.off(b) })
				floors[section] = e.Program
			}
		}
	}

	// Reference costs measured in the same minute: two readings of the clock, and a
	// map lookup.
	const where = "raw_tp/softirq_entry"
	work := newReference(b, where, "softirq_entry")
	work.on(b)
	b.Cleanup(func() { work.off(b) })
	nothing := newEmpty(b, where, "softirq_entry")
	nothing.on(b)
	b.Cleanup(func() { nothing.off(b) })
	// Reference cost of packetloss's reads when a packet is freed: uncached memory
	// and helper calls, in which machines differ more.
	const freed = "raw_tp/kfree_skb"
	reads := newReads(b, freed, "kfree_skb")
	reads.on(b)
	b.Cleanup(func() { reads.off(b) })
	freedIdle := newEmpty(b, freed, "kfree_skb")
	freedIdle.on(b)
	b.Cleanup(func() { freedIdle.off(b) })
	references := map[string]*ebpf.Program{"reference": work.Program, "empty": nothing.Program, "reads": reads.Program, "empty-freed": freedIdle.Program}

	perRun := map[*ebpf.Program][]float64{}
	last := map[*ebpf.Program]*ebpf.ProgramStats{}
	first := map[*ebpf.Program]*ebpf.ProgramStats{}
	read := func() {
		for _, set := range []map[string]*ebpf.Program{programs, floors, references} {
			for name, p := range set {
				now, err := p.Stats()
				if err != nil {
					b.Fatalf("statistics of program %s: %v", name, err)
				}
				if before := last[p]; before == nil {
					first[p] = now
				} else if runs := now.RunCount - before.RunCount; runs >= 20 {
					perRun[p] = append(perRun[p], float64(now.Runtime-before.Runtime)/float64(runs))
				}
				last[p] = now
			}
		}
	}
	read()
	const windows = 30
	for range windows {
		w := &worker{work: func() error { return step(100 * time.Millisecond) }}
		together(b, w)
		read()
	}
	cost := func(p *ebpf.Program) (ns float64, runs uint64) {
		runs = last[p].RunCount - first[p].RunCount
		switch {
		case runs == 0:
		case len(perRun[p]) >= windows/3:
			ns = median(perRun[p])
		default: // too few for a distribution
			ns = float64(last[p].Runtime-first[p].Runtime) / float64(runs)
		}
		return ns, runs
	}
	for _, p := range switches.all() {
		for _, h := range p.hooks {
			for _, name := range h.Programs {
				key := p.name + "." + name
				b.Run(key, func(b *testing.B) {
					for b.Loop() {
						continue // measured together with the others
					}
					b.ReportMetric(0, "ns/op")
					ns, runs := cost(programs[key])
					b.ReportMetric(float64(runs), "runs")
					if floor := floors[floorOf[key]]; runs > 0 && floor != nil {
						empty, _ := cost(floor)
						b.ReportMetric(ns, "ns/run")
						b.ReportMetric(empty, "floor-ns")
						b.ReportMetric(ns-empty, "net-ns")
						known, _ := cost(work.Program)
						idle, _ := cost(nothing.Program)
						b.ReportMetric(known-idle, "reference-ns")
						known, _ = cost(reads.Program)
						idle, _ = cost(freedIdle.Program)
						b.ReportMetric(known-idle, "reads-ns")
					}
				})
			}
		}
	}
}

// emptyProgram is a program that only returns.
type emptyProgram struct {
	*ebpf.Program
	spec *ebpf.ProgramSpec
	link link.Link
}

// newEmpty loads an empty program for a section and its target, nil if the section
// is not supported.
func newEmpty(b testing.TB, section, attachTo string) *emptyProgram {
	b.Helper()
	kind, _, _ := strings.Cut(section, "/")
	spec := &ebpf.ProgramSpec{Name: "empty", License: "GPL", AttachTo: attachTo, SectionName: section}
	var result int32
	switch kind {
	case "raw_tp":
		spec.Type = ebpf.RawTracepoint
	case "tp_btf":
		spec.Type, spec.AttachType = ebpf.Tracing, ebpf.AttachTraceRawTp
	case "fentry":
		spec.Type, spec.AttachType = ebpf.Tracing, ebpf.AttachTraceFEntry
	case "fexit":
		spec.Type, spec.AttachType = ebpf.Tracing, ebpf.AttachTraceFExit
	case "kprobe", "kretprobe":
		spec.Type = ebpf.Kprobe
	case "cgroup_skb":
		spec.Type, spec.AttachType = ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress
		result = 1 // let the packet pass
	default:
		return nil
	}
	spec.Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, result), asm.Return()}
	return loadProgram(b, spec)
}

// loadProgram loads a program for the duration of the benchmark.
func loadProgram(b testing.TB, spec *ebpf.ProgramSpec) *emptyProgram {
	b.Helper()
	program, err := ebpf.NewProgram(spec)
	if err != nil {
		b.Fatalf("load the %s program for %s: %v", spec.Name, spec.SectionName, err)
	}
	b.Cleanup(func() { program.Close() })
	return &emptyProgram{Program: program, spec: spec}
}

// newReference loads a raw tracepoint program that reads the clock twice and writes
// both values to a map.
func newReference(b *testing.B, section, attachTo string) *emptyProgram {
	b.Helper()
	table, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { table.Close() })
	return loadProgram(b, &ebpf.ProgramSpec{
		Name: "reference", License: "GPL", AttachTo: attachTo, SectionName: section, Type: ebpf.RawTracepoint,
		Instructions: asm.Instructions{
			asm.FnKtimeGetNs.Call(),
			asm.Mov.Reg(asm.R6, asm.R0),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, table.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Reg(asm.R7, asm.R0),
			asm.FnKtimeGetNs.Call(),
			asm.Sub.Reg(asm.R0, asm.R6),
			asm.StoreMem(asm.R7, 0, asm.R0, asm.DWord),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
}

// newReads loads a raw tracepoint program that copies 240 bytes from its first
// argument, reads ten words from it separately, and reads the clock.
func newReads(b *testing.B, section, attachTo string) *emptyProgram {
	b.Helper()
	const size = 240
	read := func(bytes, offset int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.RFP),
			asm.Add.Imm(asm.R1, -size),
			asm.Mov.Imm(asm.R2, bytes),
			asm.Mov.Reg(asm.R3, asm.R6),
			asm.Add.Imm(asm.R3, offset),
			asm.FnProbeReadKernel.Call(),
		}
	}
	program := asm.Instructions{asm.LoadMem(asm.R6, asm.R1, 0, asm.DWord)}
	program = append(program, read(size, 0)...)
	for i := range int32(10) {
		program = append(program, read(8, 16*i)...)
	}
	program = append(program, asm.FnKtimeGetNs.Call(), asm.Mov.Imm(asm.R0, 0), asm.Return())
	return loadProgram(b, &ebpf.ProgramSpec{
		Name: "reads", License: "GPL", AttachTo: attachTo, SectionName: section, Type: ebpf.RawTracepoint, Instructions: program,
	})
}

func (e *emptyProgram) on(b testing.TB) {
	b.Helper()
	var err error
	if e.link, err = attachAlone(e.spec, e.Program); err != nil {
		b.Fatalf("attach an empty program to %s: %v", e.spec.SectionName, err)
	}
}

func (e *emptyProgram) off(b testing.TB) {
	b.Helper()
	if err := e.link.Close(); err != nil {
		b.Fatalf("detach an empty program from %s: %v", e.spec.SectionName, err)
	}
}

func (e *emptyProgram) runs() uint64 { return runsOf(e.Program) }

// everything returns a function that for a while causes TCP and UDP traffic in both
// directions, dropped datagrams, refused connections and file writes. It leaves
// connections with unanswered SYNs, which are then retransmitted.
func everything(b *testing.B, x, y *namespace) func(time.Duration) error {
	client, server := connect(b, x, y, y.v4)
	udp, udpServer := udpPair(b, x, y, y.v4)
	pairs := [][2]int{
		{plainSocket(b, client), plainSocket(b, server)},
		{plainSocket(b, udp.(*net.UDPConn)), plainSocket(b, udpServer)},
	}
	if err := unix.Connect(pairs[1][1], sockaddr(addrPort(udp.LocalAddr()))); err != nil {
		b.Fatal(err)
	}
	closed := sockaddr(y.closedPort(b, y.v4))
	unanswered(b, x, y, 200)
	file, err := os.Create(filepath.Join(b.TempDir(), "written"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { file.Close() })

	buffer := make([]byte, 64)
	never := func() bool { return false }
	return func(length time.Duration) error {
		// The worker's thread is exclusive and ends with it.
		if err := netns.Set(x.handle); err != nil {
			return fmt.Errorf("enter the namespace: %w", err)
		}
		nobody, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(nobody)
		for start := time.Now(); time.Since(start) < length; {
			for range 20 {
				for _, pair := range pairs {
					for _, side := range []int{0, 1} {
						if _, err := message(unix.SYS_WRITE, pair[side], buffer, never); err != nil {
							return err
						}
						if _, err := message(unix.SYS_READ, pair[1-side], buffer, never); err != nil {
							return err
						}
					}
				}
				if err := unix.Sendto(nobody, buffer, 0, closed); err != nil {
					return fmt.Errorf("send to a closed port: %w", err)
				}
			}
			refused, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			err = unix.Connect(refused, closed)
			unix.Close(refused)
			if !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("connect to a closed port: %w", err)
			}
		}
		if _, err := file.WriteAt(buffer, 0); err != nil {
			return err
		}
		return file.Sync()
	}
}

// unanswered starts connections from an address without a host: both ends
// retransmit once a second.
func unanswered(b *testing.B, x, y *namespace, n int) {
	b.Helper()
	ghost := netip.MustParseAddr("10.99.0.78")
	y.neighbour(b, &namespace{v4: ghost, v6: netip.MustParseAddr("fd99::78"), mac: x.mac})
	to := sockaddr(addrPort(y.listen(b, y.v4).Addr()))
	x.do(b, func() error {
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				return err
			}
			b.Cleanup(func() { unix.Close(fd) })
			if err := errors.Join(
				unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1),
				unix.Bind(fd, sockaddr(netip.AddrPortFrom(ghost, 0))),
			); err != nil {
				return fmt.Errorf("take a foreign address: %w", err)
			}
			if err := unix.Connect(fd, to); !errors.Is(err, unix.EINPROGRESS) {
				return fmt.Errorf("begin a connection from a foreign address: %w", err)
			}
		}
		return nil
	})
}
