package collect

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
)

// The directory of one process is kept from cycle to cycle. Another process takes its
// place once the first has ended, moved to another namespace, or left the pod, even if
// a new process has its number. No descriptor is left open.
func TestDoors(t *testing.T) {
	root, netns := fakeProc(t, 20, 21, 22)
	shared := netns[1]
	at := func(pid int, name string) string { return filepath.Join(root, fmt.Sprint(pid), name) }
	move := func(pid, to int) { // move puts a process into the network namespace of another one
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
	// Count only descriptors of the pod's processes, since the test program opens
	// others.
	doors := func() (n int) {
		t.Helper()
		links, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && (strings.HasPrefix(to, root+"/2") || strings.HasPrefix(to, root+"/90")) {
				n++
			}
		}
		return n
	}
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
	expect("later", 20)
	testkit.Eventually(t, "one directory is kept", func() bool { return doors() == 1 })

	if err := os.Rename(at(20, ""), at(90, "")); err != nil {
		t.Fatal(err)
	}
	write(t, at(90, "net/value"), "90")
	if err := os.RemoveAll(at(90, "ns")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"ns", "net"} { // another process gets the number of the ended one
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

	testkit.Eventually(t, "one directory is kept of three", func() bool { return doors() == 1 })
	pods.running = nil
	testkit.Eventually(t, "nothing of the pod is open once it has ended", func() bool { r.Cycle(); return doors() == 0 })
	r.Close()
}
