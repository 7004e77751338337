package collect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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
	Labels []LabelTemplate
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
	Pods      Pods
	Log       *slog.Logger
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

	cycles uint64 // begun so far
	born   time.Time
	due    atomic.Int64 // when the loop must have shown that it gets on, since born

	mu     sync.Mutex
	status []ProbeStatus
	self   []func(add func(m string, value float64, labels ...string))
}

// instance is one enabled probe.
type instance struct {
	info  *ProbeInfo
	probe Probe // nil: could not be built yet
	err   error // why not
	opts  map[string]any
	retry time.Time
	delay time.Duration

	lacks  string // what it does not see, as logged last
	logged string // the failure that was logged last, "" while up
	downs  int    // cycles since then

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
)

// NewRunner builds a Runner from the probes that the program contains.
func NewRunner(opt Options, factories ...Factory) (*Runner, error) {
	r := &Runner{factories: map[string]Factory{}, targets: map[string]*target{}, keeper: newKeeper(), born: time.Now()}
	r.unknown = &target{key: "unknown", over: EachNetns, unknown: true}
	for _, f := range factories {
		r.factories[f.Name] = f
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open this process's network namespace /proc/thread-self/ns/net: %w (is procfs mounted on /proc?)", err)
	}
	r.selfNetnsFD = fd
	if r.selfNetns, err = NetnsInode("/proc/thread-self/ns/net"); err != nil {
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
	if opt.ProcRoot == "" {
		opt.ProcRoot = "/proc"
	}
	if opt.Pods == nil {
		opt.Pods = NoPods{}
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Timeout <= 0 {
		opt.Timeout = 2 * time.Second
	}
	for _, g := range opt.Exclude {
		if _, err := path.Match(g, ""); err != nil {
			return fmt.Errorf("metrics to exclude: %q is not a glob: %w", g, err)
		}
	}
	hostPath, pids := opt.HostNetns, []int(nil)
	if hostPath == "" {
		hostPath, pids = opt.ProcRoot+"/1/ns/net", []int{1}
	}
	host, err := NetnsInode(hostPath)
	if err != nil {
		return fmt.Errorf("find the host's network namespace: %w (it needs CAP_SYS_PTRACE)", err)
	}
	if host == r.selfNetns {
		pids = append([]int{os.Getpid()}, pids...)
	}

	var next []*instance
	for _, name := range opt.Enabled {
		info := ProbeByName(name)
		if info == nil {
			return fmt.Errorf("unknown probe %q", name)
		}
		next = append(next, &instance{info: info, opts: probeOptions(info, opt.Probes[info.Name])})
	}
	slices.SortFunc(next, func(a, b *instance) int { return strings.Compare(a.info.Name, b.info.Name) })
	next = slices.CompactFunc(next, func(a, b *instance) bool { return a.info == b.info })

	hostKey := fmt.Sprintf("host %d %x", host, r.cookieOf(hostPath, host))
	sameHost := r.hostKey == hostKey && r.opt.ProcRoot == opt.ProcRoot
	r.opt, r.hostNetns, r.hostKey, r.hostPath, r.hostPIDs = opt, host, hostKey, hostPath, pids
	kept := map[*instance]bool{}
	for i, n := range next {
		for _, old := range r.instances {
			if sameHost && old.info == n.info && reflect.DeepEqual(old.opts, n.opts) {
				next[i], kept[old] = old, true
			}
		}
	}
	for _, old := range r.instances {
		if !kept[old] {
			r.drop(old)
		}
	}
	r.instances = next
	for _, t := range r.targets {
		t.labels = labelSet{} // made anew from the new templates
	}
	r.fam.apply(opt)
	return nil
}

func probeOptions(info *ProbeInfo, given map[string]any) map[string]any {
	o := make(map[string]any, len(info.Options))
	for _, d := range info.Options {
		if d.Obsolete == "" {
			o[d.Key] = d.Default
		}
	}
	maps.Copy(o, given)
	return o
}

// drop closes an instance and forgets what it remembered.
func (r *Runner) drop(in *instance) {
	if in.probe != nil {
		if err := in.probe.Close(); err != nil {
			r.opt.Log.Warn("closing a probe failed", "probe", in.info.Name, "error", err)
		}
		in.probe = nil
	}
	for _, t := range r.targets {
		r.forget(t, in)
	}
	r.forget(r.unknown, in)
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

// Close closes all probes.
func (r *Runner) Close() {
	for _, in := range r.instances {
		r.drop(in)
	}
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

// Run samples until ctx ends: at once, and then each interval. sink gets the
// families of every cycle; they are valid until it returns. What between
// delivers is called between two cycles, and may Apply; a cycle follows at once.
func (r *Runner) Run(ctx context.Context, sink func([]*dto.MetricFamily), between <-chan func()) {
	next := time.Now()
	for ctx.Err() == nil {
		sink(r.Cycle())
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
	return r.fam.build(r, start)
}

// build makes the probes that could not be made so far.
func (r *Runner) build(now time.Time) {
	for _, in := range r.instances {
		in.failed, in.failedOn, in.firstErr, in.took = 0, nil, nil, 0
		in.protected, in.protectedErr = 0, nil
		if in.probe != nil || now.Before(in.retry) {
			continue
		}
		in.probe, in.err = r.create(in)
		r.beat(0)
		if in.err != nil {
			in.delay = min(max(2*in.delay, minRetry), maxRetry)
			in.retry = now.Add(in.delay)
		}
	}
}

func (r *Runner) create(in *instance) (p Probe, err error) {
	f, ok := r.factories[in.info.Name]
	if !ok {
		return nil, ErrNotBuilt
	}
	defer func() {
		if v := recover(); v != nil {
			p, err = nil, panicError(v)
		}
	}()
	return f.New(Env{Options: in.opts, ProcRoot: r.opt.ProcRoot, HostNetns: r.hostPath, Once: r.opt.Once, Pods: r.opt.Pods, Log: r.opt.Log.With("probe", in.info.Name)})
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
	add := func(key string, over Over, pod *Pod, inode uint64, pids []int, path string) *target {
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
	r.unknown.labels = newLabelSet(r.opt.Node, UnknownLabel, UnknownLabel, nil, r.opt.Labels)

	var wantPIDs bool
	for _, in := range r.instances {
		wantPIDs = wantPIDs || in.probe != nil && in.probe.Over() == EachPod
	}
	pods := r.opt.Pods.Running()
	var lists processLists
	if wantPIDs {
		lists = listProcesses(r.opt.ProcRoot, r.opt.Pods, pods)
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

func (r *Runner) labelsOf(p *Pod) labelSet {
	ns, name := r.opt.HostLabel, r.opt.HostLabel
	if p != nil {
		ns, name = p.Namespace, p.Name
	}
	return newLabelSet(r.opt.Node, ns, name, p, r.opt.Labels)
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
		if h, ok := in.probe.(Hooked); ok {
			s.Hook, s.Lacks = h.Hook()
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

// selfValues adds the values of the tool about itself.
func (r *Runner) selfValues(start time.Time, add func(string, float64, ...string)) {
	add("nodeskoop_build_info", 1, r.opt.Version, runtime.Version())
	add("nodeskoop_last_cycle_timestamp_seconds", float64(start.UnixMilli())/1000)
	add("nodeskoop_cycles_missed_total", float64(r.missed))
	add("nodeskoop_pods", float64(len(r.opt.Pods.Running())))
	add("nodeskoop_containerd_up", boolValue(r.opt.Pods.Connected()))
	for _, s := range r.Status() {
		add("nodeskoop_probe_up", boolValue(s.Up), s.Name)
		add("nodeskoop_probe_duration_seconds", s.Duration.Seconds(), s.Name)
		add("nodeskoop_probe_failed_targets", float64(s.Failed), s.Name)
		if in := ProbeByName(s.Name); slices.ContainsFunc(in.Metrics, func(m Metric) bool { return m.Scope == PerPod }) {
			add("nodeskoop_probe_protected_processes", float64(s.Protected), s.Name)
		}
		if s.Hook != "" {
			add("nodeskoop_probe_hook", 1, s.Name, s.Hook)
		}
	}
	for _, f := range r.self {
		f(add)
	}
	add("nodeskoop_last_cycle_duration_seconds", time.Since(start).Seconds())
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
