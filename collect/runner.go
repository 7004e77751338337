// Package collect is the sampling engine: the View through which a probe reads the
// kernel, the rows that it yields, and the Runner that samples all probes each
// interval, keeps them from harming one another, and makes the rows metric
// families.
package collect

import (
	"context"
	"errors"
	"fmt"
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

// Options say what a Runner samples and how it labels it.
type Options struct {
	// Node is the value of k8s_node, HostLabel of both pod labels for the
	// host's own series.
	Node, HostLabel string
	// Version is this build's, for nodeskoop_build_info.
	Version string
	// Interval is the time between two cycles, Timeout the longest that one
	// probe may take on one target before it is given up.
	Interval, Timeout time.Duration
	// Once says that there will be no more than a cycle or two: what takes time
	// to set up, to save more in each cycle, is not worth it.
	Once bool
	// Enabled names the probes to run; Probes holds their options by name.
	Enabled []string
	Probes  map[string]map[string]any
	// Labels are the user's own labels.
	Labels []owner.LabelTemplate
	// CompatNames adds the metrics that have an Alias.
	CompatNames bool
	// Exclude holds globs (path.Match) of metric names to leave out.
	Exclude []string
	// SkipZero leaves out counters of a pod that have been 0 since the start.
	SkipZero bool
	// MaxSeries is the most series of one cycle; 0: no limit.
	MaxSeries int
	// ProcRoot is where procfs is mounted; "" means /proc.
	ProcRoot string
	// HostNetns is a file that is the host's network namespace; "" means
	// that of process 1, which takes CAP_SYS_PTRACE to find.
	HostNetns string
	// Refused says why a probe may not run, by name: what it would give is not
	// the host's.
	Refused map[string]error
	Pods    owner.Pods
	Log     *slog.Logger
}

// ProbeStatus tells how one probe did in the last cycle.
type ProbeStatus struct {
	Name string
	Up   bool
	// Err is the first failure of the cycle, nil if Up.
	Err error
	// Failed counts the targets that lack values.
	Failed   int
	Duration time.Duration
	// Protected counts the processes that the kernel shows to nobody.
	Protected int
	// Hook names the ways in which a probe is attached to the kernel, Lacks
	// says what the probe cannot see.
	Hook  string
	Lacks []string
}

// Runner samples the probes of the Catalogue, each interval or once, and
// turns their values into metric families.
type Runner struct {
	opt       Options
	factories map[string]Factory

	selfNetns, hostNetns uint64
	hostKey              string // identifies the host's namespace
	selfNetnsFD          int
	hostPIDs             []int
	hostPath             string

	instances []*instance
	targets   map[string]*target
	host      *target
	unknown   *target            // what belongs to no known namespace
	netns     map[uint64]*target // this cycle's, never changed once made
	ordered   []*target          // this cycle's, in order of output
	rows      []Row
	fam       families
	missed    uint64
	told      map[string]bool // pods that are left out because of their labels, by ID
	keeper    *keeper
	mute      bool // the last askSelf failed
	ran       []*owner.Pod
	blind     bool // the last call for the pods failed

	// Calls that may hang, made beside the loop; nil: none is under way.
	listing *bounded.Call[processLists]
	asking  *bounded.Call[[]selfValue]
	handing *bounded.Call[struct{}] // of the families to the sink
	addrs   nodeAddrs
	pods    currentPods

	stop <-chan struct{} // closed when Run is to end; nil outside of Run

	cycles uint64 // begun so far
	born   time.Time
	due    atomic.Int64 // when the loop must have shown that it gets on, since born

	mu     sync.Mutex
	status []ProbeStatus
	self   []func(add func(m string, value float64, labels ...string))
}

// instance is one enabled probe.
type instance struct {
	info  *catalog.Probe
	probe Probe // nil: could not be built yet
	err   error // why not
	opts  map[string]any
	// refused says why it may not run.
	refused error
	retry   time.Time
	delay   time.Duration
	// loading is the call that makes the probe; nil: none is under way.
	loading *bounded.Call[Probe]

	hook   string   // the ways in which it is attached, as it said last
	blind  []string // what it cannot see by them
	lacks  string   // what it does not see, as logged last
	logged string   // the failure that was logged last, "" while up
	downs  int      // cycles since then

	// of the cycle
	failed   int
	failedOn *target
	firstErr error

	protected    int
	protectedErr error
	told         bool // of protected processes
	took         time.Duration
}

const (
	minRetry    = 5 * time.Second
	maxRetry    = 5 * time.Minute
	maxOrphans  = 4 // workers that may hang on one target at a time
	pollOrphans = 20 * time.Millisecond

	// loadWait is for how many timeouts a cycle waits for one probe to be made
	// before it goes on without, and minLoadWait how long at least: the kernel's
	// verifier may take seconds on a slow machine. One that is not ready by then
	// is taken up when it is.
	loadWait    = 10
	minLoadWait = time.Second
	// handWait is how long a cycle waits for the sink.
	handWait = 4 * time.Second
	// closeWait is how long detaching probes may hold up a reload or the end:
	// the kernel's grace periods are short, only a lock that another program
	// holds is not.
	closeWait = 5 * time.Second
)

// NewRunner builds a Runner from the probes that the program contains.
func NewRunner(opt Options, factories ...Factory) (*Runner, error) {
	r := &Runner{factories: map[string]Factory{}, targets: map[string]*target{}, keeper: newKeeper(), born: time.Now()}
	r.unknown = &target{key: "unknown", over: EachNetns, unknown: true}
	for _, f := range factories {
		r.factories[f.Name] = f
	}
	fd, err := kernel.Open(unix.AT_FDCWD, kernel.OwnNetns, 0)
	if err != nil {
		return nil, fmt.Errorf("open this process's network namespace /proc/thread-self/ns/net: %w (is procfs mounted on /proc?)", err)
	}
	r.selfNetnsFD = fd
	if r.selfNetns, err = kernel.FileInode(fd); err != nil {
		return nil, fmt.Errorf("find this process's network namespace: %w", err)
	}
	if err := r.Apply(opt); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return r, nil
}

// Apply changes the options between two cycles. Probes whose own options stay
// as they were keep what they remember. On an error nothing is changed.
func (r *Runner) Apply(opt Options) error {
	commit, err := r.Prepare(opt)
	if err != nil {
		return err
	}
	commit()
	return nil
}

// Prepare is the part of Apply that can fail, and that may take time: it may be
// called from any goroutine. What it returns cannot fail, and must be called
// between two cycles.
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
	for _, g := range opt.Exclude {
		if _, err := path.Match(g, ""); err != nil {
			return nil, fmt.Errorf("metrics to exclude: %q is not a glob: %w", g, err)
		}
	}
	hostPath, pids := opt.HostNetns, []int(nil)
	if hostPath == "" {
		hostPath, pids = opt.ProcRoot+"/1/ns/net", []int{1}
	}
	host, err := kernel.Inode(hostPath)
	if err != nil {
		return nil, fmt.Errorf("find the host's network namespace: %w (it needs CAP_SYS_PTRACE)", err)
	}
	if host == r.selfNetns {
		pids = append([]int{ownPID(opt.ProcRoot)}, pids...)
	}

	var next []*instance
	for _, name := range opt.Enabled {
		info := catalog.ProbeByName(name)
		if info == nil {
			return nil, fmt.Errorf("unknown probe %q", name)
		}
		next = append(next, &instance{info: info, opts: probeOptions(info, opt.Probes[info.Name]), refused: opt.Refused[info.Name]})
	}
	slices.SortFunc(next, func(a, b *instance) int { return strings.Compare(a.info.Name, b.info.Name) })
	next = slices.CompactFunc(next, func(a, b *instance) bool { return a.info == b.info })

	hostKey := fmt.Sprintf("host %d %x", host, r.cookieOf(hostPath, host))
	return func() { r.commit(opt, host, hostKey, hostPath, pids, next) }, nil
}

func (r *Runner) commit(opt Options, host uint64, hostKey, hostPath string, pids []int, next []*instance) {
	sameHost := r.hostKey == hostKey && r.opt.ProcRoot == opt.ProcRoot
	r.opt, r.hostNetns, r.hostKey, r.hostPath, r.hostPIDs = opt, host, hostKey, hostPath, pids
	r.pods.set(opt.Pods)
	kept := map[*instance]bool{}
	for i, n := range next {
		for _, old := range r.instances {
			if sameHost && old.info == n.info && reflect.DeepEqual(old.opts, n.opts) && sameError(opt.Refused[n.info.Name], old.refused) {
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
	for _, t := range r.targets {
		t.labels = labelSet{} // made anew from the new templates
	}
	r.fam.apply(opt)
}

func probeOptions(info *catalog.Probe, given map[string]any) map[string]any {
	o := make(map[string]any, len(info.Options))
	for _, d := range info.Options {
		if d.Obsolete == "" {
			o[d.Key] = d.Default
		}
	}
	maps.Copy(o, given)
	return o
}

// ownPID is this process's number under procfs, which may be of another PID
// namespace than the process is in.
func ownPID(root string) int {
	if name, err := os.Readlink(root + "/self"); err == nil {
		if pid, err := strconv.Atoi(name); err == nil {
			return pid
		}
	}
	return os.Getpid()
}

// forget ends what an instance remembers of a target. What is to be kept goes
// to the keeper: the next instance goes on from it.
func (r *Runner) forget(t *target, in *instance) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s, ok := t.state[in.info.Name].(Kept); ok && len(t.stuck) == 0 && !t.hung[in] {
		r.keeper.put(t.key, in.info.Name, s)
	}
	delete(t.state, in.info.Name)
	delete(t.hung, in)
}

func sameError(a, b error) bool {
	return (a == nil) == (b == nil) && (a == nil || a.Error() == b.Error())
}

// drop closes instances, side by side, and forgets what they remembered. One
// that hangs goes on to be closed when the kernel lets it.
func (r *Runner) drop(list []*instance) {
	closings := map[*instance]*bounded.Call[struct{}]{}
	for _, in := range list {
		if probe, loading := in.probe, in.loading; probe != nil || loading != nil {
			closings[in] = bounded.Begin(func() (none struct{}, err error) {
				if loading != nil {
					<-loading.Done
					probe = loading.Value
				}
				if probe != nil {
					err = probe.Close()
				}
				return none, err
			})
		}
		in.probe, in.loading = nil, nil
		for _, t := range r.targets {
			r.forget(t, in)
		}
		r.forget(r.unknown, in)
	}
	deadline := time.Now().Add(closeWait)
	r.beat(closeWait)
	for in, c := range closings {
		if !c.Over(time.Until(deadline), nil) {
			r.opt.Log.Warn("closing a probe hangs in the kernel; it goes on beside", "probe", in.info.Name, "error", c.Hangs("closing it"))
		} else if c.Err != nil {
			r.opt.Log.Warn("closing a probe failed", "probe", in.info.Name, "error", c.Err)
		}
	}
	r.beat(0)
}

// Close closes all probes. It waits for a few seconds at most.
func (r *Runner) Close() {
	r.drop(r.instances)
	r.instances = nil
	_ = unix.Close(r.selfNetnsFD)
}

// Self registers a function that adds values of the tool's metrics about
// itself to each cycle.
func (r *Runner) Self(f func(add func(metric string, value float64, labels ...string))) {
	r.self = append(r.self, f)
}

// Status tells how the probes did in the last cycle, by name. It may be
// called from any goroutine.
func (r *Runner) Status() []ProbeStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.status)
}

// Until has a Cycle that is under way end soon once ctx does, whatever hangs.
// What it returns then is a part.
func (r *Runner) Until(ctx context.Context) { r.stop = ctx.Done() }

// Run samples until ctx ends: at once, and then each interval. sink gets the
// families of every cycle; they are valid until it returns. What between
// delivers is called between two cycles, and may Apply; a cycle follows at once.
func (r *Runner) Run(ctx context.Context, sink func([]*dto.MetricFamily), between <-chan func()) {
	next := time.Now()
	r.Until(ctx)
	for ctx.Err() == nil {
		fams := r.Cycle()
		if ctx.Err() != nil {
			break // it may have been cut short
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

// hand gives the families of a cycle to the sink. One that hangs, on a file
// system that does not answer for one, keeps these families and gets no others
// until it has returned; sampling goes on.
func (r *Runner) hand(sink func([]*dto.MetricFamily), fams []*dto.MetricFamily) {
	if r.handing != nil {
		if !r.handing.Over(0, nil) {
			r.missed++
			return
		}
		r.opt.Log.Info("handing over the values works again", "after", time.Since(r.handing.Since).Round(time.Millisecond))
		r.handed()
	}
	r.handing = bounded.Begin(func() (none struct{}, err error) { sink(fams); return none, nil })
	r.beat(handWait)
	// At the end, too, it is waited for: a whole file is about to be there.
	if r.handing.Over(handWait, nil) {
		r.handed()
		return
	}
	r.opt.Log.Error("handing over the values hangs; sampling goes on, and what it samples is lost until then", "error", r.handing.Hangs("writing them"))
	r.fam = families{} // those are the sink's now
	r.fam.apply(r.opt)
}

func (r *Runner) handed() {
	if r.handing.Err != nil {
		r.opt.Log.Error("handing over the values failed", "error", r.handing.Err)
	}
	r.handing = nil
}

// beat notes that the loop gets on, and will do so again after wait.
func (r *Runner) beat(wait time.Duration) { r.due.Store(int64(time.Since(r.born) + wait)) }

// Overdue tells for how long the loop of Run has not got on: in a cycle since
// its last step, between two cycles since the next should have begun. A probe
// that hangs does not hold it up. It may be called from any goroutine.
func (r *Runner) Overdue() time.Duration {
	return max(0, time.Since(r.born)-time.Duration(r.due.Load()))
}

// Cycle samples every probe once and returns the families. They are valid
// until the next Cycle.
func (r *Runner) Cycle() []*dto.MetricFamily {
	start := time.Now()
	r.beat(0)
	r.cycles++
	r.build(start)
	jobs := r.plan()
	r.beat(0)
	r.rows = r.runJobs(jobs, r.rows[:0])
	r.beat(0)
	r.judge()
	r.keepAll()
	values := r.askSelf()
	r.beat(0)
	return r.fam.build(r, start, values)
}

// build makes the probes that could not be made so far.
func (r *Runner) build(now time.Time) {
	for _, in := range r.instances {
		in.failed, in.failedOn, in.firstErr, in.took = 0, nil, nil, 0
		in.protected, in.protectedErr = 0, nil
		if in.probe != nil || in.loading == nil && now.Before(in.retry) {
			continue
		}
		wait := time.Duration(0)
		if in.loading == nil {
			wait = max(loadWait*r.opt.Timeout, minLoadWait)
			in.loading = r.create(in)
		}
		r.beat(wait)
		if !in.loading.Over(wait, r.stop) {
			in.err = in.loading.Hangs("loading it")
			continue
		}
		in.probe, in.err = in.loading.Value, in.loading.Err
		in.loading = nil
		r.beat(0)
		if in.err != nil {
			in.probe = nil
			in.delay = min(max(2*in.delay, minRetry), maxRetry)
			in.retry = now.Add(in.delay)
		}
	}
}

// create begins to make a probe.
func (r *Runner) create(in *instance) *bounded.Call[Probe] {
	f, ok := r.factories[in.info.Name]
	host := r.hostPath
	env := Env{Options: in.opts, ProcRoot: r.opt.ProcRoot, HostNetns: host, Once: r.opt.Once, Pods: &r.pods, Log: r.opt.Log.With("probe", in.info.Name)}
	env.NodeAddrs = func() (map[netip.Addr]struct{}, error) { return r.addrs.list(host) }
	return bounded.Begin(func() (Probe, error) {
		switch {
		case !ok:
			return nil, ErrNotBuilt
		case in.refused != nil:
			return nil, in.refused
		}
		return f.New(env)
	})
}

// ErrNotBuilt says that the program does not contain a probe.
var ErrNotBuilt = errors.New("this program does not contain it")

// plan brings the targets up to date and lists the jobs of the cycle.
func (r *Runner) plan() []*job {
	for _, t := range r.targets {
		t.live = false
	}
	r.ordered = r.ordered[:0]
	var jobs []*job
	add := func(key string, over Over, pod *owner.Pod, inode uint64, pids []int, path string) *target {
		t := r.targets[key]
		if t == nil {
			t = &target{key: key, over: over, inode: inode}
			r.targets[key] = t
		}
		if t.pod != pod || t.labels.pairs == nil {
			t.pod, t.labels = pod, r.labelsOf(pod)
		}
		t.pids, t.path, t.live = pids, path, true
		r.ordered = append(r.ordered, t)
		j := &job{t: t}
		for _, in := range r.instances {
			if in.probe == nil {
				continue
			}
			o := in.probe.Over()
			if o == over || over == EachNetns && pod == nil && o == HostNetns {
				j.run = append(j.run, in)
			}
		}
		if len(j.run) > 0 {
			jobs = append(jobs, j)
		}
		return t
	}
	add("node", Node, nil, 0, nil, "")
	r.host = add(r.hostKey, EachNetns, nil, r.hostNetns, r.hostPIDs, r.hostPath)
	r.netns = map[uint64]*target{r.hostNetns: r.host}
	// Nothing is sampled there: it has labels, and what probes over Node keep.
	r.unknown.labels = newLabelSet(r.opt.Node, owner.UnknownLabel, owner.UnknownLabel, nil, r.opt.Labels)

	var wantPIDs bool
	for _, in := range r.instances {
		wantPIDs = wantPIDs || in.probe != nil && in.probe.Over() == EachPod
	}
	pods := r.running()
	var lists processLists
	if wantPIDs {
		var err error
		if lists, err = r.listProcesses(pods); err != nil {
			// Nothing is known of any process: what is sampled of processes is
			// missing, and what was remembered of them stays.
			wantPIDs = false
			for _, in := range r.instances {
				if in.probe != nil && in.probe.Over() == EachPod {
					in.fail(&target{over: EachPod}, err)
				}
			}
			for _, t := range r.targets {
				t.live = t.live || t.over == EachPod
			}
		}
	}
	speakers := r.speakers(pods)
	for _, p := range pods {
		if speakers[[2]string{p.Namespace, p.Name}] != p {
			continue
		}
		if p.Netns != 0 && !p.HostNetwork && r.netns[p.Netns] == nil {
			r.netns[p.Netns] = add("netns "+p.ID+" "+strconv.FormatUint(p.Netns, 10), EachNetns, p, p.Netns, p.PIDs, p.NetnsPath)
		}
		if wantPIDs {
			l := lists.pods[keyOf(p)]
			if l == nil {
				continue // not there yet when the processes were listed
			}
			t := add("pids "+p.UID+" "+p.Namespace+"/"+p.Name+"/"+plainID(p), EachPod, p, 0, l.pids, "")
			t.err, t.reapers = l.err, l.reapers
		}
	}
	if wantPIDs {
		t := add("pids", EachPod, nil, 0, lists.host.pids, "")
		t.err, t.reapers = lists.host.err, lists.host.reapers
	}
	for key, t := range r.targets {
		if !t.live {
			for _, in := range r.instances {
				r.forget(t, in)
			}
			delete(r.targets, key)
		}
	}
	return jobs
}

func (r *Runner) labelsOf(p *owner.Pod) labelSet {
	ns, name := r.opt.HostLabel, r.opt.HostLabel
	if p != nil {
		ns, name = p.Namespace, p.Name
	}
	return newLabelSet(r.opt.Node, ns, name, p, r.opt.Labels)
}

// running returns the pods that run. Where the resolver fails, they are those
// of before.
func (r *Runner) running() []*owner.Pod {
	err := bounded.Guard(func() { r.ran = r.opt.Pods.Running() })
	if err != nil && !r.blind {
		r.opt.Log.Error("asking for the pods failed; those of before stand in", "error", err)
	}
	r.blind = err != nil
	return r.ran
}

// listProcesses asks for all processes, beside the loop: the kernel may be slow
// to answer. The lists are without pods where nothing is known.
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

// judge turns the outcomes of the cycle into the probes' status, and logs
// what has changed.
func (r *Runner) judge() {
	status := make([]ProbeStatus, 0, len(r.instances))
	// What fails several probes at once is one line.
	failures := map[string][]string{}
	var order []string
	for _, in := range r.instances {
		s := ProbeStatus{Name: in.info.Name, Failed: in.failed, Duration: in.took, Err: in.firstErr}
		if in.probe == nil {
			s.Err = in.err
		}
		s.Up = s.Err == nil
		if in.probe != nil {
			s.Hook, s.Lacks = in.hook, slices.Clone(in.blind)
		}
		if l := strings.Join(s.Lacks, "; "); l != in.lacks {
			if in.lacks = l; l != "" {
				r.opt.Log.Info("probe works in part", "probe", s.Name, "does not see", l)
			}
		}
		if s.Protected = in.protected; in.protected > 0 {
			s.Lacks = append(s.Lacks, in.protectedErr.Error())
			if !in.told {
				in.told = true
				r.opt.Log.Info("some processes are shown to nobody, and are left out", "probe", s.Name, "processes", in.protected, "error", in.protectedErr)
			}
		}
		status = append(status, s)
		switch {
		case !s.Up && in.logged == "":
			in.logged, in.downs = s.Err.Error(), 1
			if failures[in.logged] == nil {
				order = append(order, in.logged)
			}
			name := s.Name
			if s.Failed > 1 {
				name = fmt.Sprintf("%s (%d targets)", s.Name, s.Failed)
			}
			failures[in.logged] = append(failures[in.logged], name)
		case !s.Up:
			in.downs++
		case in.logged != "":
			in.logged = ""
			r.opt.Log.Info("probe works again", "probe", s.Name, "cycles", in.downs)
		}
	}
	for _, err := range order {
		r.opt.Log.Error("probe failed; it is tried again", "probe", strings.Join(failures[err], ", "), "error", err,
			"hint", "nodeskoop check says what to do")
	}
	r.mu.Lock()
	r.status = status
	r.mu.Unlock()
}

// selfValue is one value of the tool about itself.
type selfValue struct {
	metric string
	value  float64
	labels []string
}

// askSelf asks those who registered with Self for their values, beside the
// loop. Those that are not there in time are missing.
func (r *Runner) askSelf() []selfValue {
	if len(r.self) == 0 {
		return nil
	}
	if r.asking != nil && r.asking.Over(0, nil) {
		r.asking = nil
	}
	wait := time.Duration(0)
	if r.asking == nil {
		wait = r.opt.Timeout
		r.asking = bounded.Begin(func() (list []selfValue, err error) {
			for _, f := range r.self {
				f(func(metric string, value float64, labels ...string) {
					list = append(list, selfValue{metric, value, labels})
				})
			}
			return list, nil
		})
	}
	r.beat(wait)
	if !r.asking.Over(wait, r.stop) {
		r.sayMute(r.asking.Hangs("counting what the tool does itself"))
		return nil
	}
	list, err := r.asking.Value, r.asking.Err
	r.asking = nil
	r.sayMute(err)
	if err != nil {
		return nil
	}
	return list
}

// sayMute logs once that askSelf fails.
func (r *Runner) sayMute(err error) {
	if err != nil && !r.mute {
		r.opt.Log.Error("some values of nodeskoop about itself are missing", "error", err)
	}
	r.mute = err != nil
}

// selfValues adds the values of the tool about itself.
func (r *Runner) selfValues(start time.Time, others []selfValue, add func(string, float64, ...string)) {
	add("nodeskoop_build_info", 1, r.opt.Version, runtime.Version())
	add("nodeskoop_last_cycle_timestamp_seconds", float64(start.UnixMilli())/1000)
	add("nodeskoop_cycles_missed_total", float64(r.missed))
	add("nodeskoop_pods", float64(len(r.ran)))
	add("nodeskoop_containerd_up", boolValue(r.opt.Pods.Connected()))
	for _, s := range r.Status() {
		add("nodeskoop_probe_up", boolValue(s.Up), s.Name)
		add("nodeskoop_probe_duration_seconds", s.Duration.Seconds(), s.Name)
		add("nodeskoop_probe_failed_targets", float64(s.Failed), s.Name)
		if in := catalog.ProbeByName(s.Name); slices.ContainsFunc(in.Metrics, func(m catalog.Metric) bool { return m.Scope == catalog.PerPod }) {
			add("nodeskoop_probe_protected_processes", float64(s.Protected), s.Name)
		}
		if s.Hook != "" {
			add("nodeskoop_probe_hook", 1, s.Name, s.Hook)
		}
	}
	for _, v := range others {
		add(v.metric, v.value, v.labels...)
	}
	add("nodeskoop_last_cycle_duration_seconds", time.Since(start).Seconds())
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
