package collect_test

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

func threadNetns() (inode uint64) {
	inode, _ = kernel.Inode(kernel.OwnNetns)
	return inode
}

// enterer is a probe that runs f in each network namespace, and records the namespace of
// its thread before and after.
type enterer struct {
	t    *testing.T
	mu   *sync.Mutex
	in   map[uint64]int // calls of f by namespace
	self uint64
	f    func() error
}

func (enterer) Granularity() collect.Granularity { return collect.EachNetns }
func (enterer) Close() error                     { return nil }
func (p enterer) Sample(v *collect.View) error {
	if at := threadNetns(); at != p.self {
		p.t.Errorf("the thread is in namespace %d before the probe, want %d", at, p.self)
	}
	err := v.Enter("test", func() error {
		p.mu.Lock()
		p.in[threadNetns()]++
		p.mu.Unlock()
		return p.f()
	})
	if at := threadNetns(); at != p.self {
		p.t.Errorf("the thread is in namespace %d after the probe, want %d", at, p.self)
	}
	return err
}

// If code in a pod's network namespace panics or fails, its thread returns from that
// namespace: the next probe does not run in that pod.
func TestPanicInAPodsNamespace(t *testing.T) {
	need.Root(t)
	pods := []*nsnet.Space{nsnet.New(t), nsnet.New(t)}
	for name, f := range map[string]func() error{
		"nothing": func() error { return nil },
		"error":   func() error { return errors.New("no luck") },
		"panic":   func() error { panic("boom") },
	} {
		t.Run(name, func(t *testing.T) {
			bad := enterer{t, new(sync.Mutex), map[uint64]int{}, threadNetns(), f}
			good := bad
			good.in, good.f = map[uint64]int{}, func() error { return nil }
			make := func(name string, p collect.Probe) collect.Factory {
				return collect.Factory{Name: name, New: func(collect.Env) (collect.Probe, error) { return p, nil }}
			}
			s := nsnet.NewSampler(t, collect.Options{
				Enabled: []string{"qdisc", "tcpsummary"},
				Pods:    &nsnet.Pods{List: []*owner.Pod{pods[0].Pod("a"), pods[1].Pod("b")}},
			}, make("qdisc", bad), make("tcpsummary", good))
			const cycles = 5
			for range cycles {
				_, errs := s.Try()
				if (errs["qdisc"] == nil) != (name == "nothing") || errs["tcpsummary"] != nil {
					t.Errorf("%v", errs)
				}
				if name == "panic" && !strings.Contains(errs["qdisc"].Error(), "boom") {
					t.Errorf("the panic became %v", errs["qdisc"])
				}
			}
			for _, in := range []map[uint64]int{bad.in, good.in} {
				for _, ns := range []uint64{bad.self, pods[0].Inode, pods[1].Inode} {
					if in[ns] != cycles {
						t.Errorf("it ran %d times in namespace %d, want %d", in[ns], ns, cycles)
					}
				}
			}
		})
	}
}

func TestInNetns(t *testing.T) {
	s := nsnet.New(t)
	var at uint64
	self := threadNetns()
	if err := kernel.InNetns(s.Path, s.Inode, func() error { at = threadNetns(); return nil }); err != nil || at != s.Inode {
		t.Errorf("ran in %d, want %d: %v", at, s.Inode, err)
	}
	if err := kernel.InNetns(s.Path, 0, func() error { panic("boom") }); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("the panic became %v", err)
	}
	if err := kernel.InNetns(s.Path, self, func() error { t.Error("it ran in another namespace than was wanted"); return nil }); err == nil {
		t.Error("another namespace was taken for the wanted one")
	}
	if err := kernel.InNetns("/etc/passwd", 0, func() error { t.Error("it ran in no namespace"); return nil }); err == nil {
		t.Error("a file was taken for a namespace")
	}
	// No thread of the process is left there.
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		var st unix.Stat_t
		if unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &st) == nil && st.Ino == s.Inode {
			t.Errorf("thread %s is in the namespace still", task.Name())
		}
	}
}

// AddrsOf returns the addresses of the namespace given, not of this process's.
func TestAddrsOf(t *testing.T) {
	s := nsnet.New(t)
	own := netip.MustParseAddr("192.0.2.77")
	s.Run("ip", "addr", "add", "192.0.2.77/32", "dev", "lo")
	has := func(path string) (n int) {
		addrs, err := kernel.AddrsOf(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if a == own {
				n++
			}
		}
		return n
	}
	if has(s.Path) != 1 || has("/proc/self/ns/net") != 0 {
		t.Errorf("its address is there %d times, and %d times here; want 1 and 0", has(s.Path), has("/proc/self/ns/net"))
	}
}
