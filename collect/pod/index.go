// Package pod tells who is behind a network namespace, a process, a control
// group or an address. It follows containerd: it lists what runs, and then
// listens to its events. Kubernetes is never asked.
package pod

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// A pod that has ended can be found for this long, if no more than this many
// have ended meanwhile.
const (
	keepEnded = 60 * time.Second
	maxEnded  = 1024
	// The number of its network namespace is given up sooner: the next namespace
	// that anybody makes may have it. Events come within a second or two.
	keepNetns = 5 * time.Second
)

// rank says which of two pods an inode number or an address stands for.
type rank uint8

const (
	ended   rank = iota // no longer there
	waiting             // its network namespace is there, but nothing runs in it
	running
)

// record is what the Index has of one pod.
type record struct {
	pod   *owner.Pod
	rank  rank
	since time.Time // of its rank
	// stopped is when it last ran, as far as is known. From then on its network
	// namespace may end, and another one get the number.
	stopped time.Time
	traces
}

// traces are what a pod can be found by.
type traces struct {
	netns  []uint64
	addrs  []netip.Addr
	groups []uint64 // v2 control groups
	pids   []int
	starts []uint64 // of pids
	paths  []string // of its containers' control groups, and its own
}

// beats reports whether a rather than b is found by what they have in common.
// Numbers and addresses are used again, so what runs comes first, then what
// is younger.
func (a *record) beats(b *record) bool {
	if a.rank != b.rank {
		return a.rank > b.rank
	}
	return a.pod.Started.After(b.pod.Started)
}

// lookup finds records by one kind of trace.
type lookup[K comparable] struct {
	m    map[K]*record
	keys func(*record) []K
}

func newLookup[K comparable](keys func(*record) []K) lookup[K] {
	return lookup[K]{map[K]*record{}, keys}
}

// update makes r found by what it has now, and no longer by what it had.
// Where r may have lost to another, lowered, the best of all is looked for.
func (l *lookup[K]) update(r, had *record, lowered bool, all map[key]*record) {
	keys := l.keys(r)
	for _, k := range l.keys(had) {
		if l.m[k] != r || !lowered && slices.Contains(keys, k) {
			continue
		}
		delete(l.m, k)
		for _, o := range all {
			if slices.Contains(l.keys(o), k) {
				l.add(o, k)
			}
		}
	}
	for _, k := range keys {
		l.add(r, k)
	}
}

func (l *lookup[K]) add(r *record, k K) {
	if cur := l.m[k]; cur == nil || r.beats(cur) {
		l.m[k] = r
	}
}

// Index knows the pods that run here, and for a while those that ran. It is a
// collect.Pods.
type Index struct {
	procRoot string

	mu      sync.RWMutex
	records map[key]*record
	netns   lookup[uint64]
	addrs   lookup[netip.Addr]
	groups  lookup[uint64]
	pids    lookup[int]
	paths   lookup[string]

	list      atomic.Pointer[[]*owner.Pod] // nil: to be made anew
	unified   atomic.Pointer[hierarchy]    // the v2 tree, if there is one
	connected atomic.Bool
	labels    atomic.Pointer[[]string] // see KeepLabels
	relabel   chan struct{}

	status struct {
		sync.Mutex
		Status
	}
	first chan struct{} // closed when the first listing is there
	tried chan struct{} // closed when every socket has been tried in vain
	done  chan struct{} // closed at the end
}

var _ owner.Pods = (*Index)(nil)

func newIndex(procRoot string) *Index {
	x := &Index{
		procRoot: procRoot,
		records:  map[key]*record{},
		netns:    newLookup(func(r *record) []uint64 { return r.netns }),
		addrs:    newLookup(func(r *record) []netip.Addr { return r.addrs }),
		groups:   newLookup(func(r *record) []uint64 { return r.groups }),
		pids:     newLookup(func(r *record) []int { return r.pids }),
		paths:    newLookup(func(r *record) []string { return r.paths }),
		relabel:  make(chan struct{}, 1),
		first:    make(chan struct{}),
		tried:    make(chan struct{}),
		done:     make(chan struct{}),
	}
	return x
}

// KeepLabels names the labels of pods that are kept in any case, in place of
// those of Options. Pods that were known before have them soon.
func (x *Index) KeepLabels(names []string) {
	if slices.Equal(names, x.keptLabels()) {
		return
	}
	x.labels.Store(&names)
	select {
	case x.relabel <- struct{}{}:
	default:
	}
}

func (x *Index) keptLabels() []string {
	if l := x.labels.Load(); l != nil {
		return *l
	}
	return nil
}

// update brings all lookups up to date after r has changed.
func (x *Index) update(r, had *record, lowered bool) {
	x.netns.update(r, had, lowered, x.records)
	x.addrs.update(r, had, lowered, x.records)
	x.groups.update(r, had, lowered, x.records)
	x.pids.update(r, had, lowered, x.records)
	x.paths.update(r, had, lowered, x.records)
}

// put sets what is known of a pod. Where that is what was known already,
// the Pod that was handed out stays.
func (x *Index) put(k key, p *owner.Pod, to rank, t traces, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := x.records[k]
	if r == nil {
		r = &record{pod: p, since: now}
		x.records[k] = r
	} else if same(r.pod, p) {
		if p = r.pod; r.rank == to && r.traces.equal(&t) {
			return
		}
	}
	had := *r
	if r.rank != to {
		r.since = now
	}
	if to == running || r.rank == running || r.stopped.IsZero() {
		r.stopped = now
	}
	if r.rank == running || to == running {
		x.list.Store(nil)
	}
	r.pod, r.rank, r.traces = p, to, t
	x.update(r, &had, to < had.rank || p.Started.Before(had.pod.Started))
}

// end changes the rank of a pod that no longer runs. What it was found by goes
// on leading to it.
func (x *Index) end(k key, to rank, now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r := x.records[k]
	if r == nil || r.rank == to {
		return
	}
	if r.rank == running {
		x.list.Store(nil)
		r.stopped = now
	}
	had := *r
	r.rank, r.since = to, now
	x.update(r, &had, true)
}

// prune forgets pods that have ended long ago, or that are too many.
func (x *Index) prune(now time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var old []key
	for k, r := range x.records {
		if r.rank == ended {
			old = append(old, k)
			if len(r.netns) > 0 && now.Sub(r.since) >= keepNetns {
				had := *r
				r.netns = nil
				x.update(r, &had, true)
			}
		}
	}
	slices.SortFunc(old, func(a, b key) int { return x.records[a].since.Compare(x.records[b].since) })
	for i, k := range old {
		r := x.records[k]
		if now.Sub(r.since) < keepEnded && len(old)-i <= maxEnded {
			break
		}
		delete(x.records, k)
		had := *r
		r.traces = traces{}
		x.update(r, &had, true)
	}
}

func same(a, b *owner.Pod) bool {
	return a.ID == b.ID && a.Namespace == b.Namespace && a.Name == b.Name && a.UID == b.UID &&
		a.HostNetwork == b.HostNetwork && a.Netns == b.Netns && a.NetnsPath == b.NetnsPath &&
		a.Started.Equal(b.Started) && slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.PIDs, b.PIDs) &&
		slices.Equal(a.Cgroups, b.Cgroups) && slices.Equal(a.Alone, b.Alone) && slices.Equal(a.Reapers, b.Reapers) &&
		(a.ProcessesErr == nil) == (b.ProcessesErr == nil) && maps.Equal(a.Labels, b.Labels)
}

func (t *traces) equal(o *traces) bool {
	return slices.Equal(t.netns, o.netns) && slices.Equal(t.addrs, o.addrs) && slices.Equal(t.groups, o.groups) &&
		slices.Equal(t.pids, o.pids) && slices.Equal(t.starts, o.starts) && slices.Equal(t.paths, o.paths)
}

// Running returns the pods with a process, sorted by namespace, name and
// start. The slice is the same until something changes, and is not to be
// written to.
func (x *Index) Running() []*owner.Pod {
	if l := x.list.Load(); l != nil {
		return *l
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	list := make([]*owner.Pod, 0, len(x.records))
	for _, r := range x.records {
		if r.rank == running {
			list = append(list, r.pod)
		}
	}
	slices.SortFunc(list, func(a, b *owner.Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name),
			a.Started.Compare(b.Started), strings.Compare(a.ID, b.ID))
	})
	x.list.Store(&list) // writers wait for the lock, so nothing newer is overwritten
	return list
}

func podOf(r *record) *owner.Pod {
	if r == nil {
		return nil
	}
	return r.pod
}

// ByNetns returns the pod whose network namespace had that inode number at a
// time: for one that several containers share, the sandbox's or that of the first.
// The host's is nobody's.
//
// The kernel gives the next namespace the lowest number that is free, which is
// often that of a pod that has just ended. So what was seen after a pod had stopped
// is the pod's only while its namespace is still there.
func (x *Index) ByNetns(inode uint64, at time.Time) *owner.Pod {
	x.mu.RLock()
	r := x.netns.m[inode]
	if r == nil {
		x.mu.RUnlock()
		return nil
	}
	p, sure := r.pod, r.rank == running || !at.After(r.stopped)
	x.mu.RUnlock()
	if sure {
		return p
	}
	if n, err := netnsInode(p.NetnsPath); err != nil || n != inode {
		return nil
	}
	return p
}

// ByAddr returns the pod that has the address, mapped or not.
func (x *Index) ByAddr(a netip.Addr) *owner.Pod {
	a = a.WithZone("").Unmap()
	x.mu.RLock()
	defer x.mu.RUnlock()
	return podOf(x.addrs.m[a])
}

// ByPID returns the pod that a process, or a thread, is in, by its control
// groups. A process that has ended is found if it was the first of a container.
func (x *Index) ByPID(pid int) *owner.Pod {
	if pid <= 0 {
		return nil
	}
	var buf [2048]byte
	data, err := readProc(x.procRoot, pid, "cgroup", buf[:0])
	if err == nil && inRoots(data) {
		// In cgroup v1 so is a process whose first thread has ended.
		if dir := kernel.ProcessDir(x.procRoot, pid); strings.Contains(dir, "/task/") {
			data, err = kernel.ReadFile(unix.AT_FDCWD, dir+"/cgroup", data[:0])
		}
	}
	owner, first, start := x.ownerOrFirst(data, pid)
	if owner != nil {
		return owner
	}
	if first != nil && err == nil {
		// It must still be the process that was the container's first. The
		// lock is not held meanwhile: the kernel may be slow to answer.
		if s, err := kernel.ReadStat(x.procRoot, pid); err == nil && start != s.Start {
			return nil
		}
	}
	return first
}

// ownerOrFirst finds the pod whose /proc/PID/cgroup data is, else the one of
// which pid was a container's first process, which started then.
func (x *Index) ownerOrFirst(data []byte, pid int) (owner, first *owner.Pod, start uint64) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r := x.ownerOf(data); r != nil {
		return r.pod, nil, 0
	}
	if r := x.pids.m[pid]; r != nil {
		return nil, r.pod, r.starts[slices.Index(r.pids, pid)]
	}
	return nil, nil, 0
}

// ownerOf finds whose /proc/PID/cgroup data is.
func (x *Index) ownerOf(data []byte) *record {
	var last []byte
	for _, path, rest, ok := nextCgroup(data); ok; _, path, rest, ok = nextCgroup(rest) {
		if string(path) == string(last) {
			continue
		}
		if r := x.owner(path); r != nil {
			return r
		}
		last = path
	}
	return nil
}

// inRoots reports whether a /proc/PID/cgroup shows the root of each v1 tree.
func inRoots(data []byte) bool {
	v1 := false
	for c, path, rest, ok := nextCgroup(data); ok; c, path, rest, ok = nextCgroup(rest) {
		if len(c) == 0 {
			continue
		}
		if v1 = true; len(path) > 1 {
			return false
		}
	}
	return v1
}

// owner finds whose control group a path is in, from the innermost outwards:
// containers may be nested. It goes by whole paths, which containerd has given. A
// group of that name may be anywhere else, where a user may make groups.
func (x *Index) owner(path []byte) *record {
	for len(path) > 1 {
		if r := x.paths.m[string(path)]; r != nil {
			return r
		}
		path = path[:max(0, bytes.LastIndexByte(path, '/'))]
	}
	return nil
}

// ByCgroup returns the pod that a v2 control group, or one above it, belongs
// to. id is the inode number of its directory, which is what
// bpf_get_current_cgroup_id gives.
func (x *Index) ByCgroup(id uint64) *owner.Pod {
	x.mu.RLock()
	p := podOf(x.groups.m[id])
	x.mu.RUnlock()
	if p != nil {
		return p
	}
	tree := x.unified.Load()
	if tree == nil || id == 0 {
		return nil
	}
	var buf [unix.PathMax]byte
	path, err := cgroupPath(tree, id, buf[:])
	if err != nil {
		return nil // it is gone
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	return podOf(x.owner(path))
}

// Processes appends to buf the processes in the control groups of p's
// containers and below, without duplicates and in order. Where p has no
// control group of its own, they are the first processes of its containers. After an
// error some may be missing.
func (x *Index) Processes(p *owner.Pod, buf []int) ([]int, error) {
	if len(p.Cgroups) == 0 {
		return append(buf, p.PIDs...), p.ProcessesErr
	}
	start := len(buf)
	firstErr := p.ProcessesErr
	buf = append(buf, p.Alone...)
	for _, dir := range p.Cgroups {
		var err error
		if buf, err = appendProcesses(dir, buf); err != nil && firstErr == nil {
			firstErr = err
		}
	}
	slices.Sort(buf[start:])
	return buf[:start+len(slices.Compact(buf[start:]))], firstErr
}

// Connected reports whether containerd answers and its pods are known.
func (x *Index) Connected() bool { return x.connected.Load() }

// Status tells how containerd is reached.
type Status struct {
	// Socket is that of the containerd in use, "" if none answers.
	Socket string
	// Version is what it calls itself.
	Version string
	// Err says why none answers.
	Err error
}

// Status tells how containerd is reached now.
func (x *Index) Status() Status {
	x.status.Lock()
	defer x.status.Unlock()
	return x.status.Status
}

func (x *Index) setStatus(s Status) {
	x.status.Lock()
	x.status.Status = s
	x.status.Unlock()
}

// Sync waits until the pods that run are known for the first time. It fails
// if no socket answers when each has been tried, or when ctx ends; the Index
// goes on trying.
func (x *Index) Sync(ctx context.Context) error {
	select {
	case <-x.first:
		return nil
	default:
	}
	select {
	case <-x.first:
		return nil
	case <-x.tried:
		select {
		case <-x.first:
			return nil
		default:
		}
		if err := x.Status().Err; err != nil {
			return err
		}
		return errNotKnown
	case <-x.done:
		return context.Canceled
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Wait returns when all that Watch started has ended, after its ctx has.
func (x *Index) Wait() { <-x.done }
