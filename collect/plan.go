package collect

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// plan lists the targets and jobs of one cycle, in the order of the output. It is
// immutable and holds everything that workers need.
type plan struct {
	cycle    uint64
	node     string
	procRoot string
	timeout  time.Duration // limit of one Sample call
	self     selfNetns
	keeper   *keeper
	log      *slog.Logger

	jobs    []job
	targets []*target
	host    *target
	unknown *target            // unattributed values; no probe samples it
	netns   map[uint64]*target // by inode number
	gone    []*memory          // memory of targets that are gone
}

// job is one target with the probes to run on it.
type job struct {
	*target
	run []*source
}

// selfNetns is the network namespace of this process.
type selfNetns struct {
	inode uint64
	fd    int
}

// inventory is the input of a plan.
type inventory struct {
	node, hostLabel string
	templates       []owner.LabelTemplate
	host            hostNetns
	pods            []*owner.Pod
	// processes are those of pods and of the host. It is nil if no probe needs them, or,
	// with processesUnknown, if they could not be listed.
	processes        *processLists
	processesUnknown bool
	sources          []*source
	log              *slog.Logger
}

// hostNetns is the host's network namespace.
type hostNetns struct {
	key   string // identifies the namespace across restarts of the program
	inode uint64
	path  string
	pids  []int
}

// planner makes plans and holds the targets' memory between cycles.
type planner struct {
	memories map[string]*memory
	unknown  *target
	told     map[string]bool // IDs of the pods whose label conflict was logged
}

func newPlanner() *planner {
	m := &memory{key: "unknown", granularity: EachNetns, labels: labelSet{unknown: true}}
	return &planner{memories: map[string]*memory{}, told: map[string]bool{}, unknown: &target{memory: m, granularity: EachNetns, unknown: true}}
}

// each calls f with the memory of every target, including the unattributed one.
func (p *planner) each(f func(*memory)) {
	for _, m := range p.memories {
		f(m)
	}
	f(p.unknown.memory)
}

// plan updates the targets and lists the jobs of a cycle.
func (p *planner) plan(from *inventory) *plan {
	for _, m := range p.memories {
		// While processes could not be listed, keep what is remembered of them.
		m.live = from.processesUnknown && m.granularity == EachPod
	}
	onHost, onNetns, onPod := sourcesOf(from.sources, EachNetns, HostNetns), sourcesOf(from.sources, EachNetns), sourcesOf(from.sources, EachPod)
	n := 3 + 2*len(from.pods)
	out := &plan{log: from.log, unknown: p.unknown, jobs: make([]job, 0, n), targets: make([]*target, 0, n)}
	add := func(key string, t *target, run []*source) *target {
		m := p.memories[key]
		if m == nil {
			m = &memory{key: key, granularity: t.granularity}
			p.memories[key] = m
		}
		if m.labels.pod != t.pod || m.labels.pairs == nil {
			namespace, name := from.hostLabel, from.hostLabel
			if t.pod != nil {
				namespace, name = t.pod.Namespace, t.pod.Name
			}
			m.labels.set(from.node, namespace, name, t.pod, from.templates)
		}
		m.live, t.memory = true, m
		out.targets = append(out.targets, t)
		if len(run) > 0 {
			out.jobs = append(out.jobs, job{t, run})
		}
		return t
	}
	add("node", &target{granularity: Node}, sourcesOf(from.sources, Node))
	h := &from.host
	out.host = add(h.key, &target{granularity: EachNetns, inode: h.inode, pids: h.pids, path: h.path}, onHost)
	out.netns = map[uint64]*target{h.inode: out.host}
	if l := &p.unknown.labels; l.pairs == nil {
		l.set(from.node, owner.UnknownLabel, owner.UnknownLabel, nil, from.templates)
	}

	speakers := p.speakers(from)
	for _, pod := range from.pods {
		if speakers[[2]string{pod.Namespace, pod.Name}] != pod {
			continue
		}
		if pod.Netns != 0 && !pod.HostNetwork && out.netns[pod.Netns] == nil {
			out.netns[pod.Netns] = add("netns "+pod.ID+" "+strconv.FormatUint(pod.Netns, 10),
				&target{granularity: EachNetns, pod: pod, inode: pod.Netns, pids: pod.PIDs, path: pod.NetnsPath}, onNetns)
		}
		if from.processes != nil {
			l := from.processes.pods[keyOf(pod)]
			if l == nil {
				continue // the pod appeared after the processes were listed
			}
			add("pids "+pod.UID+" "+pod.Namespace+"/"+pod.Name+"/"+plainID(pod),
				&target{granularity: EachPod, pod: pod, pids: l.pids, err: l.err, reapers: l.reapers}, onPod)
		}
	}
	if from.processes != nil {
		l := &from.processes.host
		add("pids", &target{granularity: EachPod, pids: l.pids, err: l.err, reapers: l.reapers}, onPod)
	}
	for key, m := range p.memories {
		if !m.live {
			out.gone = append(out.gone, m)
			delete(p.memories, key)
			m.leave()
		}
	}
	return out
}

// podKey identifies a pod across new sandboxes, or a container outside pods.
type podKey struct{ namespace, name, uid, plain string }

func keyOf(p *owner.Pod) podKey { return podKey{p.Namespace, p.Name, p.UID, plainID(p)} }

// plainID is the ID of a container outside pods, and "" for a pod, whose UID stays the same
// when its sandbox is recreated.
func plainID(p *owner.Pod) string {
	if p.UID != "" {
		return ""
	}
	return p.ID
}

// speakers chooses one pod for each pair of pod labels; only that one has series. Two
// sandboxes of one pod are one pod, and the newer counts. A recreated pod replaces its
// terminating predecessor of the same name. Of other pods with equal labels, only one has
// series. Pods with the host's labels have none. Both cases are logged.
func (p *planner) speakers(from *inventory) map[[2]string]*owner.Pod {
	pods := from.pods
	m := make(map[[2]string]*owner.Pod, len(pods))
	leaveOut := func(pod *owner.Pod, other string) {
		if !p.told[pod.ID] {
			p.told[pod.ID] = true
			from.log.Warn("a pod has the same labels as another one and is left out of the metrics", "namespace", pod.Namespace, "pod", pod.Name, "id", pod.ID, "other", other)
		}
	}
	for _, a := range pods {
		k := [2]string{a.Namespace, a.Name}
		if a.Namespace == a.Name && (a.Name == from.hostLabel || a.Name == owner.UnknownLabel) {
			leaveOut(a, "the labels of the host, or of an unknown namespace")
			continue
		}
		b := m[k]
		if b == nil {
			m[k] = a
			continue
		}
		// A pod comes before a container outside pods.
		if a.UID != "" && b.UID == "" || (a.UID != "") == (b.UID != "") && (a.Started.After(b.Started) || a.Started.Equal(b.Started) && a.ID > b.ID) {
			m[k] = a
			a, b = b, a
		}
		if a.UID == "" {
			leaveOut(a, b.ID)
		}
	}
	if len(p.told) > len(pods) {
		for id := range p.told {
			if !slices.ContainsFunc(pods, func(pod *owner.Pod) bool { return pod.ID == id }) {
				delete(p.told, id)
			}
		}
	}
	return m
}

// processList holds the processes of one target of an EachPod probe. If err is set, they
// are not known.
type processList struct {
	pids    []int
	reapers []owner.Process
	err     error
}

type processLists struct {
	pods map[podKey]*processList
	host processList // processes outside pods
}

// listProcesses assigns each process to a pod or to the host. If a pod's processes cannot
// be listed, the host's are not known either: the pod's would count as the host's.
func listProcesses(root string, who owner.Pods, pods []*owner.Pod) processLists {
	l := processLists{pods: make(map[podKey]*processList, len(pods))}
	all := make([]processList, 0, len(pods))
	// List all processes first: one that a pod starts between the two listings is then in
	// neither, and not counted as the host's.
	l.host.pids, l.host.err = kernel.PIDs(root)
	taken := map[int]bool{}
	for _, p := range pods {
		of := l.pods[keyOf(p)]
		if of == nil {
			all = append(all, processList{}) // within the capacity, so pointers stay valid
			of = &all[len(all)-1]
			l.pods[keyOf(p)] = of
		}
		before := len(of.pids)
		var err error
		if of.pids, err = who.Processes(p, of.pids); err != nil {
			of.err = errors.Join(of.err, err)
			if l.host.err == nil {
				l.host.err = fmt.Errorf("the processes of pod %s/%s cannot be distinguished from the others: %w", p.Namespace, p.Name, err)
			}
		}
		for _, pid := range of.pids[before:] {
			taken[pid] = true
		}
		of.reapers = append(of.reapers, p.Reapers...)
		l.host.reapers = append(l.host.reapers, p.Reapers...)
	}
	l.host.pids = slices.DeleteFunc(l.host.pids, func(pid int) bool { return taken[pid] })
	return l
}
