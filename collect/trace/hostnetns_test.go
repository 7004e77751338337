package trace

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"nodeskoop/collect"
	"nodeskoop/collect/event"
	"nodeskoop/internal/testkit/nsnet"
)

// If host_netns names another namespace than this process's, the node's addresses
// are those of the named namespace.
func TestFlowsOfANamedHost(t *testing.T) {
	host := nsnet.New(t)
	host.Run("ip", "addr", "add", "192.0.2.77/32", "dev", "lo")
	tracer := New(Options{})
	r, err := collect.NewRunner(collect.Options{Node: "n1", HostLabel: "host", Interval: time.Hour, HostNetns: host.Path, Enabled: []string{"flow"}}, tracer.Factories()...)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.Cycle()
	to := host.Packets("udp", "192.0.2.77:9")
	var sent error
	host.Do(func() {
		var c net.Conn
		if c, sent = net.Dial("udp", to.LocalAddr().String()); sent == nil {
			defer c.Close()
			for range 7 {
				_, sent = c.Write([]byte("x"))
			}
		}
	})
	if sent != nil {
		t.Fatal(sent)
	}
	own := netip.MustParseAddr("192.0.2.77").String()
	packets, others := 0.0, 0
	for _, f := range r.Cycle() {
		if f.GetName() != "kubeskoop_flow_packets" {
			continue
		}
		for _, m := range f.GetMetric() {
			l := map[string]string{}
			for _, p := range m.GetLabel() {
				l[p.GetName()] = p.GetValue()
			}
			if l["src"] != own {
				continue
			}
			if l["src_type"] == event.EndNode && l["dst_type"] == event.EndNode && l["src_node"] == "n1" {
				packets += m.GetCounter().GetValue()
			} else {
				others++
			}
		}
	}
	if packets != 7 || others != 0 {
		t.Errorf("%v packets are the node's, want 7; %d series of its address are not", packets, others)
	}
}
