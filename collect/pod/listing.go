package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	containers "github.com/containerd/containerd/api/services/containers/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"nodeskoop/internal/bounded"
	"nodeskoop/internal/kernel"
)

// listing is a snapshot of containerd.
type listing struct {
	seq   uint64             // sequence number of the last event before the listing
	known map[key]knownState // state that need not be read again
	keep  []string           // labels to keep in any case
	files *dockerFiles
	root  string // root of containerd's mount namespace

	containers map[key]*about // nil: unchanged
	sandboxes  map[key]*about
	tasks      map[key]int  // first processes, of the containers asked about
	unknown    map[key]bool // their shims did not answer
	unnamed    error        // why a Docker container is called by its ID
	err        error
}

// knownState is the state of a container before the listing.
type knownState struct {
	updated time.Time
	alive   bool // its task was running
	record  string
	stamp   fileStamp
}

func (w *watcher) known() map[key]knownState {
	m := make(map[key]knownState, len(w.containers))
	for k, c := range w.containers {
		m[k] = knownState{c.updated, c.task.pid != 0 && w.alive(c.task), c.record, c.stamp}
	}
	return m
}

// alive reports whether any thread of a task's process runs. A process whose state cannot
// be read counts as alive.
func (w *watcher) alive(t process) bool {
	s, err := kernel.ReadStat(w.opt.ProcRoot, t.pid)
	if err != nil {
		return !isGone(err)
	}
	if s.Start != t.start && !t.unread {
		return false
	}
	if s.State == 'Z' || s.State == 'X' {
		_, err := kernel.LiveThread(w.opt.ProcRoot, t.pid)
		return !isGone(err)
	}
	return true
}

// isGone reports whether err says that a process has ended.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) || errors.Is(err, kernel.ErrGone)
}

func (l *listing) run(ctx context.Context, cl *client, follow []string) {
	namespaces := follow
	if namespaces == nil {
		var err error
		if namespaces, err = cl.namespaces(ctx); err != nil {
			l.err = fmt.Errorf("list containerd's namespaces: %w", plainError(err))
			return
		}
	}
	l.containers, l.sandboxes = map[key]*about{}, map[key]*about{}
	l.tasks, l.unknown = map[key]int{}, map[key]bool{}
	var ask []key
	for _, n := range namespaces {
		members := map[string]bool{} // the sandboxes of the containers
		err := cl.containers(ctx, n, func(c *containers.Container) {
			k := key{n, c.GetID()}
			known, ok := l.known[k]
			if ok && known.updated.Equal(c.GetUpdatedAt().AsTime()) && !l.files.changed(known.record, known.stamp) {
				l.containers[k] = nil
			} else {
				l.containers[k] = aboutContainer(n, c)
				if err := l.files.name(l.containers[k], l.root); err != nil && l.unnamed == nil {
					l.unnamed = err
				}
				l.containers[k].bound(l.keep)
			}
			if s := c.GetSandbox(); s != "" {
				members[s] = true
			}
			if !known.alive {
				ask = append(ask, k)
			}
		})
		if err != nil {
			l.err = fmt.Errorf("list the containers of containerd namespace %s: %w", n, plainError(err))
			return
		}
		stored, err := cl.sandboxes(ctx, n)
		if status.Code(err) == codes.ResourceExhausted {
			// The store is too large for one message: ask for each sandbox.
			for k := range l.containers {
				delete(members, k.id)
			}
			stored, err = cl.eachSandbox(ctx, n, members)
		}
		if err != nil {
			l.err = fmt.Errorf("list the sandboxes of containerd namespace %s: %w", n, plainError(err))
			return
		}
		for _, s := range stored {
			if _, ok := l.containers[key{n, s.GetSandboxID()}]; ok {
				continue // the sandbox has a pause container with the same data
			}
			if a := aboutSandbox(s); a != nil {
				a.bound(l.keep)
				l.sandboxes[key{n, s.GetSandboxID()}] = a
			}
		}
	}
	l.askTasks(ctx, cl, ask)
}

// askTasks asks for each task separately, so that a hanging shim delays only its own pod
// and not all tasks.
func (l *listing) askTasks(ctx context.Context, cl *client, ask []key) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	queue := make(chan key)
	for range min(maxAsking, len(ask)) {
		wg.Go(func() {
			for k := range queue {
				var pid int
				err := errPanic
				_ = bounded.Guard(func() { pid, err = cl.task(ctx, k) })
				mu.Lock()
				switch code := status.Code(err); code {
				case codes.OK:
					l.tasks[k] = pid
				case codes.DeadlineExceeded, codes.Unknown:
					l.unknown[k] = true
				}
				mu.Unlock()
			}
		})
	}
	for _, k := range ask {
		queue <- k
	}
	close(queue)
	wg.Wait()
}

// apply takes over a listing, except where later events have changed the state.
func (w *watcher) apply(l *listing) {
	now := time.Now()
	w.sayUnnamed(l.unnamed)
	for k, c := range w.containers {
		if _, ok := l.containers[k]; !ok && c.touched <= l.seq {
			w.drop(c, now)
		}
	}
	for k, a := range l.containers {
		c := w.containers[k]
		if w.deleted[k] || c != nil && c.touched > l.seq || c == nil && a == nil {
			continue
		}
		if a != nil {
			c = w.set(k, a)
		}
		if pid, ok := l.tasks[k]; ok {
			c.unknown = false
			w.setTask(c, pid, now)
		} else {
			c.unknown = l.unknown[k]
			if c.task.pid != 0 && !w.alive(c.task) {
				w.setTask(c, 0, now) // the process has ended, whether or not its shim answers
			}
		}
	}
	for k, a := range l.sandboxes {
		if g := w.group(k); !w.deleted[k] && g.touched <= l.seq {
			g.stored = a
		}
	}
	for k, g := range w.groups {
		if l.sandboxes[k] == nil && g.touched <= l.seq {
			g.stored = nil
		}
		w.evaluate(g, now, now.Sub(g.addrsAt) >= addrsEvery || len(g.addrs) == 0)
	}
}
