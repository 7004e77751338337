package pod

import (
	"context"
	"strings"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
)

// handle processes one event.
func (w *watcher) handle(ctx context.Context, e *types.Envelope) {
	now := time.Now()
	read := func(m proto.Message) bool {
		if err := proto.Unmarshal(e.GetEvent().GetValue(), m); err != nil {
			w.opt.Log.Debug("a containerd event cannot be read", "topic", e.GetTopic(), "error", err)
			return false
		}
		return true
	}
	k := key{ns: e.GetNamespace()}
	switch strings.TrimPrefix(e.GetTopic(), "/") {
	case "containers/create":
		var ev apievents.ContainerCreate
		if read(&ev) {
			k.id = ev.ID
			w.fetch(ctx, k, now)
		}
	case "containers/update":
		var ev apievents.ContainerUpdate
		if read(&ev) {
			k.id = ev.ID
			w.fetch(ctx, k, now)
		}
	case "containers/delete":
		var ev apievents.ContainerDelete
		if read(&ev) {
			k.id = ev.ID
			if w.deleted != nil {
				w.deleted[k] = true
			}
			if c := w.containers[k]; c != nil {
				w.drop(c, now)
			}
		}
	case "tasks/create":
		var ev apievents.TaskCreate
		if read(&ev) {
			k.id = ev.ContainerID
			w.taskRuns(ctx, k, int(ev.Pid), now)
		}
	case "tasks/start":
		var ev apievents.TaskStart
		if read(&ev) {
			k.id = ev.ContainerID
			w.taskRuns(ctx, k, int(ev.Pid), now)
		}
	case "tasks/exit":
		var ev apievents.TaskExit
		if read(&ev) && ev.ID == ev.ContainerID { // other exit events are about exec processes
			k.id = ev.ContainerID
			w.taskEnded(k, int(ev.Pid), now)
		}
	case "tasks/delete":
		var ev apievents.TaskDelete
		if read(&ev) && (ev.ID == "" || ev.ID == ev.ContainerID) {
			k.id = ev.ContainerID
			w.taskEnded(k, int(ev.Pid), now)
		}
	case "sandboxes/create", "sandboxes/start":
		var ev apievents.SandboxStart // in both messages the ID is field 1
		if read(&ev) {
			k.id = ev.SandboxID
			w.fetchSandbox(ctx, k, now)
		}
	case "sandboxes/exit":
		var ev apievents.SandboxExit
		if read(&ev) {
			k.id = ev.SandboxID
			if g := w.groups[k]; g != nil {
				w.evaluate(g, now, false)
			}
		}
	}
}

// fetch reads the record of a container after an event about it.
func (w *watcher) fetch(ctx context.Context, k key, now time.Time) *container {
	r, err := w.cl.container(ctx, k)
	if err != nil {
		w.opt.Log.Debug("containerd sent an event about a container that it does not have", "namespace", k.ns, "container", k.id, "error", plainError(err))
		return nil
	}
	a := aboutContainer(k.ns, r)
	w.sayUnnamed(w.files.name(a, w.peerRoot()))
	a.bound(w.x.keptLabels())
	c := w.set(k, a)
	c.touched = w.seq
	if w.deleted != nil {
		delete(w.deleted, k)
	}
	if g := w.groupOf(c); c.kind == member && g.about() == c.about {
		// A sandbox that is not a container has no events.
		w.fetchSandbox(ctx, g.key, now)
	}
	w.evaluate(w.groupOf(c), now, false)
	return c
}

func (w *watcher) fetchSandbox(ctx context.Context, k key, now time.Time) {
	r, err := w.cl.sandbox(ctx, k)
	if err != nil {
		return // not in the store
	}
	w.storeSandbox(k, r, now)
}

// storeSandbox takes over a record of the sandbox store.
func (w *watcher) storeSandbox(k key, r *types.Sandbox, now time.Time) {
	if a := aboutSandbox(r); a != nil {
		a.bound(w.x.keptLabels())
		g := w.group(k)
		g.stored, g.touched = a, w.seq
		w.evaluate(g, now, true)
	}
}

// completeWithin is the age at which the record of a sandbox counts as complete. The
// CRI stores the record before the sandbox has a network namespace and addresses.
const completeWithin = time.Minute

// storing holds the containerd namespaces that have a sandbox which is not a container.
// In these, containerd's CRI starts further sandboxes without an event, so they have to
// be asked for. The first such sandbox is found by its first container, or by a
// listing.
func (w *watcher) storing(now time.Time) map[string][]string {
	known := map[string][]string{}
	for k, g := range w.groups {
		if g.stored != nil {
			known[k.ns] = nil
		}
	}
	if len(known) == 0 {
		return nil
	}
	for k, g := range w.groups {
		ids, ok := known[k.ns]
		a := g.stored
		incomplete := a != nil && !a.hostNetwork && (g.first.IsZero() || len(a.addrs) == 0) && now.Sub(a.created) < completeWithin
		if ok && !incomplete {
			known[k.ns] = append(ids, k.id)
		}
	}
	return known
}

func (w *watcher) taskRuns(ctx context.Context, k key, pid int, now time.Time) {
	c := w.containers[k]
	if c == nil || c.kind == sandbox && !c.hostNetwork && len(c.addrs) == 0 {
		// The addresses may have been added to the record only just now.
		if f := w.fetch(ctx, k, now); f != nil {
			c = f
		}
	}
	if c == nil {
		return
	}
	c.touched, c.unknown = w.seq, false
	w.setTask(c, pid, now)
	w.evaluate(w.groupOf(c), now, false) // publish the name first, since reading addresses takes longer
	w.evaluate(w.groupOf(c), now, true)
}

func (w *watcher) taskEnded(k key, pid int, now time.Time) {
	c := w.containers[k]
	if c == nil || c.task.pid != pid {
		return // an earlier task of the container
	}
	c.touched, c.unknown = w.seq, false
	w.setTask(c, 0, now)
	w.evaluate(w.groupOf(c), now, false)
}

// checkTasks ends the tasks whose processes have exited without an event from
// containerd.
func (w *watcher) checkTasks() {
	now := time.Now()
	for _, c := range w.containers {
		if c.task.pid != 0 && !w.alive(c.task) {
			w.setTask(c, 0, now)
			w.evaluate(w.groupOf(c), now, false)
		}
	}
}
