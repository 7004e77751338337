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

// key identifies a container or a sandbox in containerd.
type key struct{ ns, id string }

// container is the state of one container.
type container struct {
	key
	*about
	task    process
	unknown bool // the shim did not answer, so it is unknown whether the task runs
	cgroups cgroups
	// unlisted says why cgroups is not known.
	unlisted error
	shim     owner.Process // PID 0: unknown, or shared with other pods
	touched  uint64        // sequence number of the last event about it
}

// process is a container's first process; pid is 0 if there is none.
type process struct {
	pid    int
	start  uint64
	netns  uint64
	unread bool // start and netns could not be read, although the process may run
}

// past is an ended task of a pod that is still running.
type past struct {
	process
	cgroups
	at time.Time
}

// group collects what becomes a Pod: a sandbox and its containers, or one container outside
// pods.
type group struct {
	key                  // the sandbox's
	stored  *about       // record in the sandbox store
	touched uint64       // sequence number of the last event about it
	members []*container // the sandbox's own container first
	past    []past

	// label is the name under which the group is registered in watcher.names.
	label podName
	// renamed: the name belongs to another pod or container, so the labels show the ID. It
	// stays set, so that the series keep their labels.
	renamed bool

	netns   uint64 // as of the last evaluate
	file    string // path of netns; "" if there is none
	host    bool
	owner   bool // the namespace is named after this group
	running bool
	first   time.Time

	addrs   []netip.Addr // read inside the namespace
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

// set stores containerd's record of a container.
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

// leave removes a container from its group.
func (w *watcher) leave(c *container) *group {
	g := w.groupOf(c)
	g.members = slices.DeleteFunc(g.members, func(m *container) bool { return m == c })
	return g
}

// drop removes a container that containerd has deleted.
func (w *watcher) drop(c *container, now time.Time) {
	w.setTask(c, 0, now)
	delete(w.containers, c.key)
	g := w.leave(c)
	if c.kind == sandbox {
		g.stored = nil
	}
	w.evaluate(g, now, false)
}

// setTask sets the PID of a container's first process; 0 for none.
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
		// If the process has ended already, its container is still named.
		if c.task.unread = !isGone(err); c.task.unread {
			c.unlisted = fmt.Errorf("find the control group of process %d: %w", pid, err)
		}
		return
	}
	c.task.start = s.Start
	dir := kernel.ProcessDir(w.opt.ProcRoot, pid)
	if c.task.netns, err = netnsInode(dir + "/ns/net"); errors.Is(err, fs.ErrPermission) && !w.denied {
		w.denied = true
		w.opt.Log.Warn("cannot read the network namespaces of containers' processes; only those that containerd names are known", "error", err, "hint", "needs CAP_SYS_PTRACE")
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

// shimOf returns process pid, the parent of a container's first process, if it is a
// containerd shim. After a shim's exit the parent is another process, which may serve the
// whole machine.
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

// evaluate works out a group's state and updates the index. With readAddrs it also reads
// the addresses in its network namespace.
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
		// Before the pod's first task, or after its last one.
		w.publish(g, a, path, waiting, now)
	default:
		w.x.end(g.key, ended, now)
	}
	if wasOwner && (!g.owner || g.netns != wasNetns) {
		// Another group in the same namespace becomes its owner.
		for _, o := range w.groups {
			if o != g && o.running && !o.owner && o.netns == wasNetns {
				w.evaluate(o, now, true)
			}
		}
	}
}

// about returns the record that describes the group's pod; nil if none is left.
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

// locate determines whether the group runs, and its network namespace. It returns a path
// of the namespace, or "" if only /proc of its processes leads to it.
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
		// The process of a pod in a virtual machine may be in the host's network namespace.
		inode, file := w.namespaceFile(a.netnsPath)
		if inode != 0 && (g.netns == 0 || g.netns == inode || g.netns == w.host) {
			g.netns, path = inode, file
		}
	}
	// A sandbox without a pause container runs as long as its namespace exists. The same is
	// assumed while a shim hangs.
	if g.netns != 0 && (unknown || a == g.stored) {
		g.running = true
	}
	g.host = a.hostNetwork || g.netns != 0 && g.netns == w.host
	return path
}

// namespaceFile finds a network namespace that containerd has mounted, at path or at path
// in containerd's mount namespace.
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
	// An absolute symbolic link would leave that root: /var/run is a link to /run.
	if rest, ok := strings.CutPrefix(path, "/var/run/"); ok {
		if inode, err := netnsInode(root + "/run/" + rest); err == nil {
			return inode, root + "/run/" + rest
		}
	}
	return 0, ""
}

// peerRoot returns the root of containerd's mount namespace, "" without containerd.
func (w *watcher) peerRoot() string {
	if w.cl == nil || w.cl.peer.Load() == 0 {
		return ""
	}
	return kernel.ProcessDir(w.opt.ProcRoot, int(w.cl.peer.Load())) + "/root"
}

// sayUnnamed logs once why Docker containers are called by their IDs.
func (w *watcher) sayUnnamed(err error) {
	if err == nil || w.unnamed {
		return
	}
	w.unnamed = true
	w.opt.Log.Warn("cannot read the name of a Docker container; its ID is used until its file is readable", "error", err,
		"hint", "the file is root's; where this process does not see it, reading it as containerd does takes CAP_SYS_PTRACE")
}

// owns reports whether, among the groups that share a network namespace, this is the one
// that the namespace is named after: the sandbox, else the first.
func (w *watcher) owns(g *group, now time.Time) bool {
	for _, o := range w.groups {
		if o == g || !o.running || o.netns != g.netns {
			continue
		}
		// The inode number may have been reused, which means that its previous
		// group has ended.
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

// isStale reports whether the network namespace of a sandbox without a process is gone.
// Such a sandbox runs as long as its namespace exists.
func (w *watcher) isStale(g *group) bool {
	a := g.about()
	if a == nil || a != g.stored || g.netns == 0 || g.host {
		return false
	}
	if w.cl == nil && g.file != a.netnsPath {
		return false // the file is only in containerd's mount namespace
	}
	inode, _ := w.namespaceFile(a.netnsPath)
	return inode != g.netns
}

// checkStored ends the sandboxes without processes whose network namespace is gone, which
// no event reports. Their inode numbers and addresses may be reused.
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

// readAddrs reads the addresses in the group's network namespace.
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

// alone reports whether a shim serves this group only. A shim that once served two
// groups is not attributed to either again.
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

// expectGroups adds the control groups from a container's record. They identify its
// processes before its first process is known, and without it.
func (w *watcher) expectGroups(t *traces, c *container, uid string) {
	for _, path := range c.groups {
		if ownGroup(path, c.id, nil) != len(path) {
			continue // the name does not prove that the group is this container's own
		}
		for _, root := range w.roots {
			t.addPath(root+path, uid)
		}
	}
}

// add adds the traces of a task.
func (t *traces) add(k process, c *cgroups, uid string) {
	t.pids, t.starts = append(t.pids, k.pid), append(t.starts, k.start)
	if c.id != 0 {
		t.groups = append(t.groups, c.id)
	}
	for _, path := range c.paths {
		t.addPath(path, uid)
	}
}

// addPath adds a container's control group and its pod's.
func (t *traces) addPath(path, uid string) {
	if !slices.Contains(t.paths, path) {
		t.paths = append(t.paths, path)
	}
	if path = podGroup(path, uid); path != "" && !slices.Contains(t.paths, path) {
		t.paths = append(t.paths, path)
	}
}

// podName is a pod's name in labels.
type podName struct{ namespace, name string }

// nameOf returns the group's name in labels. A name stands for one pod only: a container
// outside pods whose name belongs to a pod or another container is called by its ID, in a
// form that is not a valid name.
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
			w.opt.Log.Warn("a container outside pods has a name that is taken; its ID is used", "namespace", base.namespace, "name", base.name, "label", "containerd:"+g.id)
		}
	}
	w.register(g, base)
	if g.renamed {
		return "containerd:" + g.id
	}
	return base.name
}

// register records the name of a group; the empty name removes it.
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
