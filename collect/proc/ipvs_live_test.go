package proc

import (
	"encoding/json"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
	"nodeskoop/internal/testkit/proof"
)

// ipvsFields are the metrics in the order in which ipvsadm prints them.
var ipvsFields = [ipvsColumns]string{"kubeskoop_ipvs_connections", "kubeskoop_ipvs_incomingpackets",
	"kubeskoop_ipvs_outgoingpackets", "kubeskoop_ipvs_incomingbytes", "kubeskoop_ipvs_outgoingbytes"}

// director is a namespace that forwards a client's packets for a virtual address to a real
// server, over IPv4 and IPv6.
type director struct {
	*nsnet.Space
	client, server *nsnet.Space
}

const (
	virtual4 = "10.9.9.9"
	virtual6 = "fd09::9"
)

func newDirector(t *testing.T) *director {
	t.Helper()
	d := &director{nsnet.New(t), nsnet.New(t), nsnet.New(t)}
	_, err := exec.LookPath("ipvsadm")
	need.VM(t, err == nil, "the program ipvsadm")
	out, err := d.Try("ipvsadm", "-L", "-n")
	need.VM(t, err == nil, "the module ip_vs: "+out)
	need.Program(t, "nft")
	for _, s := range []*nsnet.Space{d.Space, d.client, d.server} {
		s.Sysctl("net/ipv6/conf/default/router_solicitations", "0")
	}
	nsnet.Connect(d.client, d.Space)
	d.Run("ip", "link", "add", "servers", "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(d.server.PID))
	for _, x := range []struct {
		s    *nsnet.Space
		dev  string
		last string
	}{{d.Space, "servers", "1"}, {d.server, "eth0", "2"}} {
		x.s.Run("ip", "addr", "add", "10.0.1."+x.last+"/24", "dev", x.dev)
		x.s.Run("ip", "addr", "add", "fd01::"+x.last+"/64", "dev", x.dev, "nodad")
		x.s.Run("ip", "link", "set", x.dev, "up")
	}
	d.server.Run("ip", "route", "add", "default", "via", "10.0.1.1")
	d.server.Run("ip", "route", "add", "default", "via", "fd01::1")
	d.client.Run("ip", "route", "add", virtual4, "via", "10.0.0.2")
	d.client.Run("ip", "route", "add", virtual6, "via", "fd00::2")
	d.Run("ip", "addr", "add", virtual4+"/32", "dev", "lo")
	d.Run("ip", "addr", "add", virtual6+"/128", "dev", "lo")
	d.Sysctl("net/ipv4/ip_forward", "1")
	d.Sysctl("net/ipv6/conf/all/forwarding", "1")
	for _, kind := range []string{"-t", "-u"} {
		for virtual, real := range map[string]string{virtual4: "10.0.1.2", "[" + virtual6 + "]": "[fd01::2]"} {
			d.Run("ipvsadm", "-A", kind, virtual+":80", "-s", "rr")
			d.Run("ipvsadm", "-a", kind, virtual+":80", "-r", real+":80", "-m")
		}
	}
	return d
}

// ipvsadm sums what ipvsadm prints of the virtual services.
func (d *director) ipvsadm(t *testing.T) (sums [ipvsColumns]uint64, services int) {
	t.Helper()
	for line := range strings.Lines(d.Run("ipvsadm", "-L", "-n", "--stats", "--exact")) {
		f := strings.Fields(line)
		if len(f) != 2+ipvsColumns || f[0] != "TCP" && f[0] != "UDP" {
			continue
		}
		services++
		for i, text := range f[2:] {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			sums[i] += n
		}
	}
	return sums, services
}

// counted sums the packets and bytes of the client's packet filter, to and from the virtual
// addresses.
func (d *director) counted(t *testing.T) (sums [ipvsColumns]uint64) {
	t.Helper()
	var list struct {
		Nftables []struct {
			Counter *struct {
				Name           string
				Packets, Bytes uint64
			}
		}
	}
	if err := json.Unmarshal([]byte(d.client.Run("nft", "-j", "list", "counters", "table", "inet", "count")), &list); err != nil {
		t.Fatal(err)
	}
	for _, x := range list.Nftables {
		switch {
		case x.Counter == nil:
		case x.Counter.Name == "sent":
			sums[ipvsInPackets], sums[ipvsInBytes] = x.Counter.Packets, x.Counter.Bytes
		case x.Counter.Name == "got":
			sums[ipvsOutPackets], sums[ipvsOutBytes] = x.Counter.Packets, x.Counter.Bytes
		}
	}
	return sums
}

// TestIPVSAgainstIPVSAdm sends TCP and UDP to a virtual service, and compares each field
// with ipvsadm and with the client's own counters.
func TestIPVSAgainstIPVSAdm(t *testing.T) {
	d := newDirector(t)
	for _, args := range []string{
		"add table inet count",
		"add counter inet count sent",
		"add counter inet count got",
		"add chain inet count out { type filter hook output priority 0; }",
		"add chain inet count in { type filter hook input priority 0; }",
		"add rule inet count out ip daddr " + virtual4 + " counter name sent",
		"add rule inet count out ip6 daddr " + virtual6 + " counter name sent",
		"add rule inet count in ip saddr " + virtual4 + " counter name got",
		"add rule inet count in ip6 saddr " + virtual6 + " counter name got",
	} {
		d.client.Run("nft", args)
	}
	const connections, flows, datagrams = 5, 7, 10
	for virtual, real := range map[string]string{virtual4: "10.0.1.2", "[" + virtual6 + "]": "[fd01::2]"} {
		l, u := d.server.Listen("tcp", real+":80"), d.server.Packets("udp", real+":80")
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		}()
		go func() {
			b := make([]byte, 2000)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(b[:n], from)
			}
		}()
		for range connections {
			c := d.client.Dial("tcp", virtual+":80").(*net.TCPConn)
			if _, err := c.Write(make([]byte, 20000)); err != nil {
				t.Fatal(err)
			}
			_ = c.CloseWrite()
			if n, err := io.Copy(io.Discard, c); n != 20000 || err != nil {
				t.Fatal(n, err)
			}
			_ = c.Close()
		}
		for range flows {
			c := d.client.Dial("udp", virtual+":80")
			for i := range datagrams {
				if _, err := c.Write(make([]byte, 100*i)); err != nil {
					t.Fatal(err)
				}
				if n, err := c.Read(make([]byte, 2000)); n != 100*i || err != nil {
					t.Fatal(n, err)
				}
			}
		}
	}
	settle(t, d.Space, d.client, d.server)

	own := d.counted(t)
	own[ipvsConnections] = 2 * (connections + flows)
	asPod := nsnet.NewSampler(t, collect.Options{Enabled: []string{"ipvs"}, Probes: map[string]map[string]any{"ipvs": {"pods": true}},
		Pods: &nsnet.Pods{List: []*owner.Pod{d.Pod("director"), d.client.Pod("client")}}}, Probes()...)
	asHost := nsnet.NewSampler(t, collect.Options{Enabled: []string{"ipvs"}, HostNetns: d.Path}, Probes()...)
	// The kernel sums its per-CPU counters every two seconds, for each service and for the
	// totals at different times.
	var pods, host nsnet.Values
	var want [ipvsColumns]uint64
	testkit.Within(testkit.Patience, func() bool {
		var services int
		if want, services = d.ipvsadm(t); services != 4 {
			t.Fatalf("ipvsadm lists %d services, want 4", services)
		}
		pods, host = asPod.Sample(), asHost.Sample()
		return want == own && uint64(pods["director"][ipvsFields[ipvsOutBytes]]) == own[ipvsOutBytes] && uint64(host[nsnet.Host][ipvsFields[ipvsOutBytes]]) == own[ipvsOutBytes]
	})
	for i, name := range ipvsFields {
		got := uint64(pods["director"][name])
		proof.Count(t, "ipvs", "procfs", strings.TrimPrefix(name, "kubeskoop_ipvs_")+" of virtual services, by ipvsadm", want[i], got)
		proof.Count(t, "ipvs", "procfs", strings.TrimPrefix(name, "kubeskoop_ipvs_")+" of virtual services, by the client", own[i], got)
		if got == 0 || host[nsnet.Host][name] != float64(got) || pods["client"][name] != 0 {
			t.Errorf("%s: %v of the director, %v of it as the host, %v of the client", name, got, host[nsnet.Host][name], pods["client"][name])
		}
	}
}
