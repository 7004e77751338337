package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
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
	// unlisted says why cgroups is not known.
	unlisted error
	shim     owner.Process // PID 0: not known, or none that serves it alone
	touched  uint64        // the event that told of it last
}

// process is a container's first; pid is 0 if it has none.
type process struct {
	pid    int
	start  uint64
	netns  uint64
	unread bool // start and netns could not be read, though it may run
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

	// label is the name under which the group is registered in watcher.names.
	label podName
	// renamed: something else has that name. It stays so, lest series change
	// their labels again and again.
	renamed bool

	netns   uint64 // of the last evaluation
	file    string // that was it, "" if none
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
	if pid == c.task.pid && (pid == 0 || !c.task.unread && c.task.netns != 0 && len(c.cgroups.paths) > 0) {
		return
	}
	g := w.groupOf(c)
	if c.task.pid != 0 && pid != c.task.pid {
		g.past = append(g.past, past{c.task, c.cgroups, now})
		c.task, c.cgroups, c.shim = process{}, cgroups{}, owner.Process{}
	}
	c.unlisted = nil
	if pid == 0 {
		return
	}
	c.task = process{pid: pid}
	s, err := kernel.ReadStat(w.opt.ProcRoot, pid)
	if err != nil {
		// One that has ended already can be named all the same.
		if c.task.unread = !isGone(err); c.task.unread {
			c.unlisted = fmt.Errorf("find the control group of process %d: %w", pid, err)
		}
		return
	}
	c.task.start = s.Start
	dir := kernel.ProcessDir(w.opt.ProcRoot, pid)
	if c.task.netns, err = netnsInode(dir + "/ns/net"); errors.Is(err, fs.ErrPermission) && !w.denied {
		w.denied = true
		w.opt.Log.Warn("cannot tell the network namespaces of containers' processes; only those that containerd names are known", "error", err, "hint", "needs CAP_SYS_PTRACE")
	}
	var a, b [2048]byte
	file, err := kernel.ReadFile(unix.AT_FDCWD, dir+"/cgroup", a[:0])
	if err != nil && !isGone(err) {
		c.unlisted = fmt.Errorf("find the control group of process %d: %w", pid, err)
	}
	outer, _ := readProc(w.opt.ProcRoot, s.Parent, "cgroup", b[:0])
	c.cgroups = findCgroups(w.trees, file, outer, c.id, c.groups...)
	if c.unlisted == nil && c.cgroups.hidden {
		c.unlisted = fmt.Errorf("list the processes of control group %s: it is below no mount of this process's (in a container, run it in the host's cgroup namespace and mount its /sys/fs/cgroup)", c.cgroups.paths[0])
	}
	c.shim = w.shimOf(s.Parent)
}

// shimOf returns the process that started a container's first process, if that is
// containerd's shim. Once a shim has ended, its children are another's, who may serve
// the whole machine.
func (w *watcher) shimOf(pid int) owner.Process {
	if pid <= 1 || w.sharedShims[pid] {
		return owner.Process{}
	}
	exe, err := os.Readlink(w.procFile(pid, "exe"))
	if err != nil || !strings.HasPrefix(filepath.Base(exe), "containerd-shim") {
		return owner.Process{}
	}
	s, err := kernel.ReadStat(w.opt.ProcRoot, pid)
	if err != nil {
		return owner.Process{}
	}
	return owner.Process{PID: pid, Start: s.Start}
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
	g.file = path
	switch {
	case a == nil:
		delete(w.groups, g.key)
		w.register(g, podName{})
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
	root := w.peerRoot()
	if root == "" {
		return 0, ""
	}
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

// peerRoot returns the root of containerd's mount namespace, "" if there is no
// containerd.
func (w *watcher) peerRoot() string {
	if w.cl == nil || w.cl.peer.Load() == 0 {
		return ""
	}
	return kernel.ProcessDir(w.opt.ProcRoot, int(w.cl.peer.Load())) + "/root"
}

// sayUnnamed logs once why containers of Docker go by their IDs.
func (w *watcher) sayUnnamed(err error) {
	if err == nil || w.unnamed {
		return
	}
	w.unnamed = true
	w.opt.Log.Warn("cannot read the name of a container of Docker; it goes by its ID until its file can be read", "error", err,
		"hint", "the file is root's; where this process does not see it, reading it as containerd does takes CAP_SYS_PTRACE")
}

// owns reports whether, of all groups in one network namespace, this is the
// one that the namespace is named after: a sandbox, else the first.
func (w *watcher) owns(g *group, now time.Time) bool {
	for _, o := range w.groups {
		if o == g || !o.running || o.netns != g.netns {
			continue
		}
		// The number may be in use again: then what had it has ended.
		stale := w.isStale(o)
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

// isStale reports whether a sandbox that has no process of its own, and runs as long
// as its network namespace is there, has lost it.
func (w *watcher) isStale(g *group) bool {
	a := g.about()
	if a == nil || a != g.stored || g.netns == 0 || g.host {
		return false
	}
	if w.cl == nil && g.file != a.netnsPath {
		return false // only containerd's own mount namespace has the file
	}
	inode, _ := w.namespaceFile(a.netnsPath)
	return inode != g.netns
}

// checkStored ends the sandboxes of which only the network namespace shows that they
// run, and gives up its number and its addresses: no event tells of their end.
func (w *watcher) checkStored(now time.Time) {
	for _, g := range w.groups {
		if w.isStale(g) {
			w.evaluate(g, now, false)
		}
	}
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
				path = kernel.ProcessDir(w.opt.ProcRoot, c.task.pid) + "/ns/net"
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
	p := &owner.Pod{
		ID: g.id, Namespace: a.namespace, Name: w.nameOf(g, a, now), UID: a.uid, Labels: a.labels, LabelsLeftOut: a.labelsLeftOut,
		HostNetwork: g.host, Started: a.created,
	}
	if p.Started.Unix() <= 0 {
		p.Started = g.first
	}
	var t traces
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
		w.expectGroups(&t, c, a.uid)
		if c.task.pid == 0 {
			continue
		}
		p.PIDs = append(p.PIDs, c.task.pid)
		switch d := c.cgroups.dir; {
		case d == "":
			p.Alone = append(p.Alone, c.task.pid)
		case !slices.Contains(p.Cgroups, d):
			p.Cgroups = append(p.Cgroups, d)
		}
		if p.ProcessesErr == nil {
			p.ProcessesErr = c.unlisted
		}
		if c.shim.PID != 0 && !slices.Contains(p.Reapers, c.shim) && w.alone(g, c.shim.PID, now) {
			p.Reapers = append(p.Reapers, c.shim)
		}
		t.add(c.task, &c.cgroups, a.uid)
	}
	g.past = slices.DeleteFunc(g.past, func(o past) bool { return now.Sub(o.at) >= keepEnded })
	if n := len(g.past) - maxPast; n > 0 {
		g.past = slices.Delete(g.past, 0, n)
	}
	for i := range g.past {
		t.add(g.past[i].process, &g.past[i].cgroups, a.uid)
	}
	w.x.put(g.key, p, to, t, now)
}

// alone reports whether a shim serves this group only. One that was seen to serve two
// is nobody's from then on.
func (w *watcher) alone(g *group, shim int, now time.Time) bool {
	var others []*group
	for _, o := range w.groups {
		if o != g && slices.ContainsFunc(o.members, func(c *container) bool { return c.task.pid != 0 && c.shim.PID == shim }) {
			others = append(others, o)
		}
	}
	if len(others) == 0 {
		return true
	}
	w.sharedShims[shim] = true
	for _, o := range append(others, g) {
		for _, c := range o.members {
			if c.shim.PID == shim {
				c.shim = owner.Process{}
			}
		}
	}
	for _, o := range others {
		w.evaluate(o, now, false)
	}
	return false
}

// expectGroups adds the control groups that containerd asked for by a container's
// record, so that its processes are known before, and without, its first process.
func (w *watcher) expectGroups(t *traces, c *container, uid string) {
	for _, path := range c.groups {
		if ownGroup(path, c.id, nil) != len(path) {
			continue // not the container's alone, by its name
		}
		for _, root := range w.roots {
			t.addPath(root+path, uid)
		}
	}
}

// add adds what leads to a task.
func (t *traces) add(k process, c *cgroups, uid string) {
	t.pids, t.starts = append(t.pids, k.pid), append(t.starts, k.start)
	if c.id != 0 {
		t.groups = append(t.groups, c.id)
	}
	for _, path := range c.paths {
		t.addPath(path, uid)
	}
}

// addPath adds a container's control group, and with it the pod's.
func (t *traces) addPath(path, uid string) {
	if !slices.Contains(t.paths, path) {
		t.paths = append(t.paths, path)
	}
	if path = podGroup(path, uid); path != "" && !slices.Contains(t.paths, path) {
		t.paths = append(t.paths, path)
	}
}

// podName is what a pod is called in labels.
type podName struct{ namespace, name string }

// nameOf returns the name that the group has in labels. No two that are not one pod
// share theirs: a container outside pods whose name is a pod's or another container's
// is called by its ID, in a form that no name has.
func (w *watcher) nameOf(g *group, a *about, now time.Time) string {
	base := podName{a.namespace, a.name}
	reserved := slices.Contains(w.opt.Reserved, base.name) && base.namespace == base.name
	if a.kind != plain {
		w.register(g, base)
		if reserved {
			return "pod:" + base.name
		}
		for _, o := range slices.Clone(w.names[base]) {
			if oa := o.about(); oa != nil && oa.kind == plain && !o.renamed {
				w.evaluate(o, now, false)
			}
		}
		return base.name
	}
	if !g.renamed {
		g.renamed = reserved || slices.ContainsFunc(w.names[base], func(o *group) bool {
			oa := o.about()
			return o != g && oa != nil && (oa.kind != plain || !o.renamed)
		})
		if g.renamed {
			w.opt.Log.Warn("a container outside pods has the name of something else and is called by its ID", "namespace", base.namespace, "name", base.name, "label", "containerd:"+g.id)
		}
	}
	w.register(g, base)
	if g.renamed {
		return "containerd:" + g.id
	}
	return base.name
}

// register notes which groups have a name; the empty one is none.
func (w *watcher) register(g *group, n podName) {
	if g.label == n {
		return
	}
	if g.label != (podName{}) {
		rest := slices.DeleteFunc(w.names[g.label], func(o *group) bool { return o == g })
		if len(rest) == 0 {
			delete(w.names, g.label)
		} else {
			w.names[g.label] = rest
		}
	}
	g.label = n
	if n != (podName{}) {
		w.names[n] = append(w.names[n], g)
	}
}
