package trace

import (
	"net/netip"
	"testing"

	"nodeskoop/bpf"
)

// A datagram socket that is not connected has no peer: its address is missing, not
// 0.0.0.0 or ::. The socket's own address may be unspecified: it receives at all.
func TestPeerOfAnUnconnectedSocket(t *testing.T) {
	c := &converter{}
	for _, x := range []struct{ from, to, want string }{
		{"10.0.0.5:53", "0.0.0.0:0", "10.0.0.5:53 -> ? UDP"},
		{"0.0.0.0:53", "0.0.0.0:0", "0.0.0.0:53 -> ? UDP"},
		{"[::]:53", "[::]:0", "[::]:53 -> ? UDP"},
		{"[::ffff:10.0.0.5]:53", "[::]:0", "10.0.0.5:53 -> ? UDP"},
		{"10.0.0.5:53", "10.0.0.9:4000", "10.0.0.5:53 -> 10.0.0.9:4000 UDP"},
		{"0.0.0.0:68", "255.255.255.255:67", "0.0.0.0:68 -> 255.255.255.255:67 UDP"},
	} {
		e := c.event(&bpf.Event{
			Type: bpf.SocklatReadSlow, Protocol: 17,
			Source: netip.MustParseAddrPort(x.from), Destination: netip.MustParseAddrPort(x.to),
		})
		if got := string(e.AppendTuple(nil)); got != x.want {
			t.Errorf("%s to %s: %s, want %s", x.from, x.to, got, x.want)
		}
		fields := map[string]string{}
		e.Fields(nil, func(name string, value []byte) { fields[name] = string(value) })
		peer := e.Dst.Addr.IsValid()
		for _, name := range []string{"KUBESKOOP_DADDR", "KUBESKOOP_DPORT", "KUBESKOOP_DST_TYPE"} {
			if _, has := fields[name]; has != peer {
				t.Errorf("%s to %s: %s is %q", x.from, x.to, name, fields[name])
			}
		}
		if fields["KUBESKOOP_SPORT"] == "" || fields["KUBESKOOP_SADDR"] == "" {
			t.Errorf("%s to %s: %v", x.from, x.to, fields)
		}
	}
}
