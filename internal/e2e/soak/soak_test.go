package soak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/exporter"
	"nodeskoop/internal/testkit/journald"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

const (
	cycle   = 2 * time.Second // the daemon's interval
	churn   = 10              // number of pods started and removed per second
	workers = 6               // goroutines that create pods
	spaces  = 10              // network namespaces outside pods per second
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

// TestSoak starts and removes pods, floods the event probes, and restarts
// everything that the daemon talks to. At intervals all activity pauses and all
// pods are removed. Then the daemon must be in the same state as in the first
// pause.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("NODESKOOP_SOAK"))
	need.Target(t, "soak", err == nil)
	need.Root(t)
	need.Program(t, exporter.Program, "unshare", "mount")
	s := &soak{t: t, dir: t.TempDir()}
	s.ctd = pods.Start(t)
	s.journald = journald.New(t, "64M")
	s.daemon = s.start("first")
	s.startExporter()
	if s.exporter == nil {
		t.FailNow()
	}

	// The first pause comes after every part has been used once.
	const rounds = 6
	warm := min(max(length/10, 20*time.Second), 3*time.Minute)
	s.round(warm)
	first := s.pause()
	t.Logf("%-10s %s", "after", first.head())
	t.Logf("%-10s %s", warm, first)
	rests := []state{first}
	for i := range rounds {
		s.round((length - warm) / rounds)
		rest := s.pause()
		rests = append(rests, rest)
		t.Logf("%-10s %s", (warm + (length-warm)/rounds*time.Duration(i+1)).Round(time.Second), rest)
	}
	s.report()
	s.judge(rests)
	s.restarts(max(length/rounds, time.Minute))
}

// restarts does the same while the daemon itself is restarted and killed: no
// counter may fall for a reader, neither the host's nor that of a continuing pod.
func (s *soak) restarts(length time.Duration) {
	<-s.daemon.done // SIGQUIT has already ended it
	s.daemon = s.start("third")
	s.lasting = s.makePod()
	if s.lasting == nil {
		s.t.Fatal("no pod that lasts")
	}
	s.killing = true
	before := s.compared
	s.round(length)
	s.pauseFor(1)
	s.t.Logf("%d restarts of the daemon; %d counters were compared with what they were", s.daemonRestarts, s.compared-before)
	if s.daemonRestarts < 3 || s.compared-before < 1000 {
		s.t.Errorf("too little was tried: %d restarts, %d comparisons", s.daemonRestarts, s.compared-before)
	}
	if log := s.daemon.log.String(); strings.Contains(log, "panic") || strings.Contains(log, "are reset") || strings.Contains(log, "saving the counters failed") {
		s.t.Errorf("the daemon's log:\n%s", log)
	}
	s.removePod(s.lasting)
}

// restartDaemon ends the daemon in one of two ways, and starts it again.
func (s *soak) restartDaemon() {
	s.running.Lock()
	defer s.running.Unlock()
	s.daemonRestarts++
	signal := syscall.SIGKILL
	if s.daemonRestarts%2 == 0 {
		signal = syscall.SIGTERM
	}
	_ = s.daemon.cmd.Process.Signal(signal)
	select {
	case <-s.daemon.done:
	case <-time.After(time.Minute): // on a busy machine it may get little CPU time
		s.t.Errorf("%v did not end the daemon; it is killed", signal)
		_ = s.daemon.cmd.Process.Kill()
		<-s.daemon.done
	}
	s.daemon = s.start(fmt.Sprintf("restart-%d", s.daemonRestarts))
}

// monotonic checks that no counter is below its value in the previous scrape. Pod
// names are unique here, so a series never changes its owner. The counters of flow,
// and those about nodeskoop itself, are reset with each run.
func (s *soak) monotonic(fams map[string]*dto.MetricFamily) {
	now := map[string]float64{}
	for name, f := range fams {
		if f.GetType() != dto.MetricType_COUNTER || !strings.HasPrefix(name, "kubeskoop_") || strings.HasPrefix(name, "kubeskoop_flow_") {
			continue
		}
		for _, m := range f.Metric {
			key := name
			for _, l := range m.Label {
				key += "," + l.GetValue()
			}
			v := m.GetCounter().GetValue()
			if was, ok := s.counters[key]; ok {
				s.compared++
				if v < was {
					s.t.Errorf("%s fell from %v to %v", key, was, v)
				}
			}
			now[key] = v
		}
	}
	s.counters = now
}

// soak is one run.
type soak struct {
	t        *testing.T
	dir      string
	ctd      *pods.Containerd
	journald *journald.Journald
	daemon   *daemon
	exporter *exporter.Exporter

	// Users of containerd hold it for reading, the restarting goroutine for
	// writing.
	containerd                                           sync.RWMutex
	made, failed, foreign, datagrams, scrapes, badScrape atomic.Uint64
	ctdRestarts, journaldRestarts, exporterRestarts      int
	peak                                                 state

	// Readers of the daemon's state hold it for reading, the restarting goroutine
	// for writing.
	running        sync.RWMutex
	killing        bool // the daemon is being restarted
	daemonRestarts int
	lasting        *pods.Pod
	counters       map[string]float64 // counters of the last scrape
	compared       int
}

// round runs all kinds of activity for a while.
func (s *soak) round(length time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var wg sync.WaitGroup
	tokens := time.NewTicker(time.Second / churn)
	defer tokens.Stop()
	for range workers {
		wg.Go(func() { s.podsComeAndGo(ctx, tokens.C) })
	}
	wg.Go(func() { s.spacesComeAndGo(ctx) })
	wg.Go(func() { s.flood(ctx) })
	wg.Go(func() { s.scrape(ctx) })
	wg.Go(func() { every(ctx, min(45*time.Second, length/2), s.restartContainerd) })
	wg.Go(func() { every(ctx, min(35*time.Second, length/3), s.restartJournald) })
	wg.Go(func() { every(ctx, 5*time.Second, s.look) })
	if s.killing {
		wg.Go(func() { every(ctx, 15*time.Second, s.restartDaemon) })
	}
	wg.Wait()
}

// every calls f at intervals, until shortly after the end.
func every(ctx context.Context, wait time.Duration, f func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			f()
		}
	}
}

// podsComeAndGo runs real pods that live for some seconds.
func (s *soak) podsComeAndGo(ctx context.Context, tokens <-chan time.Time) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-tokens:
		}
		p := s.makePod()
		if p == nil {
			continue
		}
		wait := time.NewTimer(time.Duration(rand.IntN(1500)) * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		s.removePod(p)
	}
}

func (s *soak) makePod() *pods.Pod {
	s.containerd.RLock()
	defer s.containerd.RUnlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n := s.made.Add(1)
	p, err := s.ctd.TryRunPod(ctx, pods.PodSpec{Namespace: "soak", Name: fmt.Sprintf("pod-%d", n), Containers: []pods.ContainerSpec{{
		Name: "main",
		// Causes a refused connection, a lost datagram and a served request.
		Command: []string{"sh", "-c", "nc -w 1 127.0.0.1 7; echo x | nc -u -w 1 127.0.0.1 9; httpd -p 8080; wget -q -O /dev/null http://127.0.0.1:8080/; sleep 1000"},
	}}})
	if err != nil {
		s.failed.Add(1)
		s.t.Logf("pod %d: %v", n, err)
	}
	return p
}

func (s *soak) removePod(p *pods.Pod) {
	for range 10 {
		s.containerd.RLock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		err := p.TryRemove(ctx)
		cancel()
		s.containerd.RUnlock()
		if err == nil {
			return
		}
		s.failed.Add(1)
		s.t.Logf("%v", err)
		time.Sleep(time.Second)
	}
}

// spacesComeAndGo creates network namespaces outside pods, as services with a
// private network do, and loses a packet in each.
func (s *soak) spacesComeAndGo(ctx context.Context) {
	every(ctx, time.Second/spaces, func() {
		if err := inSpace(func() error {
			c, err := net.Dial("udp", "127.0.0.1:9")
			if err != nil {
				return err
			}
			defer c.Close()
			_, _ = c.Write([]byte("x"))
			return nil
		}); err != nil {
			s.t.Errorf("a network namespace: %v", err)
		}
		s.foreign.Add(1)
	})
}

// inSpace runs f on a thread in a network namespace of its own, with lo up.
func inSpace(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlock: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			result <- err
			return
		}
		lo, _ := unix.NewIfreq("lo")
		lo.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
		_ = unix.Close(fd)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// flood loses datagrams as fast as one thread can, for a second in ten.
func (s *soak) flood(ctx context.Context) {
	every(ctx, 9*time.Second, func() {
		err := inSpace(func() error {
			c, err := net.Dial("udp", "127.0.0.1:9")
			if err != nil {
				return err
			}
			defer c.Close()
			b := make([]byte, 64)
			for end := time.Now().Add(time.Second); time.Now().Before(end); {
				for range 100 {
					// A datagram is not sent if the call reports the closed port.
					if _, err := c.Write(b); err == nil {
						s.datagrams.Add(1)
					}
				}
			}
			return nil
		})
		if err != nil {
			s.t.Errorf("the flood: %v", err)
		}
	})
}

func (s *soak) restartContainerd() {
	s.containerd.Lock()
	defer s.containerd.Unlock()
	if err := s.ctd.TryKill(); err != nil {
		s.t.Errorf("kill containerd: %v", err)
	}
	time.Sleep(time.Duration(rand.IntN(3000)) * time.Millisecond)
	if err := s.ctd.TryRun(); err != nil {
		s.t.Errorf("run containerd again: %v", err)
	}
	s.ctdRestarts++
}

func (s *soak) restartJournald() {
	switch s.journaldRestarts++; {
	case s.journaldRestarts%2 == 0:
		_ = s.journald.Signal(syscall.SIGSTOP)
		time.Sleep(2 * time.Second)
		_ = s.journald.Signal(syscall.SIGCONT)
		fallthrough
	default:
		s.journald.Kill()
		time.Sleep(time.Duration(rand.IntN(2000)) * time.Millisecond)
		if err := s.journald.Start(); err != nil {
			s.t.Error(err)
		}
	}
}

// scrape scrapes node_exporter continuously, and restarts it now and then.
func (s *soak) scrape(ctx context.Context) {
	every(ctx, 3*time.Second, func() {
		s.running.RLock()
		defer s.running.RUnlock()
		if n := s.scrapes.Add(1); n%10 == 0 {
			s.exporter.Kill()
			s.startExporter()
			s.exporterRestarts++
		}
		fams, err := s.exporter.Families()
		switch {
		case err != nil:
		case sum(fams["node_textfile_scrape_error"]) != 0:
			err = errors.New("node_textfile_scrape_error is not 0")
		case fams["nodeskoop_build_info"] == nil:
			err = errors.New("nothing of the daemon is in it")
		default:
			s.monotonic(fams)
		}
		if err != nil {
			s.badScrape.Add(1)
			s.t.Errorf("scrape %d: %v", s.scrapes.Load(), err)
		}
	})
}

// look keeps the maximum of the values seen under load.
func (s *soak) look() {
	s.running.RLock()
	defer s.running.RUnlock()
	now, err := s.daemon.state()
	if err != nil {
		s.t.Errorf("look at the daemon: %v", err)
		return
	}
	s.peak.fds = max(s.peak.fds, now.fds)
	s.peak.threads = max(s.peak.threads, now.threads)
	s.peak.maps = max(s.peak.maps, now.maps)
	s.peak.entries = max(s.peak.entries, now.entries)
	s.peak.anonymous = max(s.peak.anonymous, now.anonymous)
	s.peak.resident = max(s.peak.resident, now.resident)
	s.peak.series = max(s.peak.series, now.series)
	s.peak.pods = max(s.peak.pods, now.pods)
	s.peak.cycle = max(s.peak.cycle, now.cycle)
	s.peak.spaces = max(s.peak.spaces, now.spaces)
	s.peak.nets = max(s.peak.nets, now.nets)
}

// pause waits until everything created is gone, and the daemon has noticed.
func (s *soak) pause() state {
	s.t.Helper()
	return s.pauseFor(0)
}

// pauseFor is pause for the case that some pods stay.
func (s *soak) pauseFor(pods float64) state {
	s.t.Helper()
	var last state
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(cycle) {
		now, err := s.daemon.state()
		if err != nil {
			s.t.Fatalf("look at the daemon: %v", err)
		}
		if now.pods == pods && now.connected && now.alike(last) {
			// The runtime returns free memory to the machine with a delay.
			seen := now.accounts
			time.Sleep(3 * cycle)
			if now, err = s.daemon.state(); err != nil {
				s.t.Fatalf("look at the daemon: %v", err)
			}
			s.balance(seen, now.accounts)
			return now
		}
		if time.Now().After(end) {
			s.t.Errorf("two minutes after the last pod went the daemon still is not at rest: %s", now)
			return now
		}
		last = now
	}
}

// balance checks that events seen a while ago are accounted for now. The machine's
// own events continue meanwhile.
func (s *soak) balance(before, now map[string]account) {
	for event, a := range now {
		if sum := a.written + a.suppressed + a.lost + a.ignored + a.pending; sum != a.seen || sum < before[event].seen {
			s.t.Errorf("%s: %v had been seen, %v now, and %v are accounted for: %+v", event, before[event].seen, a.seen, sum, a)
		}
	}
}

func (s *soak) report() {
	s.t.Logf("%-10s %s", "peak", s.peak)
	s.t.Logf("%d pods came and went (%d calls to containerd failed), %d namespaces outside pods, %d datagrams lost in floods, %d scrapes (%d bad), restarts: containerd %d, journald %d, node_exporter %d",
		s.made.Load(), s.failed.Load(), s.foreign.Load(), s.datagrams.Load(), s.scrapes.Load(), s.badScrape.Load(), s.ctdRestarts, s.journaldRestarts, s.exporterRestarts)
}

// judge checks that every pause was like the first.
func (s *soak) judge(rests []state) {
	first, last := rests[0], rests[len(rests)-1]
	for i, r := range rests {
		if r.fds != first.fds || r.maps != first.maps {
			s.t.Errorf("pause %d: %d open files and %d BPF maps, %d and %d in the first", i+1, r.fds, r.maps, first.fds, first.maps)
		}
		// The daemon checks the kernel's counters of unowned namespaces only when
		// there are many of them: 64 for each of eight probes.
		if r.entries > first.entries+8*64+64 {
			s.t.Errorf("pause %d: %d entries in BPF maps, %d in the first", i+1, r.entries, first.entries)
		}
		// The runtime keeps threads that hung calls once needed.
		if r.threads > first.threads+4 {
			s.t.Errorf("pause %d: %d threads, %d in the first", i+1, r.threads, first.threads)
		}
		// The kernel counts by slabs, of which each CPU keeps some, and frees
		// namespaces in batches.
		if r.nets > first.nets+32 {
			s.t.Errorf("pause %d: the kernel has %d network namespaces, %d in the first", i+1, r.nets, first.nets)
		}
		// Packet losses are counted by reason, and new reasons appear over time.
		if r.series > first.series+16 {
			s.t.Errorf("pause %d: %v series, %v in the first", i+1, r.series, first.series)
		}
	}
	// A single reading of memory depends on when the garbage collector ran, so
	// several are compared. A leak shows at the end, however slow it is. (Flows
	// once leaked 5 MiB an hour, which a limit of 1/8 did not detect.)
	third := (len(rests) + 2) / 3
	early, late := least(rests[1:1+third]), least(rests[len(rests)-third:])
	if late > early+early/16+512<<10 {
		s.t.Errorf("anonymous memory at rest: %d KiB in the first third after the first pause, %d in the last", early>>10, late>>10)
	}
	if last.accounts["PacketLoss"].seen < float64(s.datagrams.Load()) {
		s.t.Errorf("%v lost packets were seen, %d datagrams alone were lost in floods", last.accounts["PacketLoss"].seen, s.datagrams.Load())
	}
	if log := s.daemon.log.String(); strings.Contains(log, "panic") {
		s.t.Errorf("the daemon's log:\n%s", log)
	}
	// A new daemon shows how many goroutines are normal.
	worn := s.daemon.goroutines(s.t)
	s.daemon = s.start("second")
	s.pause()
	fresh := s.daemon.goroutines(s.t)
	s.t.Logf("goroutines: %d at the end, %d in a new daemon", worn, fresh)
	if worn > fresh+2 {
		s.t.Errorf("%d goroutines at the end, %d in a new daemon", worn, fresh)
	}
}

func least(rests []state) int {
	n := rests[0].anonymous
	for _, r := range rests {
		n = min(n, r.anonymous)
	}
	return n
}

// state is the daemon's resource use at one moment.
type state struct {
	fds, threads, maps, entries int
	resident, anonymous         int // bytes
	spaces                      int // network namespaces of the machine that have processes
	nets                        int // network namespaces that exist in the kernel, for whatever reason
	pods, series, cycle         float64
	connected                   bool
	accounts                    map[string]account
}

type account struct{ seen, written, suppressed, lost, ignored, pending float64 }

func (state) head() string {
	return "fds threads maps entries  rss KiB anon KiB namespaces netns pods series cycle"
}

func (s state) String() string {
	return fmt.Sprintf("%3d %7d %4d %7d %8d %8d %10d %5d %4v %6v %4.0f ms", s.fds, s.threads, s.maps, s.entries, s.resident>>10, s.anonymous>>10, s.spaces, s.nets, s.pods, s.series, s.cycle*1000)
}

// alike reports whether two readings have equal counts, which means that nothing is
// being created or removed.
func (s state) alike(t state) bool {
	return s.fds == t.fds && s.maps == t.maps && s.entries == t.entries && s.series == t.series
}

type daemon struct {
	cmd  *exec.Cmd
	file string
	log  *tail
	done chan struct{}
}

// start runs the daemon as on a node, with all probes, and with journald at the
// expected path.
func (s *soak) start(name string) *daemon {
	s.t.Helper()
	dir := filepath.Join(s.dir, "textfile")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	config := filepath.Join(s.dir, name+".toml")
	text := fmt.Sprintf("node_name = 'soak'\ninterval = '%s'\n[probes]\nenabled = ['all', '-virtcmdlatency']\n[textfile]\ndir = '%s'\n[state]\ndir = '%s'\n[pods]\nsockets = ['%s']\n", cycle, dir, filepath.Join(s.dir, "state"), s.ctd.Socket)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	d := &daemon{file: filepath.Join(dir, "nodeskoop.prom"), log: &tail{}, done: make(chan struct{})}
	d.cmd = exec.Command("sh", "-c", `mount --bind "$0" /run && exec "$@"`, s.journald.Run, testkit.Nodeskoop(s.t), "run", "--config", config)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		s.t.Fatalf("start the daemon: %v", err)
	}
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	s.t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.done
		if s.t.Failed() {
			s.t.Logf("the end of the daemon's log:\n%s", d.log)
		}
	})
	if !testkit.Within(time.Minute, func() bool {
		fams, err := d.families()
		return err == nil && sum(fams["nodeskoop_containerd_up"]) == 1
	}) {
		s.t.Fatalf("the daemon wrote no file in a minute; its log:\n%s", d.log)
	}
	return d
}

// startExporter starts node_exporter, or leaves a running one in place.
func (s *soak) startExporter() {
	e, err := exporter.TryStart(s.t, exporter.Textfile(filepath.Join(s.dir, "textfile"))...)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.exporter = e
}

func (d *daemon) families() (map[string]*dto.MetricFamily, error) {
	f, err := os.Open(d.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := expfmt.NewTextParser(model.LegacyValidation)
	return p.TextToMetricFamilies(f)
}

// state reads the daemon's state from the outside.
func (d *daemon) state() (s state, err error) {
	pid := strconv.Itoa(d.cmd.Process.Pid)
	usage, err := testkit.UsageOf(d.cmd.Process.Pid)
	if err != nil {
		return s, err
	}
	s.resident, s.anonymous, s.threads = usage.Resident, usage.Anonymous, usage.Threads
	fds, err := os.ReadDir("/proc/" + pid + "/fdinfo")
	if err != nil {
		return s, err
	}
	// Ignore files that are open only for a moment.
	seen := map[string]bool{}
	for _, fd := range fds {
		link, err := os.Readlink("/proc/" + pid + "/fd/" + fd.Name())
		if err != nil || strings.HasPrefix(link, "/proc/") || strings.HasPrefix(link, filepath.Dir(d.file)) {
			continue
		}
		s.fds++
		info, _ := os.ReadFile("/proc/" + pid + "/fdinfo/" + fd.Name())
		if m := mapID.FindSubmatch(info); m != nil && !seen[string(m[1])] {
			seen[string(m[1])] = true
			s.maps++
			id, _ := strconv.ParseUint(string(m[1]), 10, 32)
			s.entries += entriesOf(ebpf.MapID(id))
		}
	}
	s.spaces, s.nets = spacesOfProcesses(), spacesOfKernel()
	fams, err := d.families()
	if err != nil {
		return s, err
	}
	s.pods, s.series = sum(fams["nodeskoop_pods"]), sum(fams["nodeskoop_series"])
	s.cycle = sum(fams["nodeskoop_last_cycle_duration_seconds"])
	s.connected = sum(fams["nodeskoop_containerd_up"]) == 1
	s.accounts = map[string]account{}
	for name, at := range map[string]func(*account) *float64{
		"events_seen_total":       func(a *account) *float64 { return &a.seen },
		"events_written_total":    func(a *account) *float64 { return &a.written },
		"events_suppressed_total": func(a *account) *float64 { return &a.suppressed },
		"events_lost_total":       func(a *account) *float64 { return &a.lost },
		"events_ignored_total":    func(a *account) *float64 { return &a.ignored },
		"events_pending":          func(a *account) *float64 { return &a.pending },
	} {
		for _, m := range fams["nodeskoop_"+name].GetMetric() {
			for _, l := range m.Label {
				if l.GetName() == "event" {
					a := s.accounts[l.GetValue()]
					*at(&a) = m.GetCounter().GetValue() + m.GetGauge().GetValue()
					s.accounts[l.GetValue()] = a
				}
			}
		}
	}
	return s, nil
}

var mapID = regexp.MustCompile(`(?m)^map_id:\s*(\d+)`)

// entriesOf counts the entries of a map by namespace. Other maps have a fixed size
// or are caches.
func entriesOf(id ebpf.MapID) (n int) {
	m, err := ebpf.NewMapFromID(id)
	if err != nil {
		return 0
	}
	defer m.Close()
	if m.Type() != ebpf.PerCPUHash && m.Type() != ebpf.Hash {
		return 0
	}
	key := make([]byte, m.KeySize())
	var from any
	for m.NextKey(from, &key) == nil {
		n++
		from = bytes.Clone(key)
	}
	return n
}

func spacesOfProcesses() int {
	inodes := map[string]bool{}
	links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil {
			inodes[to] = true
		}
	}
	return len(inodes)
}

// spacesOfKernel returns the number of network namespaces in the kernel's memory; 0
// if the kernel does not show it.
func spacesOfKernel() int {
	slabs, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(slabs)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "net_namespace" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return 0
}

// goroutines ends the daemon with SIGQUIT, on which Go prints the goroutines, and
// counts them.
func (d *daemon) goroutines(t *testing.T) int {
	t.Helper()
	d.log.keep()
	if err := d.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-d.done:
	case <-time.After(20 * time.Second):
		t.Fatal("SIGQUIT did not end the daemon")
	}
	defer d.log.keep()
	n := len(regexp.MustCompile(`(?m)^goroutine \d+ .*\[`).FindAllString(d.log.String(), -1))
	if n == 0 {
		t.Fatalf("SIGQUIT showed no goroutines:\n%s", d.log)
	}
	return n
}

// tail returns the end of a program's output.
type tail struct {
	mu  sync.Mutex
	b   []byte
	all bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - 256<<10; over > 0 && !t.all {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// keep discards the output so far, and keeps everything from then on.
func (t *tail) keep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b, t.all = t.b[:0], true
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

func sum(f *dto.MetricFamily) (v float64) {
	for _, m := range f.GetMetric() {
		v += m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
	}
	return v
}
