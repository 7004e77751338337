// Package pod finds the pod behind a network namespace, a process, a control group or an
// address. It follows containerd: it lists the containers and then listens to its events.
// It never asks Kubernetes.
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

// An ended pod can be found for keepEnded, and at most maxEnded of them.
const (
	keepEnded = 60 * time.Second
	maxEnded  = 1024
	// keepNetns is how long the inode number of an ended pod's network namespace is kept.
	// It is short, since the next namespace may get the number. Events arrive within a
	// second or two.
	keepNetns = 5 * time.Second
)

// rank decides which of two pods owns a shared inode number or address.
type rank uint8

const (
	ended   rank = iota // no longer exists
	waiting             // its network namespace exists, but no task runs in it
	running
)

// record is the Index's entry of one pod.
type record struct {
	pod   *owner.Pod
	rank  rank
	since time.Time // start of this rank
	// stopped is when the pod last ran, as far as known. After that its network
	// namespace may end, and a new namespace may get the number.
	stopped time.Time
	traces
}

// traces are the keys by which a pod is found.
type traces struct {
	netns  []uint64
	addrs  []netip.Addr
	groups []uint64 // v2 control groups
	pids   []int
	starts []uint64 // start times of pids
	paths  []string // control groups of its containers, and the pod's own
}

// beats reports whether a wins over b for a key that both have. Inode numbers and
// addresses are reused, so a running pod wins over an ended one, and then the younger
// pod.
func (a *record) beats(b *record) bool {
	if a.rank != b.rank {
		return a.rank > b.rank
	}
	return a.pod.Started.After(b.pod.Started)
}

// lookup finds records by one kind of key.
type lookup[K comparable] struct {
	m    map[K]*record
	keys func(*record) []K
}

func newLookup[K comparable](keys func(*record) []K) lookup[K] {
	return lookup[K]{map[K]*record{}, keys}
}

// update moves r from its old keys to its new ones. If the rank of r fell, another
// record may win a key, so the best of all records is searched for.
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

// Index finds the pods that run here, and for a while those that have ended. It implements
// owner.Pods.
type Index struct {
	procRoot string

	mu      sync.RWMutex
	records map[key]*record
	netns   lookup[uint64]
	addrs   lookup[netip.Addr]
	groups  lookup[uint64]
	pids    lookup[int]
	paths   lookup[string]

	list      atomic.Pointer[[]*owner.Pod] // nil: must be rebuilt
	unified   atomic.Pointer[hierarchy]    // the v2 tree, if there is one
	connected atomic.Bool
	labels    atomic.Pointer[[]string] // see KeepLabels
	relabel   chan struct{}

	status struct {
		sync.Mutex
		Status
	}
	sockets []string // candidates

	first chan struct{} // closed after the first listing
	tried chan struct{} // closed when every socket has failed once
	done  chan struct{} // closed when Watch has ended
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

// KeepLabels replaces the pod labels to keep in any case (Options.Labels). Labels of
// known pods are soon read again.
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

// update updates all lookups after a change of r.
func (x *Index) update(r, had *record, lowered bool) {
	x.netns.update(r, had, lowered, x.records)
	x.addrs.update(r, had, lowered, x.records)
	x.groups.update(r, had, lowered, x.records)
	x.pids.update(r, had, lowered, x.records)
	x.paths.update(r, had, lowered, x.records)
}

// put stores a pod. If nothing has changed, the Pod handed out earlier stays valid.
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

// end changes the rank of a pod that no longer runs. Its keys still lead to it.
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

// prune removes pods that ended keepEnded ago, and the oldest beyond maxEnded.
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

// Running returns the pods with a process, sorted by namespace, name and start. The caller
// must not change the slice, which is the same until the next change.
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
	x.list.Store(&list) // writers hold the lock, so this cannot overwrite a newer list
	return list
}

func podOf(r *record) *owner.Pod {
	if r == nil {
		return nil
	}
	return r.pod
}

// ByNetns returns the pod whose network namespace had that inode number at that time. Of
// containers that share a namespace it is the sandbox, or else the first. For the host's
// namespace it returns nil.
//
// The kernel gives the next namespace the lowest free number, often that of a pod that has
// just ended. An occurrence after the pod's end is therefore attributed to the pod only
// while its namespace still exists.
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

// ByAddr returns the pod that has the address; IPv4-mapped addresses are unmapped.
func (x *Index) ByAddr(a netip.Addr) *owner.Pod {
	a = a.WithZone("").Unmap()
	x.mu.RLock()
	defer x.mu.RUnlock()
	return podOf(x.addrs.m[a])
}

// ByPID returns the pod of a process or thread, by its control groups. A process that has
// exited is found only if it was the first of a container.
func (x *Index) ByPID(pid int) *owner.Pod {
	if pid <= 0 {
		return nil
	}
	var buf [2048]byte
	data, err := readProc(x.procRoot, pid, "cgroup", buf[:0])
	if err == nil && inRoots(data) {
		// In cgroup v1, a process whose main thread has exited appears in the
		// root groups, too.
		if dir := kernel.ProcessDir(x.procRoot, pid); strings.Contains(dir, "/task/") {
			data, err = kernel.ReadFile(unix.AT_FDCWD, dir+"/cgroup", data[:0])
		}
	}
	owner, first, start := x.ownerOrFirst(data, pid)
	if owner != nil {
		return owner
	}
	if first != nil && err == nil {
		// Check that it is still the container's first process, without the lock: the
		// kernel may answer slowly.
		if s, err := kernel.ReadStat(x.procRoot, pid); err == nil && start != s.Start {
			return nil
		}
	}
	return first
}

// ownerOrFirst finds the pod of a /proc/PID/cgroup. If there is none, it finds the pod
// whose container had pid as its first process, and returns the start time of that
// process.
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

// ownerOf finds the record of a /proc/PID/cgroup.
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

// inRoots reports whether a /proc/PID/cgroup shows the root group of each v1 tree.
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

// owner finds the record of a control group, from the innermost group outwards, since
// containers may be nested. It compares whole paths, which come from containerd: users with
// a delegated group can use any name elsewhere.
func (x *Index) owner(path []byte) *record {
	for len(path) > 1 {
		if r := x.paths.m[string(path)]; r != nil {
			return r
		}
		path = path[:max(0, bytes.LastIndexByte(path, '/'))]
	}
	return nil
}

// ByCgroup returns the pod of a v2 control group or its nearest ancestor. id is the inode
// number of its directory, as bpf_get_current_cgroup_id returns it.
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
		return nil // the group is gone
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	return podOf(x.owner(path))
}

// Processes appends to buf the processes in p's control groups and their descendants,
// sorted and without duplicates. If a container has no control group of its own, only
// its first process is appended. After an error some may be missing.
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

// Connected reports whether containerd answers and its pods have been listed.
func (x *Index) Connected() bool { return x.connected.Load() }

// Status is the state of the connection to containerd.
type Status struct {
	// Socket is that of the containerd in use; "" if none answers.
	Socket string
	// Version is containerd's version.
	Version string
	// Err says why none answers.
	Err error
}

// Status returns the state of the connection to containerd.
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

// Sync waits for the first listing of pods. It fails if no socket answers, after trying
// each, or when ctx ends; the Index keeps trying.
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

// Await waits for the first listing of pods, for as long as ctx lasts, even if no socket
// answers yet or there is none.
func (x *Index) Await(ctx context.Context) error {
	select {
	case <-x.first:
		return nil
	case <-x.done:
		return context.Canceled
	case <-ctx.Done():
		return cmp.Or(x.Status().Err, errNotKnown)
	}
}

// Missing returns why no pods have been listed although there is a containerd's socket, or
// even without one if they are expected. It returns nil after the first listing.
func (x *Index) Missing(expected bool) error {
	if isClosed(x.first) {
		return nil
	}
	for _, s := range x.sockets {
		_, there := socketFile(s)
		expected = expected || there
	}
	if !expected {
		return nil
	}
	return cmp.Or(x.Status().Err, errNotKnown)
}

// Wait returns when all goroutines of Watch have ended, after the end of its ctx.
func (x *Index) Wait() { <-x.done }
