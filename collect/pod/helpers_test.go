package pod

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/pods"
)

// patience is how long a test waits for something that happens by itself.
const patience = 20 * time.Second

// logbook records log lines.
type logbook struct{ testkit.Log }

func (l *logbook) lines() []string {
	return strings.Split(strings.TrimSpace(l.String()), "\n")
}

func (l *logbook) count(text string) int {
	return len(slices.DeleteFunc(l.lines(), func(s string) bool { return !strings.Contains(s, text) }))
}

// follow watches a containerd until the test ends.
func follow(t testing.TB, c *pods.Containerd, opt Options) (*Index, *logbook) {
	t.Helper()
	return followEvery(t, c, opt, usual)
}

func followEvery(t testing.TB, c *pods.Containerd, opt Options, every intervals) (*Index, *logbook) {
	t.Helper()
	log := &logbook{}
	if opt.Sockets == nil {
		opt.Sockets = []string{c.Socket}
	}
	opt.HostNetns = c.Netns
	opt.Log = slog.New(slog.NewTextHandler(log, nil))
	ctx, cancel := context.WithCancel(context.Background())
	x := watch(ctx, opt, every)
	t.Cleanup(func() {
		cancel()
		x.Wait()
		if t.Failed() {
			t.Logf("the log:\n%s", strings.Join(log.lines(), "\n"))
		}
	})
	return x, log
}

func synced(t testing.TB, x *Index) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := x.Sync(ctx); err != nil {
		t.Fatalf("Sync: %v", err)
	}
}

// soon waits until f returns no error.
func soon(t testing.TB, f func() error) {
	t.Helper()
	testkit.Await(t, f)
}

func find(x *Index, namespace, name string) *owner.Pod {
	for _, p := range x.Running() {
		if p.Namespace == namespace && p.Name == name {
			return p
		}
	}
	return nil
}

// awaitPod waits for a pod to run with that number of processes.
func awaitPod(t testing.TB, x *Index, namespace, name string, processes int) *owner.Pod {
	t.Helper()
	var p *owner.Pod
	soon(t, func() error {
		if p = find(x, namespace, name); p == nil {
			return fmt.Errorf("pod %s/%s is not known", namespace, name)
		}
		if len(p.PIDs) != processes {
			return fmt.Errorf("pod %s/%s has processes %v, want %d", namespace, name, p.PIDs, processes)
		}
		return nil
	})
	return p
}

func awaitEnd(t testing.TB, x *Index, namespace, name string) {
	t.Helper()
	soon(t, func() error {
		if p := find(x, namespace, name); p != nil {
			return fmt.Errorf("pod %s/%s still runs: %+v", namespace, name, p)
		}
		return nil
	})
}

func runningNames(x *Index) []string {
	var names []string
	for _, p := range x.Running() {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	return names
}

func inodeOf(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}

func netnsOf(t testing.TB, pid int) uint64 {
	t.Helper()
	return inodeOf(t, fmt.Sprintf("/proc/%d/ns/net", pid))
}

func label(p *owner.Pod) string {
	if p == nil {
		return "nobody"
	}
	return p.Namespace + "/" + p.Name
}

// named fails the test unless p is the pod with that ID.
func named(t testing.TB, what string, p *owner.Pod, id string) {
	t.Helper()
	if p == nil || p.ID != id {
		t.Errorf("%s is %s, want pod %s", what, label(p), id)
	}
}
