package collect

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
)

// A process's directory is kept from cycle to cycle, and another process is used once it
// has ended, has moved to another namespace, or is the pod's no longer, even if another
// process has its number. No descriptor is left behind.
func TestDoors(t *testing.T) {
	root, netns := fakeProc(t, 20, 21, 22)
	shared := netns[1]
	at := func(pid int, name string) string { return filepath.Join(root, fmt.Sprint(pid), name) }
	move := func(pid, to int) { // into the network namespace of another process
		t.Helper()
		if err := os.Remove(at(pid, "ns/net")); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(at(to, "ns/net"), at(pid, "ns/net")); err != nil {
			t.Fatal(err)
		}
	}
	move(21, 20)
	pods := &somePods{running: []*owner.Pod{{ID: "a", UID: "a", Namespace: "ns", Name: "a", Netns: shared, PIDs: []int{20, 21}}}}
	before := testkit.OpenFiles(t)
	r, err := NewRunner(Options{ProcRoot: root, Pods: pods, HostNetns: at(1, "ns/net"), HostLabel: owner.DefaultHostLabel, Node: "node1",
		Enabled: []string{"tcp"}, Interval: time.Hour, Timeout: testkit.Patience}, probe("tcp", EachNetns, readValue(mInsegs)))
	if err != nil {
		t.Fatal(err)
	}
	value := func() float64 {
		t.Helper()
		v, ok := values(r.Cycle())["kubeskoop_tcp_insegs{node1,ns,a}"]
		if !ok {
			return -1
		}
		return v
	}
	expect := func(when string, want float64) {
		t.Helper()
		for range 3 {
			if got := value(); got != want {
				t.Errorf("%s: read through process %v, want %v", when, got, want)
			}
		}
	}
	expect("at first", 20)
	steady := testkit.OpenFiles(t)
	expect("later", 20)
	if n := testkit.OpenFiles(t); n != steady {
		t.Errorf("%d open descriptors, %d before", n, steady)
	}

	if err := os.Rename(at(20, ""), at(90, "")); err != nil {
		t.Fatal(err)
	}
	write(t, at(90, "net/value"), "90")
	if err := os.RemoveAll(at(90, "ns")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"ns", "net"} { // another process with the number of the one that ended
		if err := os.MkdirAll(at(20, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, at(20, "ns/net"), "")
	write(t, at(20, "net/value"), "-20")
	expect("the process has ended", 21)

	move(22, 21)
	pods.running[0].PIDs = []int{22}
	expect("the process is the pod's no longer", 22)

	pods.running[0].PIDs = []int{22, 21}
	move(22, 1)
	expect("the process has moved", 21)

	pods.running = nil
	r.Cycle()
	if n := testkit.OpenFiles(t); n >= steady {
		t.Errorf("%d open descriptors without the pod, %d with it", n, steady)
	}
	r.Close()
	if n := testkit.OpenFiles(t); n != before {
		t.Errorf("%d open descriptors at the end, %d before", n, before)
	}
}
