// Package collect is the sampling engine. In each cycle the Runner makes a plan, workers
// sample the probes of its jobs through a View and yield rows, and families turns the rows
// into metric families. Each stage depends only on the output of the one before.
package collect

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/sys/unix"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// Options are the settings of a Runner.
type Options struct {
	// Node is the value of k8s_node, HostLabel of both pod labels for the
	// host's own series.
	Node, HostLabel string
	// Version is this build's, for nodeskoop_build_info.
	Version string
	// Interval is the time between two cycles, Timeout the limit of one Sample call, after
	// which its worker is abandoned.
	Interval, Timeout time.Duration
	// Once says that there will be only one or two cycles: set-up that pays off over many
	// cycles is skipped.
	Once bool
	// Service says that the Runner runs for long: failures are retried, and the log says
	// so.
	Service bool
	// Enabled names the probes to run; Probes holds their options by name.
	Enabled []string
	Probes  map[string]map[string]any
	// Standby names the probes that run only while Decide says so. An enabled probe is not
	// on standby.
	Standby []string
	// Labels are the additional labels that the operator configured.
	Labels []owner.LabelTemplate
	// CompatNames also writes the metrics that have an Alias.
	CompatNames bool
	// Include holds globs (path.Match) of the probes' metrics to write; empty means all.
	// nodeskoop_* is written in any case.
	Include []string
	// Exclude holds globs of metric names to leave out, even if Include names them.
	Exclude []string
	// SkipZero leaves out a pod's counters that have been 0 since the start.
	SkipZero bool
	// MaxSeries is the most series of one cycle; 0: no limit.
	MaxSeries int
	// ProcRoot is where procfs is mounted; "" means /proc.
	ProcRoot string
	// HostNetns is the path of the host's network namespace; "" means that of process 1,
	// for which CAP_SYS_PTRACE is needed.
	HostNetns string
	// Refused says by probe name why the probe may not run: its values would not be the
	// host's.
	Refused map[string]error
	Pods    owner.Pods
	Log     *slog.Logger
}

// Runner samples the probes of the Catalogue, each interval or once, and
// turns their values into metric families.
type Runner struct {
	opt       Options
	factories map[string]Factory

	self selfNetns
	host hostNetns

	instances []*instance
	planner   *planner
	plan      *plan // plan of the last cycle
	rows      []row
	fam       *families
	missed    uint64
	keeper    *keeper
	gaps      *gaps
	mute      bool // the last askSelf failed
	ran       []*owner.Pod
	blind     bool // the last call for the pods failed
	who       *owner.Resolver

	decide    func(iter.Seq[Value]) bool // see Decide
	awake     bool                       // the probes on standby run, or are being loaded
	undecided bool                       // the last call of decide failed
	still     map[string][]stillRow      // counters of probes on standby as of their last cycle, by probe
	turn      chan struct{}              // taken while a probe on standby is loaded

	// Calls that may hang, each in its own goroutine. A field is nil while no
	// such call is running.
	listing *bounded.Call[processLists]
	asking  *bounded.Call[[]selfValue]
	handing *bounded.Call[struct{}] // handing over the families to the sink

	stop <-chan struct{} // closed when Run must end; nil outside of Run

	cycles uint64 // cycles started
	born   time.Time
	loop   atomic.Uint64 // the goroutine of Run
	due    atomic.Int64  // deadline of the loop's next heartbeat, since born

	mu      sync.Mutex
	status  []ProbeStatus
	standby map[string]bool // see Standby
	selves  []func(add func(m string, value float64, labels ...string))
}

const (
	// handWait limits how long a cycle waits for the sink.
	handWait = 4 * time.Second
	// closeWait limits how long detaching probes delays a reload or shutdown. The kernel's
	// grace periods are short, but another program may hold a lock for long.
	closeWait = 5 * time.Second
)

// NewRunner builds a Runner from the probes that this program contains.
func NewRunner(opt Options, factories ...Factory) (*Runner, error) {
	r := &Runner{factories: map[string]Factory{}, planner: newPlanner(), keeper: newKeeper(), gaps: newGaps(), who: owner.NewResolver(owner.Sources{}), born: time.Now(), still: map[string][]stillRow{}, turn: make(chan struct{}, 1)}
	r.KeepAlso("standby", standbyState{r})
	for _, f := range factories {
		r.factories[f.Name] = f
	}
	fd, err := kernel.Open(unix.AT_FDCWD, kernel.OwnNetns, 0)
	if err != nil {
		return nil, fmt.Errorf("open this process's network namespace /proc/thread-self/ns/net: %w (is procfs mounted on /proc?)", err)
	}
	r.self.fd = fd
	if r.self.inode, err = kernel.Inode("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("find this process's network namespace: %w", err)
	}
	if err := r.Apply(opt); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return r, nil
}

// Apply changes the options between two cycles. Probes whose own options are unchanged keep
// their state. On an error nothing changes.
func (r *Runner) Apply(opt Options) error {
	commit, err := r.Prepare(opt)
	if err != nil {
		return err
	}
	commit()
	return nil
}

// Prepare is the part of Apply that can fail or take time. It may be called from any
// goroutine. The commit that it returns cannot fail, and must be called between two cycles.
func (r *Runner) Prepare(opt Options) (commit func(), err error) {
	if opt.ProcRoot == "" {
		opt.ProcRoot = "/proc"
	}
	if opt.Pods == nil {
		opt.Pods = owner.NoPods{}
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Timeout <= 0 {
		opt.Timeout = 2 * time.Second
	}
	for _, g := range slices.Concat(opt.Include, opt.Exclude) {
		if _, err := path.Match(g, ""); err != nil {
			return nil, fmt.Errorf("metrics to include or exclude: %q is not a glob: %w", g, err)
		}
	}
	host := hostNetns{path: opt.HostNetns}
	if host.path == "" {
		host.path, host.pids = opt.ProcRoot+"/1/ns/net", []int{1}
	}
	if host.inode, err = kernel.Inode(host.path); err != nil {
		return nil, fmt.Errorf("find the host's network namespace: %w (it needs CAP_SYS_PTRACE)", err)
	}
	if host.inode == r.self.inode {
		host.pids = append([]int{ownPID(opt.ProcRoot)}, host.pids...)
	}
	host.key = fmt.Sprintf("host %d %x", host.inode, r.cookieOf(host.path, host.inode))

	var next []*instance
	for i, name := range slices.Concat(opt.Enabled, opt.Standby) {
		info := catalog.ProbeByName(name)
		if info == nil {
			return nil, fmt.Errorf("unknown probe %q", name)
		}
		next = append(next, &instance{info: info, opts: probeOptions(info, opt.Probes[info.Name]), refused: opt.Refused[info.Name], standby: i >= len(opt.Enabled)})
	}
	// Of two instances of one probe, the enabled one comes first and stays.
	slices.SortStableFunc(next, func(a, b *instance) int { return strings.Compare(a.info.Name, b.info.Name) })
	next = slices.CompactFunc(next, func(a, b *instance) bool { return a.info == b.info })

	return func() { r.commit(opt, host, next) }, nil
}

func (r *Runner) commit(opt Options, host hostNetns, next []*instance) {
	sameHost := r.host.key == host.key && r.opt.ProcRoot == opt.ProcRoot
	r.opt, r.host = opt, host
	r.who.Apply(owner.Sources{Pods: opt.Pods, HostNetns: host.inode, NodeAddrs: func() ([]netip.Addr, error) { return kernel.AddrsOf(host.path) }})
	kept := map[*instance]bool{}
	for i, n := range next {
		for _, old := range r.instances {
			// Keep a probe that begins or ceases to be on standby if it runs.
			if sameHost && old.info == n.info && (old.standby == n.standby || old.source != nil) && reflect.DeepEqual(old.opts, n.opts) && sameError(opt.Refused[n.info.Name], old.refused) {
				if old.standby = n.standby; old.source != nil {
					old.source.keep = n.standby
				}
				next[i], kept[old] = old, true
			}
		}
	}
	var dropped []*instance
	for _, old := range r.instances {
		if !kept[old] {
			dropped = append(dropped, old)
		}
	}
	r.drop(dropped)
	r.instances = next
	maps.DeleteFunc(r.still, func(probe string, _ []stillRow) bool {
		return !slices.ContainsFunc(next, func(in *instance) bool { return in.standby && in.info.Name == probe })
	})
	r.planner.each(func(m *memory) { m.labels.pairs = nil }) // rebuilt from the new templates
	r.newFamilies()
}

func (r *Runner) newFamilies() {
	r.fam = newFamilies(selection{r.opt.Include, r.opt.Exclude, r.opt.CompatNames, r.opt.SkipZero, r.opt.MaxSeries})
}

// ownPID is this process's PID under root, which may be the procfs of another PID
// namespace.
func ownPID(root string) int {
	if name, err := os.Readlink(root + "/self"); err == nil {
		if pid, err := strconv.Atoi(name); err == nil {
			return pid
		}
	}
	return os.Getpid()
}

// Close closes all probes. It waits for closeWait at most.
func (r *Runner) Close() {
	r.drop(r.instances)
	r.instances = nil
	r.planner.each((*memory).leave)
	_ = unix.Close(r.self.fd)
}

// Status returns the probes' results of the last cycle, sorted by name. It may be called
// from any goroutine.
func (r *Runner) Status() []ProbeStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.status)
}

// Until makes a running Cycle end soon after ctx does, whatever hangs. The Cycle then
// returns incomplete families.
func (r *Runner) Until(ctx context.Context) { r.stop = ctx.Done() }

// Run samples at once and then each interval, until ctx ends. sink gets the families of
// each cycle, which are valid until it returns. Between two cycles Run calls the functions
// that it receives from the channel between. They may call Apply, and a cycle follows at
// once.
func (r *Runner) Run(ctx context.Context, sink func([]*dto.MetricFamily), between <-chan func()) {
	next := time.Now()
	r.loop.Store(goroutineID())
	r.Until(ctx)
	for ctx.Err() == nil {
		fams := r.Cycle()
		if ctx.Err() != nil {
			break // the cycle may be incomplete
		}
		r.hand(sink, fams)
		r.beat(0)
		next = next.Add(r.opt.Interval)
		if late := time.Since(next); late >= 0 {
			n := late/r.opt.Interval + 1
			r.missed += uint64(n)
			next = next.Add(n * r.opt.Interval)
		}
		r.beat(time.Until(next))
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case f := <-between:
			r.beat(0)
			f()
			next = time.Now()
		case <-timer.C:
		}
		timer.Stop()
	}
}

// hand gives the families of a cycle to the sink. A sink that hangs, for example on a file
// system that does not answer, keeps these families and gets no others until it returns;
// sampling continues.
func (r *Runner) hand(sink func([]*dto.MetricFamily), fams []*dto.MetricFamily) {
	if r.handing != nil {
		if !r.handing.Over(0, nil) {
			r.missed++
			return
		}
		r.opt.Log.Info("writing the values works again", "after", time.Since(r.handing.Since).Round(time.Millisecond))
		r.handed()
	}
	r.handing = bounded.Begin(func() (none struct{}, err error) { sink(fams); return none, nil })
	r.beat(handWait)
	// Wait during shutdown, too, so that the last file is complete.
	if r.handing.Over(handWait, nil) {
		r.handed()
		return
	}
	r.opt.Log.Error("writing the values hangs; sampling continues, and its values are lost until writing works", "error", r.handing.Hangs("writing them"))
	r.newFamilies() // the sink still uses the old ones
}

func (r *Runner) handed() {
	if r.handing.Err != nil {
		r.opt.Log.Error("writing the values failed", "error", r.handing.Err)
	}
	r.handing = nil
}

// beat records a heartbeat of the loop and promises the next one within wait.
func (r *Runner) beat(wait time.Duration) {
	r.gaps.late(r.Overdue())
	r.due.Store(int64(time.Since(r.born) + wait))
}

// Overdue returns how late the loop's heartbeat is. During a cycle it counts from the last
// step, between cycles from the time when the next cycle was due. A hanging probe does not
// delay heartbeats. It may be called from any goroutine.
func (r *Runner) Overdue() time.Duration {
	return max(0, time.Since(r.born)-time.Duration(r.due.Load()))
}

// Goroutine is the ID of the goroutine that runs Run, as in stack traces. It may be
// called from any goroutine.
func (r *Runner) Goroutine() uint64 { return r.loop.Load() }

// goroutineID parses the goroutine's ID from its stack trace, its only source.
func goroutineID() uint64 {
	var buf [64]byte
	f := bytes.Fields(buf[:runtime.Stack(buf[:], false)])
	if len(f) < 2 {
		return 0
	}
	id, _ := strconv.ParseUint(string(f[1]), 10, 64)
	return id
}

// Cycle samples every probe once and returns the families, which are valid until the next
// Cycle.
func (r *Runner) Cycle() []*dto.MetricFamily {
	start := time.Now()
	r.beat(0)
	r.cycles++
	r.build(start)
	r.plan = r.makePlan()
	r.beat(0)
	r.rows = sample(r.plan, r.rows[:0], r.stop, func() { r.beat(0) })
	r.beat(0)
	r.judge()
	r.rows = r.appendStill(r.rows)
	r.switchStandby()
	r.markSample()
	values := r.askSelf()
	r.keepAll() // save before publishing: counters never fall below values that were read
	r.beat(0)
	host := &r.plan.host.labels
	r.fam.fill(r.rows, host)
	r.selfValues(start, values, func(metric string, value float64, labels ...string) { r.fam.add(host, metric, value, labels...) })
	return r.fam.list()
}

func (r *Runner) makePlan() *plan {
	from := inventory{node: r.opt.Node, hostLabel: r.opt.HostLabel, templates: r.opt.Labels, host: r.host, log: r.opt.Log}
	for _, in := range r.instances {
		if in.source != nil {
			from.sources = append(from.sources, in.source)
		}
	}
	from.pods = r.running()
	if ofPods := sourcesOf(from.sources, EachPod); len(ofPods) > 0 {
		lists, err := r.listProcesses(from.pods)
		if err == nil {
			from.processes = &lists
		} else {
			from.processesUnknown = true
			t := &target{granularity: EachPod}
			for _, s := range ofPods {
				s.fail(t, err)
			}
		}
	}
	p := r.planner.plan(&from)
	p.cycle, p.node, p.procRoot, p.timeout = r.cycles, r.opt.Node, r.opt.ProcRoot, r.opt.Timeout
	p.self, p.keeper = r.self, r.keeper
	for _, m := range p.gone {
		for _, in := range r.instances {
			m.forget(in.info.Name, r.keeper)
		}
	}
	return p
}

// running returns the running pods, or the previous list if the resolver fails.
func (r *Runner) running() []*owner.Pod {
	err := bounded.Guard(func() { r.ran = r.opt.Pods.Running() })
	if err != nil && !r.blind {
		r.opt.Log.Error("listing the pods failed; the last list is used", "error", err)
	}
	r.blind = err != nil
	return r.ran
}

// listProcesses lists all processes, of pods and of the host, in a separate goroutine: the
// kernel may be slow to answer.
func (r *Runner) listProcesses(pods []*owner.Pod) (processLists, error) {
	wait := time.Duration(0)
	if r.listing != nil && r.listing.Over(0, nil) {
		r.listing = nil // too late to be of use
	}
	if r.listing == nil {
		root, resolver := r.opt.ProcRoot, r.opt.Pods
		wait = r.opt.Timeout
		r.listing = bounded.Begin(func() (processLists, error) { return listProcesses(root, resolver, pods), nil })
	}
	r.beat(wait)
	if !r.listing.Over(wait, r.stop) {
		return processLists{}, r.listing.Hangs("listing the processes")
	}
	lists, err := r.listing.Value, r.listing.Err
	r.listing = nil
	r.beat(0)
	return lists, err
}

// keepAll encodes the probes' state.
func (r *Runner) keepAll() {
	// While containerd is not connected, the list of pods may be incomplete.
	r.keeper.encode(r.plan, func(key string) bool { return r.planner.memories[key] != nil || key == r.planner.unknown.key }, r.enabled, r.opt.Pods.Connected())
}

func (r *Runner) enabled(probe string) bool {
	return slices.ContainsFunc(r.instances, func(in *instance) bool { return in.info.Name == probe })
}

// Keep makes each cycle encode the probes' state, for Kept.
func (r *Runner) Keep() error {
	machine, err := kernel.MachineID(r.opt.ProcRoot)
	if err != nil {
		return err
	}
	r.keeper.machine, r.keeper.sample = machine, r.gaps.keep
	return nil
}

// KeepAlso saves state that is not a probe's, under a name that is not a probe's. Call it
// before Recall. The state is encoded in each cycle and by KeepAtEnd.
func (r *Runner) KeepAlso(name string, s Kept) {
	r.keeper.also = append(r.keeper.also, alsoKept{name, s})
}

// KeepAtEnd encodes the state again, for Kept, with changes since the last cycle. Call it
// after Run or Close.
func (r *Runner) KeepAtEnd() {
	if r.plan != nil {
		r.keepAll()
	}
}

// Kept returns the encoded state of the last cycle, and how many targets did not fit. The
// bytes stay valid during the next cycle.
func (r *Runner) Kept() (data []byte, cut int) { return r.keeper.buf, r.keeper.cut }

// Recall continues the counters from an earlier process's Kept. It takes either all of the
// state or nothing. Call it after Keep and before the first cycle.
func (r *Runner) Recall(data []byte) error {
	err := r.keeper.use(data)
	if r.keeper.before != nil {
		r.gaps.recall(r.keeper.before)
	}
	return err
}

// cookieOf is kernel.NetnsCookie of the namespace at path; 0 if the thread cannot enter it.
func (r *Runner) cookieOf(path string, inode uint64) uint64 {
	if inode == r.self.inode {
		return kernel.NetnsCookie()
	}
	var cookie uint64
	_ = kernel.InNetns(path, inode, func() error {
		cookie = kernel.NetnsCookie()
		return nil
	})
	return cookie
}
