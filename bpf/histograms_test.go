package bpf

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/bpf/internal/objects"
	"nodeskoop/internal/testkit/loopdev"
	"nodeskoop/internal/testkit/need"
)

// above returns how many latencies of a histogram reach a threshold, and whether
// the threshold is a bound of the histogram.
func above(h *Histogram, threshold time.Duration) (n uint64, tells bool) {
	if threshold == 0 {
		return h.Count(), true
	}
	i := slices.Index(HistogramBounds, threshold)
	if i < 0 {
		return 0, false
	}
	for _, b := range h.Buckets[i+1:] {
		n += b
	}
	return n, true
}

// agreement pairs counters of a probe with the histograms that count the same;
// several histograms are summed.
type agreement struct {
	histograms []int
	slot       int
	threshold  func(Config) time.Duration
	// most: the counter may be higher. For a read of several segments, the
	// histogram has the wait of the first slow one, the counter the longest wait.
	most bool
}

func slow(c Config) time.Duration    { return c.Slow }
func slow100(c Config) time.Duration { return c.Slow100 }

var agreements = map[string][]agreement{
	"biolatency": {{nil, DiskSlow, slow, false}, {nil, DiskSlow100, slow100, false}},
	"kernellatency": {
		{[]int{RxLatency}, RxSlow, slow, false}, {[]int{RxLatency}, RxSlow100, slow100, false},
		{[]int{TxLatency}, TxSlow, slow, false}, {[]int{TxLatency}, TxSlow100, slow100, false},
	},
	"net_softirq": {
		{[]int{SoftirqTXSched, SoftirqRXSched}, SchedSlow, slow, false}, {[]int{SoftirqTXSched, SoftirqRXSched}, SchedSlow100, slow100, false},
		{[]int{SoftirqTXExcute, SoftirqRXExcute}, ExcuteSlow, slow, false}, {[]int{SoftirqTXExcute, SoftirqRXExcute}, ExcuteSlow100, slow100, false},
	},
	"netiftxlatency": {{[]int{QdiscLatency}, QdiscSlow, slow100, false}, {[]int{DriverLatency}, NetdevSlow, slow100, false}},
	"socketlatency": {
		{[]int{ReadLatency}, ReadSlow, slow, false}, {[]int{ReadLatency}, ReadSlow100, slow100, true},
		{[]int{WriteLatency}, WriteSlow, slow, false}, {[]int{WriteLatency}, WriteSlow100, slow100, false},
	},
}

// readHistograms returns all histograms of a probe, summed over namespaces or
// disks.
func readHistograms(t testing.TB, p *Probe) (all [MaxHistograms]Histogram) {
	t.Helper()
	sum := func(which int, h *Histogram) {
		for i, n := range h.Buckets {
			all[which].Buckets[i] += n
		}
		all[which].SumNs += h.SumNs
	}
	err := p.Histograms(MaxHistograms, func(_ NetnsID, which int, h *Histogram) { sum(which, h) })
	if err == nil {
		err = p.DiskHistograms(func(_ string, _ uint32, h *Histogram) { sum(0, h) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// agree compares the histograms of a probe with its counters. All test loaders do so
// at their end, so every test of a latency also tests its histogram. The machine is
// never idle, so the counter is read before and after the histogram.
func (l *testLoader) agree(p *Probe) {
	l.t.Helper()
	if p.config.Histograms == HistogramsOff {
		return
	}
	total := func(slot int) (n uint64) {
		if err := p.Counters(func(_ NetnsID, s int, value uint64) {
			if s == slot {
				n += value
			}
		}); err != nil {
			l.t.Fatal(err)
		}
		return n
	}
	for _, a := range agreements[p.name] {
		var before, in, after uint64
		tells := true
		ok := func() bool {
			before = total(a.slot)
			all := readHistograms(l.t, p)
			after, in = total(a.slot), 0
			for _, which := range a.histograms {
				var n uint64
				n, tells = above(&all[which], a.threshold(p.config))
				in += n
			}
			if a.histograms == nil {
				in, tells = above(&all[0], a.threshold(p.config))
			}
			return !tells || in <= after && (in >= before || a.most)
		}
		if !l.soon(ok) {
			l.t.Errorf("%s: the counter %d of what took %v or longer went from %d to %d, the histograms had %d between",
				p.name, a.slot, a.threshold(p.config), before, after, in)
		}
	}
}

// soon waits for a condition for a short time: an occurrence may already be in one of
// the two counts and not yet in the other.
func (l *testLoader) soon(ok func() bool) bool {
	for range 50 {
		if ok() {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return ok()
}

// histogramsOf are those of one namespace.
func histogramsOf(t testing.TB, p *Probe, netns uint64) (all [MaxHistograms]Histogram) {
	t.Helper()
	if err := p.Histograms(MaxHistograms, func(n NetnsID, which int, h *Histogram) {
		if n.Inode() == netns {
			all[which] = *h
		}
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestHistogramsOfSockets: each read that takes data counts in the histogram of its
// namespace, in the bucket of its wait, and so does each write. A namespace without
// traffic has no counts.
func TestHistogramsOfSockets(t *testing.T) {
	rungsInTurn(t, "socketlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		idle := newNamespace(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("socketlatency", Config{Histograms: HistogramsPods})
		tcp, server := connect(t, a, b, b.v4)
		udp, udpServer := udpPair(t, a, b, b.v4)
		pairs := [][2]net.Conn{{tcp, server}, {udp, udpServer}}
		if p.Hooks()[0].Limitation != "" {
			pairs = pairs[:1] // this rung sees TCP only
		}
		quick, late := times(200, 50), 5
		wait := 40 * time.Millisecond
		buffer := make([]byte, 64)
		reads, writes := uint64(0), uint64(0)
		for _, pair := range pairs {
			for i := range quick + late {
				if _, err := pair[0].Write([]byte("in one piece")); err != nil {
					t.Fatal(err)
				}
				if i >= quick {
					time.Sleep(wait)
				}
				if _, err := pair[1].Read(buffer); err != nil {
					t.Fatal(err)
				}
				reads++
				if pair[0] == tcp {
					writes++
				}
			}
		}
		l.settled(p, b.inode)
		at := histogramsOf(t, p, b.inode)[ReadLatency]
		l.count(p, "reads in the histogram of their namespace", reads, at.Count())
		slow, _ := above(&at, 30*time.Millisecond)
		if least := uint64(late * len(pairs)); slow < least || at.SumNs < least*uint64(wait-time.Millisecond) {
			t.Errorf("%d reads after %v or more: %v", least, wait, at)
		}
		if at.SumNs < bottom(&at) {
			t.Errorf("a sum of %d ns in %v", at.SumNs, at)
		}
		sent := histogramsOf(t, p, a.inode)[WriteLatency]
		if p.Hooks()[1].Kind == "" {
			writes = 0
		}
		l.count(p, "writes in the histogram of their namespace", writes, sent.Count())
		l.count(p, "reads and writes of a namespace without traffic", 0, histogramsOf(t, p, idle.inode)[ReadLatency].Count()+histogramsOf(t, p, idle.inode)[WriteLatency].Count())
		if h := histogramsOf(t, p, a.inode)[ReadLatency]; h.Count() != 0 {
			t.Errorf("who only writes has %v", h)
		}
	})
}

// bottom is the lower bound of the sum of a histogram's latencies.
func bottom(h *Histogram) (ns uint64) {
	for i, n := range h.Buckets[1:] {
		ns += n * uint64(HistogramBounds[i])
	}
	return ns
}

// TestHistogramsOfTheStack: each datagram that reaches its socket counts in the
// histogram of received packets, and each segment with data in that of sent packets.
func TestHistogramsOfTheStack(t *testing.T) {
	rungsInTurn(t, "kernellatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		idle := newNamespace(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("kernellatency", Config{Histograms: HistogramsPods})
		n := times(300, 100)
		client, server := connect(t, a, b, b.v4)
		udp, udpServer := udpPair(t, a, b, b.v4)
		l.settled(p, b.inode)
		received, sent := histogramsOf(t, p, b.inode)[RxLatency], histogramsOf(t, p, a.inode)[TxLatency]
		data, buffer := make([]byte, 100), make([]byte, 100)
		for i := range n {
			// A segment with less data than the longest header is distinguished from a
			// bare ACK by its headers.
			size := 1 + i%len(data)
			for _, pair := range [][2]net.Conn{{udp, udpServer}, {client, server}} {
				if _, err := pair[0].Write(data[:size]); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadAtLeast(pair[1], buffer, size); err != nil {
					t.Fatal(err)
				}
			}
		}
		l.settled(p, b.inode)
		in := histogramsOf(t, p, b.inode)[RxLatency]
		out := histogramsOf(t, p, a.inode)[TxLatency]
		want := uint64(2 * n)
		if h := p.Hooks()[0]; !staged(h) && !slices.Contains(h.Programs, "raw_data_ready") && !slices.Contains(h.Programs, "btf_data_ready") {
			want = uint64(n) // datagrams are not seen
		}
		// If the hook sees all packets, bare ACKs and retransmitted segments count too.
		got := in.Count() - received.Count()
		if got < want || !staged(p.Hooks()[0]) && got > want+uint64(n/10) {
			t.Errorf("received %d, want %d: %v", got, want, in)
		}
		want = uint64(n)
		if staged(p.Hooks()[1]) {
			want = uint64(2 * n)
		}
		if got := out.Count() - sent.Count(); got < want || !staged(p.Hooks()[1]) && got > want+uint64(n/10) {
			t.Errorf("sent %d, want %d: %v", got, want, out)
		}
		l.count(p, "packets of a namespace without traffic", 0, histogramsOf(t, p, idle.inode)[RxLatency].Count()+histogramsOf(t, p, idle.inode)[TxLatency].Count())
	})
}

// CPUs that count at the same time lose nothing: each request and each answer is one
// segment with data, and one write. The kernel reports how many program runs it skipped.
func TestHistogramsInParallel(t *testing.T) {
	for name, which := range map[string]int{"kernellatency": TxLatency, "socketlatency": WriteLatency} {
		t.Run(name, func(t *testing.T) {
			rungsInTurn(t, name, func(t *testing.T, rung Kind) {
				a, b := newPair(t)
				l := newTestLoader(t, Options{Hooks: rung})
				p := l.load(name, Config{Histograms: HistogramsPods})
				const connections = 8
				requests := times(1000, 100)
				var ends [connections][2]net.Conn
				for i := range ends {
					ends[i][0], ends[i][1] = connect(t, a, b, b.v4)
				}
				l.settled(p, b.inode)
				missed := l.missed()
				before := [2]Histogram{histogramsOf(t, p, a.inode)[which], histogramsOf(t, p, b.inode)[which]}
				again := [2]uint64{a.counter(t, "Tcp.RetransSegs"), b.counter(t, "Tcp.RetransSegs")}
				var wg sync.WaitGroup
				var errs [connections][2]error
				for i, pair := range ends {
					for side := range pair {
						wg.Go(func() {
							buffer := make([]byte, 64)
							for n := range 2 * requests {
								var err error
								if n%2 == side {
									_, err = pair[side].Write(buffer)
								} else {
									_, err = io.ReadFull(pair[side], buffer)
								}
								if err != nil {
									errs[i][side] = err
									pair[side].Close()
									return
								}
							}
						})
					}
				}
				wg.Wait()
				for i := range errs {
					if err := errors.Join(errs[i][:]...); err != nil {
						t.Fatal(err)
					}
				}
				l.settled(p, b.inode)
				missed = l.missed() - missed
				for side, ns := range []*namespace{a, b} {
					h := histogramsOf(t, p, ns.inode)[which]
					got, want := h.Count()-before[side].Count(), uint64(connections*requests)
					most := want
					switch {
					case p.Hooks()[1].Kind == "":
						want, most = 0, 0 // this kernel has no hook for them
					case name == "kernellatency" && staged(p.Hooks()[1]):
						most = math.MaxUint64 // bare ACKs count
					case name == "kernellatency":
						most += ns.counter(t, "Tcp.RetransSegs") - again[side]
					}
					if got+missed < want || got > most {
						t.Errorf("side %d: %d counted and %d left out, want %d to %d: %v", side, got, missed, want, most, h)
					}
				}
			})
		})
	}
}

// Each packet that a device sends is in the histogram of the driver's time. If the
// device has a queue, it is also in the histogram of the queue's.
func TestHistogramsOfDevices(t *testing.T) {
	eachRung(t, "netiftxlatency", func(t *testing.T, rung Kind) {
		a, b := newPair(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("netiftxlatency", Config{Histograms: HistogramsPods})
		udp, _ := udpPair(t, a, b, b.v4)
		const n = 300
		for _, queue := range []bool{false, true} {
			if queue {
				need.Program(t, "tc")
				a.run(t, "tc", "qdisc", "replace", "dev", a.device, "root", "pfifo_fast")
			}
			before, _ := deviceSent(t, a)
			was := histogramsOf(t, p, a.inode)
			for range n {
				if _, err := udp.Write([]byte("data")); err != nil {
					t.Fatal(err)
				}
			}
			l.settled(p, a.inode)
			after, _ := deviceSent(t, a)
			now := histogramsOf(t, p, a.inode)
			sent := after - before
			l.count(p, fmt.Sprintf("packets in the driver's histogram, queue %v, by the device's own counter", queue), sent, now[DriverLatency].Count()-was[DriverLatency].Count())
			if !queue {
				sent = 0
			}
			l.count(p, fmt.Sprintf("packets in the queue's histogram, queue %v", queue), sent, now[QdiscLatency].Count()-was[QdiscLatency].Count())
		}
	})
}

// TestHistogramsOff: a probe without histograms counts none.
func TestHistogramsOff(t *testing.T) {
	l := newTestLoader(t, Options{})
	for name := range histogramProbes {
		p, err := l.Load(name, Config{Slow: Zero, Slow100: Zero, Histograms: HistogramsOff})
		if err != nil {
			continue // TestRungs reports hooks that the kernel refuses
		}
		a, b := newPair(t)
		udp, _ := udpPair(t, a, b, b.v4)
		send(t, udp, 100)
		for which, h := range readHistograms(t, p) {
			if h.Count() != 0 || h.SumNs != 0 {
				t.Errorf("%s, %d: %v", name, which, h)
			}
		}
	}
}

// TestHistogramsOfDisks: each I/O of a disk counts in the histogram of its disk and
// operation.
func TestHistogramsOfDisks(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		need.Root(t)
		device := loopdev.New(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("biolatency", Config{})
		f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		of := func(operation uint32) (h Histogram) {
			if err := p.DiskHistograms(func(disk string, op uint32, one *Histogram) {
				if disk == filepath.Base(device) && op == operation {
					h = *one
				}
			}); err != nil {
				t.Fatal(err)
			}
			return h
		}
		reads, writes := of(BlockRead).Count(), of(BlockWrite).Count()
		const n, m = 50, 20
		block := aligned(4096)
		for range n {
			if _, err := f.ReadAt(block, 4096); err != nil {
				t.Fatal(err)
			}
		}
		for range m {
			if _, err := f.WriteAt(block, 8192); err != nil {
				t.Fatal(err)
			}
		}
		l.eventually("the end of all I/O", func() bool { return of(BlockWrite).Count() >= writes+m })
		l.count(p, "reads of a disk in its histogram", n, of(BlockRead).Count()-reads)
		l.count(p, "writes of a disk in its histogram", m, of(BlockWrite).Count()-writes)
		if h := of(BlockRead); h.SumNs < bottom(&h) || h.SumNs == 0 {
			t.Errorf("a sum of %d ns in %v", h.SumNs, h)
		}
	})
}

// TestDisksWithoutRoom: the I/O of disks that find no number counts for the disk
// without a name, once each. The numbers of disks that are gone are given to others,
// which count from 0.
func TestDisksWithoutRoom(t *testing.T) {
	eachRung(t, "biolatency", func(t *testing.T, rung Kind) {
		need.Root(t)
		l := newTestLoader(t, Options{Hooks: rung})
		p := l.load("biolatency", Config{})
		reads := func() map[string]uint64 {
			n := map[string]uint64{}
			if err := p.DiskHistograms(func(disk string, op uint32, h *Histogram) {
				if op == BlockRead {
					n[disk] = h.Count()
				}
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		const n = 20
		read := func(device string) {
			t.Helper()
			f, err := os.OpenFile(device, os.O_RDONLY|unix.O_DIRECT, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			for i := range n {
				if _, err := f.ReadAt(aligned(4096), int64(i)*4096); err != nil {
					t.Fatal(err)
				}
			}
		}
		known, late := loopdev.New(t), loopdev.New(t)
		kept := reads()[filepath.Base(known)]
		read(known)
		l.eventually("the end of all I/O", func() bool { return reads()[filepath.Base(known)] >= kept+n })

		// Disks that are gone have all other numbers, and latencies.
		var number uint32
		stale := make([]objects.BiolatencyOperationHistograms, l.cpus)
		stale[0].Of[BlockRead].Bucket[0] = 1000
		for p.maps[mapFreeNumbers].LookupAndDelete(nil, &number) == nil {
			var key objects.BiolatencyDiskName
			for i, c := range fmt.Sprintf("gone%d", number) {
				key.Name[i] = int8(c)
			}
			if err := errors.Join(p.maps[mapDiskNumbers].Put(key, number), p.maps[mapDiskHistograms].Put(number, stale)); err != nil {
				t.Fatal(err)
			}
		}
		read(late)
		nameless := func() (n uint64) { // reads() would free the numbers
			var of []objects.BiolatencyOperationHistograms
			if err := p.maps[mapDiskHistograms].Lookup(uint32(0), &of); err != nil {
				t.Fatal(err)
			}
			for cpu := range of {
				for _, b := range of[cpu].Of[BlockRead].Bucket {
					n += b
				}
			}
			return n
		}
		l.eventually("the end of all I/O", func() bool { return nameless() >= n })
		// Other disks may have had their first I/O meanwhile.
		l.count(p, "reads of a disk that found no number", n, min(n, nameless()))
		l.count(p, "reads of a disk with a number", n, reads()[filepath.Base(known)]-kept) // frees the numbers
		for disk, n := range reads() {
			if n == 1000 {
				t.Errorf("%s is gone and still has %d reads", disk, n)
			}
		}
		read(late)
		l.eventually("the end of all I/O", func() bool { return reads()[filepath.Base(late)] >= n })
		l.count(p, "reads of a disk with the number of another", n, reads()[filepath.Base(late)])
		l.count(p, "reads of a disk without a number, kept", n, min(n, reads()[""]))
	})
}

// TestHistogramsOfStrangers: latencies of unfollowed namespaces count for namespace
// 0. The histograms of a namespace that is gone are deleted.
func TestHistogramsOfStrangers(t *testing.T) {
	l := newTestLoader(t, Options{})
	p := l.load("socketlatency", Config{Histograms: HistogramsPods})
	stranger := newUnowned(t)
	before := histogramsOf(t, p, 0)[ReadLatency].Count()
	const n = 50
	stranger.do(t, func() error {
		fds, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fds)
		if err := unix.Bind(fds, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			return err
		}
		self, err := unix.Getsockname(fds)
		if err != nil {
			return err
		}
		buffer := make([]byte, 8)
		for range n {
			if err := unix.Sendto(fds, buffer, 0, self); err != nil {
				return err
			}
			if _, err := again(func() (int, error) { return unix.Read(fds, buffer) }); err != nil {
				return err
			}
		}
		return nil
	})
	if p.Hooks()[0].Limitation != "" {
		t.Skip("this kernel shows no reads of datagrams")
	}
	if got := histogramsOf(t, p, 0)[ReadLatency].Count() - before; got < n {
		t.Errorf("%d reads in a namespace that nobody follows, want %d at least", got, n)
	}
	followed := newNamespace(t)
	there := func() (found bool) {
		if err := p.Histograms(1, func(netns NetnsID, _ int, _ *Histogram) { found = found || netns.Inode() == followed.inode }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if !there() {
		t.Error("a namespace that is followed has no histograms")
	}
	if err := p.Forget(l.ids(followed.inode)...); err != nil || there() {
		t.Errorf("forgotten: %v", err)
	}
}
