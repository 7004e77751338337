package pod

import (
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeskoop/collect"
)

// key names a container, or a sandbox, over all of containerd.
type key struct{ ns, id string }

// container is what is known of one container.
type container struct {
	key
	*about
	task    process
	unknown bool // its shim did not say whether it runs
	cgroups cgroups
	touched uint64 // the event that told of it last
}

// process is a container's first; pid is 0 if it has none.
type process struct {
	pid   int
	start uint64
	netns uint64
}

// past is a task that has ended in a pod that goes on.
type past struct {
	process
	cgroups
	at time.Time
}

// group is a pod in the making: a sandbox and its containers, or one plain
// container.
type group struct {
	key                  // the sandbox's
	stored  *about       // what the sandbox store says
	touched uint64       // the event that told of it last
	members []*container // the sandbox's own first
	past    []past

	netns   uint64 // of the last evaluation
	host    bool
	owner   bool // of the namespace
	running bool
	first   time.Time

	addrs   []netip.Addr // read in the namespace
	addrsOf uint64
	addrsAt time.Time
}

func (w *watcher) group(k key) *group {
	g := w.groups[k]
	if g == nil {
		g = &group{key: k}
		w.groups[k] = g
	}
	return g
}

func (w *watcher) groupOf(c *container) *group { return w.group(key{c.ns, c.sandbox}) }

// set takes over what containerd's record says.
func (w *watcher) set(k key, a *about) *container {
	c := w.containers[k]
	if c == nil {
		c = &container{key: k}
		w.containers[k] = c
	} else if c.sandbox != a.sandbox {
		w.leave(c)
	}
	c.about = a
	g := w.groupOf(c)
	if !slices.Contains(g.members, c) {
		g.members = append(g.members, c)
	}
	slices.SortFunc(g.members, func(a, b *container) int {
		if (a.kind == sandbox) != (b.kind == sandbox) {
			if a.kind == sandbox {
				return -1
			}
			return 1
		}
		if c := a.created.Compare(b.created); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return c
}

// leave takes a container out of its group.
func (w *watcher) leave(c *container) *group {
	g := w.groupOf(c)
	g.members = slices.DeleteFunc(g.members, func(m *container) bool { return m == c })
	return g
}

// drop forgets a container that containerd has deleted.
func (w *watcher) drop(c *container, now time.Time) {
	w.setTask(c, 0, now)
	delete(w.containers, c.key)
	g := w.leave(c)
	if c.kind == sandbox {
		g.stored = nil
	}
	w.evaluate(g, now, false)
}

// setTask sets a container's first process, 0 for none.
func (w *watcher) setTask(c *container, pid int, now time.Time) {
	if pid == c.task.pid && (pid == 0 || c.task.netns != 0 && len(c.cgroups.paths) > 0) {
		return
	}
	g := w.groupOf(c)
	if c.task.pid != 0 && pid != c.task.pid {
		g.past = append(g.past, past{c.task, c.cgroups, now})
		c.task, c.cgroups = process{}, cgroups{}
	}
	if pid == 0 {
		return
	}
	c.task = process{pid: pid}
	s, err := readStat(w.opt.ProcRoot, pid)
	if err != nil {
		return // it has ended already: it can be named all the same
	}
	c.task.start = s.start
	if c.task.netns, err = netnsInode(w.procFile(pid, "ns/net")); errors.Is(err, fs.ErrPermission) && !w.denied {
		w.denied = true
		w.opt.Log.Warn("cannot tell the network namespaces of containers' processes; only those that containerd names are known", "error", err, "hint", "needs CAP_SYS_PTRACE")
	}
	var a, b [2048]byte
	file, _ := readProc(w.opt.ProcRoot, pid, "cgroup", a[:0])
	outer, _ := readProc(w.opt.ProcRoot, s.ppid, "cgroup", b[:0])
	c.cgroups = findCgroups(w.trees, file, outer, c.id)
}

func (w *watcher) procFile(pid int, name string) string {
	return w.opt.ProcRoot + "/" + strconv.Itoa(pid) + "/" + name
}

// evaluate works out what a group is now, and puts it into the index.
// readAddrs asks its network namespace for its addresses.
func (w *watcher) evaluate(g *group, now time.Time, readAddrs bool) {
	a := g.about()
	wasNetns, wasOwner := g.netns, g.owner
	g.running, g.netns, g.owner = false, 0, false
	var path string
	if a != nil {
		path = w.locate(g, a)
	}
	switch {
	case a == nil:
		delete(w.groups, g.key)
		w.x.end(g.key, ended, now)
	case g.running:
		if g.first.IsZero() {
			g.first = now
		}
		g.owner = !g.host && g.netns != 0 && w.owns(g, now)
		if readAddrs && g.owner {
			w.readAddrs(g, path, now)
		}
		w.publish(g, a, path, running, now)
	case g.netns != 0 && !g.host:
		// Before the first task of a pod, or after the last one.
		w.publish(g, a, path, waiting, now)
	default:
		w.x.end(g.key, ended, now)
	}
	if wasOwner && (!g.owner || g.netns != wasNetns) {
		// One of those who shared the namespace has it now.
		for _, o := range w.groups {
			if o != g && o.running && !o.owner && o.netns == wasNetns {
				w.evaluate(o, now, true)
			}
		}
	}
}

// about is what is known of the group's pod, nil if it has nothing left.
func (g *group) about() *about {
	if len(g.members) > 0 && g.members[0].kind != member {
		return g.members[0].about
	}
	if g.stored != nil {
		return g.stored
	}
	if len(g.members) > 0 {
		return g.members[0].about
	}
	return nil
}

// locate finds whether the group runs and its network namespace, and returns
// a file that is it, "" if there is none but its processes'.
func (w *watcher) locate(g *group, a *about) (path string) {
	unknown := false
	for _, c := range g.members {
		if c.task.pid != 0 {
			g.running = true
			if g.netns == 0 {
				g.netns = c.task.netns
			}
		}
		unknown = unknown || c.unknown
	}
	if a.netnsPath != "" && !a.hostNetwork {
		// Of a pod in a virtual machine, the process may be on the host's network.
		inode, file := w.namespaceFile(a.netnsPath)
		if inode != 0 && (g.netns == 0 || g.netns == inode || g.netns == w.host) {
			g.netns, path = inode, file
		}
	}
	// A sandbox without a pause container runs as long as its namespace is
	// there; so does, for all that can be told, one whose shim hangs.
	if g.netns != 0 && (unknown || a == g.stored) {
		g.running = true
	}
	g.host = a.hostNetwork || g.netns != 0 && g.netns == w.host
	return path
}

// namespaceFile finds a network namespace that containerd has mounted: where
// it says, or there in containerd's own mount namespace.
func (w *watcher) namespaceFile(path string) (uint64, string) {
	if inode, err := netnsInode(path); err == nil {
		return inode, path
	}
	if w.cl == nil || w.cl.peer.Load() == 0 {
		return 0, ""
	}
	root := w.procFile(int(w.cl.peer.Load()), "root")
	if inode, err := netnsInode(root + path); err == nil {
		return inode, root + path
	}
	// An absolute link would lead out of that root: /var/run is one to /run.
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		if inode, err := netnsInode(root + "/run/" + rest); err == nil {
			return inode, root + "/run/" + rest
		}
	}
	return 0, ""
}

// owns reports whether, of all groups in one network namespace, this is the
// one that the namespace is named after: a sandbox, else the first.
func (w *watcher) owns(g *group, now time.Time) bool {
	for _, o := range w.groups {
		if o == g || !o.running || o.netns != g.netns {
			continue
		}
		// The number may be in use again: then what had it has ended.
		stale := false
		for _, c := range o.members {
			if c.task.pid != 0 && !w.alive(c.task) {
				w.setTask(c, 0, now)
				stale = true
			}
		}
		if stale {
			w.evaluate(o, now, false)
			if !o.running || o.netns != g.netns {
				continue
			}
		}
		if o.before(g) {
			return false
		}
		if o.owner {
			o.owner = false
			w.evaluate(o, now, false)
		}
	}
	return true
}

func (g *group) before(o *group) bool {
	a, b := g.about(), o.about()
	if a == nil || b == nil {
		return a != nil
	}
	if (a.kind == plain) != (b.kind == plain) {
		return b.kind == plain
	}
	if c := a.created.Compare(b.created); c != 0 {
		return c < 0
	}
	return g.id < o.id
}

// readAddrs asks the group's network namespace for its addresses.
func (w *watcher) readAddrs(g *group, path string, now time.Time) {
	if path == "" {
		for _, c := range g.members {
			if c.task.pid != 0 && c.task.netns == g.netns {
				path = w.procFile(c.task.pid, "ns/net")
				break
			}
		}
	}
	if path == "" {
		return
	}
	addrs, err := addrsIn(path, g.netns)
	if err != nil {
		w.opt.Log.Debug("cannot read a pod's addresses", "container", g.id, "error", err)
		return
	}
	g.addrs, g.addrsOf, g.addrsAt = addrs, g.netns, now
}

// publish makes the group's Pod and puts it into the index.
func (w *watcher) publish(g *group, a *about, path string, to rank, now time.Time) {
	p := &collect.Pod{
		ID: g.id, Namespace: a.namespace, Name: a.name, UID: a.uid, Labels: a.labels, LabelsLeftOut: a.labelsLeftOut,
		HostNetwork: g.host, Started: a.created,
	}
	if p.Started.Unix() <= 0 {
		p.Started = g.first
	}
	var t traces
	if a.uid != "" {
		t.uid = []string{a.uid}
	}
	if !g.host && (g.owner || to == waiting) {
		p.Netns, p.NetnsPath = g.netns, path
		t.netns = []uint64{g.netns}
		p.Addrs = slices.Clip(slices.Clone(a.addrs))
		if g.addrsOf == g.netns {
			for _, addr := range g.addrs {
				if !slices.Contains(p.Addrs, addr) {
					p.Addrs = append(p.Addrs, addr)
				}
			}
		}
		t.addrs = p.Addrs
	}
	for _, c := range g.members {
		if c.id == string(containerID([]byte(c.id))) {
			t.ids = append(t.ids, c.id)
		}
		if c.task.pid == 0 {
			continue
		}
		p.PIDs = append(p.PIDs, c.task.pid)
		if d := c.cgroups.dir; d != "" && !slices.Contains(p.Cgroups, d) {
			p.Cgroups = append(p.Cgroups, d)
		}
		t.add(c.task, &c.cgroups)
	}
	g.past = slices.DeleteFunc(g.past, func(o past) bool { return now.Sub(o.at) >= keepEnded })
	if n := len(g.past) - maxPast; n > 0 {
		g.past = slices.Delete(g.past, 0, n)
	}
	for i := range g.past {
		t.add(g.past[i].process, &g.past[i].cgroups)
	}
	w.x.put(g.key, p, to, t, now)
}

// add adds what leads to a task.
func (t *traces) add(k process, c *cgroups) {
	t.pids, t.starts = append(t.pids, k.pid), append(t.starts, k.start)
	if c.id != 0 {
		t.groups = append(t.groups, c.id)
	}
	t.paths = append(t.paths, c.paths...)
}
