package collect

import (
	"errors"
	"fmt"
	"slices"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
)

// podKey names a pod over restarts of its sandbox, and a container outside pods.
type podKey struct{ namespace, name, uid, plain string }

func keyOf(p *owner.Pod) podKey { return podKey{p.Namespace, p.Name, p.UID, plainID(p)} }

// plainID is the ID of a container outside pods, "" for a pod: its UID stays when
// its sandbox is made anew.
func plainID(p *owner.Pod) string {
	if p.UID != "" {
		return ""
	}
	return p.ID
}

// speakers finds, for each pair of labels, the one pod that has series with them.
// Two sandboxes of one pod are that pod, and the newer one is what it is now. A pod
// follows another of its name, too: that one is going. Any other two with the
// labels of one are left out but for one, and so is what has the host's labels; that
// is said.
func (r *Runner) speakers(pods []*owner.Pod) map[[2]string]*owner.Pod {
	m := make(map[[2]string]*owner.Pod, len(pods))
	leaveOut := func(p *owner.Pod, other string) {
		if r.told == nil {
			r.told = map[string]bool{}
		}
		if !r.told[p.ID] {
			r.told[p.ID] = true
			r.opt.Log.Warn("a pod has the labels of something else and is left out of the metrics", "namespace", p.Namespace, "pod", p.Name, "id", p.ID, "other", other)
		}
	}
	for _, p := range pods {
		k := [2]string{p.Namespace, p.Name}
		if p.Namespace == p.Name && (p.Name == r.opt.HostLabel || p.Name == owner.UnknownLabel) {
			leaveOut(p, "what stands for the host, or for an unknown namespace")
			continue
		}
		q := m[k]
		if q == nil {
			m[k] = p
			continue
		}
		// What is outside pods gives way to a pod.
		if p.UID != "" && q.UID == "" || (p.UID != "") == (q.UID != "") && (p.Started.After(q.Started) || p.Started.Equal(q.Started) && p.ID > q.ID) {
			m[k] = p
			p, q = q, p
		}
		if p.UID == "" {
			leaveOut(p, q.ID)
		}
	}
	if len(r.told) > len(pods) {
		for id := range r.told {
			if !slices.ContainsFunc(pods, func(p *owner.Pod) bool { return p.ID == id }) {
				delete(r.told, id)
			}
		}
	}
	return m
}

// processList is what a probe over EachPod samples for one target. With an error,
// it is not known.
type processList struct {
	pids    []int
	reapers []owner.Process
	err     error
}

type processLists struct {
	pods map[podKey]*processList
	host processList // all that is no pod's
}

// listProcesses tells whose each process is. What cannot be listed is nobody's: the
// processes of a pod that are not known as such would pass for the host's.
func listProcesses(root string, who owner.Pods, pods []*owner.Pod) processLists {
	l := processLists{pods: make(map[podKey]*processList, len(pods))}
	all := make([]processList, 0, len(pods))
	// All processes are listed before the pods', so that one that a pod starts in
	// between is in neither list, not in the host's.
	l.host.pids, l.host.err = kernel.PIDs(root)
	taken := map[int]bool{}
	for _, p := range pods {
		of := l.pods[keyOf(p)]
		if of == nil {
			all = append(all, processList{}) // never beyond its capacity
			of = &all[len(all)-1]
			l.pods[keyOf(p)] = of
		}
		before := len(of.pids)
		var err error
		if of.pids, err = who.Processes(p, of.pids); err != nil {
			of.err = errors.Join(of.err, err)
			if l.host.err == nil {
				l.host.err = fmt.Errorf("the processes of pod %s/%s cannot be told from the others: %w", p.Namespace, p.Name, err)
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
