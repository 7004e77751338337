package trace

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

// TestEventTime: an event has the time of day of its occurrence.
func TestEventTime(t *testing.T) {
	l := newLab(t, EventLimits{20, 100}, nil, "packetloss")
	before := time.Now()
	l.flood(l.a, "10.0.0.2:9", 1) // nothing listens
	l.settled("PacketLoss", 1)
	after := time.Now()
	events := slices.DeleteFunc(l.sink.of("PacketLoss"), func(e *event.Event) bool {
		return e.Dst.Port != 9 || e.Pod == nil || e.Pod.Name != "db-0" // of others on this machine
	})
	if len(events) == 0 {
		t.Fatal("no event")
	}
	for _, e := range events {
		if slack := 50 * time.Millisecond; e.Time.Before(before.Add(-slack)) || e.Time.After(after.Add(slack)) {
			t.Errorf("an event at %v, between %v and %v", e.Time, before, after)
		}
	}
}

// TestEventTimeInTimeNamespace: TestEventTime in a time namespace, in which this
// process's clocks differ from the kernel's.
func TestEventTimeInTimeNamespace(t *testing.T) {
	need.Root(t)
	need.Program(t, "unshare")
	_, err := os.Stat("/proc/self/ns/time")
	need.Kernel(t, err == nil, fmt.Sprintf("no time namespaces: %v", err))
	// A time namespace cannot set a clock below 0, and this machine may have just
	// been booted.
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &up); err != nil {
		t.Fatal(err)
	}
	for _, offset := range []int64{864000, -min(60, up.Sec/2)} {
		// Before Linux 6.3 only children enter the namespace.
		cmd := exec.Command("unshare", "--fork", "--time", "--monotonic", strconv.FormatInt(offset, 10), "--boottime", "864000", os.Args[0], "-test.run", "^TestEventTime$", "-test.count", "1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("monotonic %d: %v\n%s", offset, err, out)
		}
	}
}

// TestFlowsOfAnotherHost: with host_netns, the node's addresses are those of that
// namespace, not of the daemon's.
func TestFlowsOfAnotherHost(t *testing.T) {
	need.Root(t)
	host, peer := nsnet.New(t), nsnet.New(t)
	nsnet.Connect(host, peer)
	p := peer.Pod("db-0")
	tracer := New(Options{})
	t.Cleanup(func() { _ = tracer.Close() })
	r, err := collect.NewRunner(collect.Options{
		Node: "n1", HostLabel: "hostNetwork", HostNetns: host.Path, Interval: time.Hour, Timeout: 10 * time.Second,
		Enabled: []string{"flow"}, Pods: &nsnet.Pods{List: []*owner.Pod{p}},
	}, tracer.Factories()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	l := &lab{t: t, r: r}
	l.values()
	// An address of the daemon's own namespace is not the node's.
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	foreign := ""
	for _, a := range own {
		if n := a.(*net.IPNet); n.IP.To4() != nil && !n.IP.IsLoopback() {
			foreign = n.IP.String()
		}
	}
	send := func(from *nsnet.Space, to string, n int) {
		c := from.Dial("udp", to)
		for range n {
			_, _ = c.Write(make([]byte, 100))
		}
	}
	peer.Packets("udp", "10.0.0.2:99")
	host.Packets("udp", "10.0.0.1:99")
	send(host, "10.0.0.2:99", 7)
	send(peer, "10.0.0.1:99", 5)
	want := map[string]float64{
		"kubeskoop_flow_packets{hostNetwork,UDP,10.0.0.1,node,n1,,,10.0.0.2,unknown,,,,0,0}": 7,
		"kubeskoop_flow_packets{db-0,UDP,10.0.0.2,pod,n1,test,db-0,10.0.0.1,node,n1,,,0,0}":  5,
	}
	if foreign != "" {
		host.Run("ip", "route", "add", "default", "via", "10.0.0.2")
		send(host, foreign+":99", 3)
		want["kubeskoop_flow_packets{hostNetwork,UDP,10.0.0.1,node,n1,,,"+foreign+",unknown,,,,0,0}"] = 3
	}
	l.want(l.values(), want)
}
