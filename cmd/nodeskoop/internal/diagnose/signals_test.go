package diagnose

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"

	"nodeskoop/collect/catalog"
)

var begin = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)

const (
	webAddr    = "10.0.0.3"
	clientAddr = "10.0.0.2"
)

// record is a recording of ten seconds of a node with two pods, in which nothing
// happened. f adds changes.
func record(f func(r *recording)) []observation {
	state := func() map[string]*netnsState {
		m := map[string]*netnsState{}
		for _, name := range []string{Node, web, client} {
			m[name] = &netnsState{counters: map[string]uint64{"TcpExtListenOverflows": 5, "TcpOutSegs": 1000}, default4: true, portsFrom: 32768, portsTo: 60999, twMax: 8192}
		}
		return m
	}
	r := &recording{
		before: moment{at: begin, netns: state(), node: &nodeState{}, values: map[string]values{Node: {}}, groups: map[string]groupState{}},
		after:  moment{at: begin.Add(10 * time.Second), netns: state(), node: &nodeState{}, values: map[string]values{Node: {}}, groups: map[string]groupState{}},
		pods:   map[netip.Addr]string{netip.MustParseAddr(webAddr): web, netip.MustParseAddr(clientAddr): client},
		nodes:  map[netip.Addr]bool{netip.MustParseAddr("10.0.0.1"): true},
		middle: []map[string][]socket{{}, {}},
	}
	f(r)
	return observe(r)
}

func port(addr string, n uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(addr), n)
}

func endAt(name, addr string, n uint16) end { return end{name: name, addr: addr, port: n} }

// text returns the observations, one per line, without those that are always
// present.
func text(list []observation) string {
	var out []string
	for _, x := range list {
		if catalog.IsCounter(x.signal) && x.signal != "TcpExtListenOverflows" {
			continue
		}
		line := fmt.Sprintf("%s %s", x.signal, x.owner)
		if x.peer != "" {
			line += " " + x.peer
		}
		line += fmt.Sprintf(" %.4g", x.value)
		if x.what != "" {
			line += " " + x.what
		}
		if x.blame != "" {
			line += " !" + x.blame
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

func TestObserve(t *testing.T) {
	at := func(s float64) time.Time { return begin.Add(time.Duration(s * float64(time.Second))) }
	connected := func(info netlink.TCPInfo, rx, tx uint32) socket {
		return socket{state: established, local: port(clientAddr, 40000), remote: port(far, 80), rx: rx, tx: tx, info: &info}
	}
	for _, c := range []struct {
		what string
		make func(r *recording)
		want string
	}{
		{"nothing", func(*recording) {}, ""},
		{"a counter that rises, and one that was reset", func(r *recording) {
			r.after.netns[web].counters["TcpExtListenOverflows"] = 42
			r.after.netns[client].counters["TcpExtListenOverflows"] = 1
		}, "TcpExtListenOverflows shop/web-0 37"},
		{"a pod that another of its name replaced", func(r *recording) {
			r.before.ids, r.after.ids = map[string]string{web: "a"}, map[string]string{web: "b"}
			r.after.netns[web].counters["TcpExtListenOverflows"] = 42
		}, ""},
		{"a pod that started meanwhile", func(r *recording) { delete(r.before.netns, web) }, ""},

		{"drops by a pod's rule", func(r *recording) {
			r.events = []occurrence{{typ: "PacketLoss", owner: web, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 8080), protocol: "TCP", reason: "NETFILTER_DROP", function: "nft_do_chain", at: at(1), n: 3},
				{typ: "TCPRetrans", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 8080), state: "SYN_SENT", at: at(2), n: 1}}
		}, "drop.local shop/client-0 shop/web-0 3\ndrop.local shop/web-0 shop/client-0 3\ndrop.rule shop/web-0 shop/client-0 3 TCP port 8080\nsyn.retransmitted shop/client-0 shop/web-0 1"},
		{"drops by a rule, by a kernel without reasons", func(r *recording) {
			for i := range 10 {
				r.events = append(r.events, occurrence{typ: "PacketLoss", owner: web, src: endAt(far, far, 40000), dst: endAt(web, webAddr, 8080), protocol: "TCP", function: "nf_hook_slow", at: at(float64(i) / 2), n: 1})
			}
		}, "drop.local shop/web-0 192.0.2.7 10\ndrop.rule shop/web-0 192.0.2.7 10 TCP port 8080"},
		{"datagrams that a rule drops", func(r *recording) {
			r.events = []occurrence{{typ: "PacketLoss", owner: web, src: endAt(far, far, 40000), dst: endAt(web, webAddr, 53), protocol: "UDP", reason: "NETFILTER_DROP", at: at(1), n: 3}}
		}, "drop.local shop/web-0 192.0.2.7 3\ndrop.rule shop/web-0 192.0.2.7 3 UDP port 53"},
		{"late segments of connections that conntrack has forgotten", func(r *recording) {
			for i := range 9 {
				r.events = append(r.events, occurrence{typ: "PacketLoss", owner: Node, src: endAt(client, clientAddr, 40000), dst: endAt(far, far, 443), protocol: "TCP", reason: "NETFILTER_DROP", at: at(float64(i)), n: 1},
					occurrence{typ: "TCPRetrans", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(far, far, 443), state: "LAST_ACK", at: at(float64(i)), n: 1})
			}
		}, "drop.local shop/client-0 192.0.2.7 9\ntcp.lost shop/client-0 192.0.2.7 9\ntcp.retransmitted shop/client-0 192.0.2.7 9"},
		{"what the node's firewall refuses to strangers", func(r *recording) {
			r.events = []occurrence{{typ: "PacketLoss", owner: Node, src: endAt(far, far, 40000), dst: endAt(Node, "10.0.0.1", 23), protocol: "TCP", reason: "NETFILTER_DROP", at: at(1), n: 300}}
		}, ""},
		{"what conntrack could not enter is no rule's", func(r *recording) {
			r.before.values[Node] = values{"kubeskoop_conntrack_insertfailed": 1}
			r.after.values[Node] = values{"kubeskoop_conntrack_insertfailed": 4}
			r.events = []occurrence{{typ: "PacketLoss", owner: Node, src: endAt(client, clientAddr, 40000), dst: endAt(far, far, 53), protocol: "UDP", reason: "NETFILTER_DROP", function: "nf_hook_slow", at: at(1), n: 3}}
		}, "drop.local shop/client-0 192.0.2.7 3\ndrop.untracked node 3\nkubeskoop_conntrack_insertfailed node 3"},
		{"drops of a namespace that is neither's", func(r *recording) {
			r.events = []occurrence{{typ: "PacketLoss", src: endAt(client, clientAddr, 40000), dst: endAt(far, far, 80), reason: "NETFILTER_DROP", at: at(1), n: 9}}
		}, ""},

		{"a port that is closed all the time", func(r *recording) {
			for i := range 9 {
				r.events = append(r.events, occurrence{typ: "TCPRESET_NOSOCK", owner: web, src: endAt(web, webAddr, 8080), dst: endAt(client, clientAddr, 40000+uint16(i)), at: at(float64(i)), n: 1},
					occurrence{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000+uint16(i)), dst: endAt(web, webAddr, 8080), state: "SYN_SENT", at: at(float64(i)), n: 1})
			}
		}, "tcp.refused shop/client-0 shop/web-0 9 8080 !shop/web-0"},
		{"a few closed ports, and one who tries all", func(r *recording) {
			for i := range 9 {
				for p := range uint16(scannedPorts) {
					r.events = append(r.events, occurrence{typ: "TCPRESET_NOSOCK", owner: web, src: endAt(web, webAddr, 100+p), dst: endAt(far, far, 40000+uint16(i)), at: at(float64(i)), n: 1})
					if p > 0 {
						r.events = append(r.events, occurrence{typ: "TCPRESET_NOSOCK", owner: web, src: endAt(web, webAddr, 8080+p%2), dst: endAt(client, clientAddr, 40000+uint16(i)), at: at(float64(i)), n: 1},
							occurrence{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000+uint16(i)), dst: endAt(web, webAddr, 8080+p%2), state: "SYN_SENT", at: at(float64(i)), n: 1})
					}
				}
			}
		}, "tcp.refused shop/client-0 shop/web-0 45 8081 !shop/web-0\ntcp.refused shop/client-0 shop/web-0 36 8080 !shop/web-0"},
		{"a scan from the node hides nothing of the node's", func(r *recording) {
			for i := range 9 {
				for p := range uint16(scannedPorts) {
					n := uint64(1)
					if p == 0 && i%2 == 0 {
						n = 5
					}
					r.events = append(r.events, occurrence{typ: "TCPRESET_NOSOCK", owner: web, src: endAt(web, webAddr, 100+p), dst: endAt(Node, "10.0.0.1", 40000+uint16(i)), at: at(float64(i)), n: n},
						occurrence{typ: "TCPRESET_RECEIVE", owner: Node, src: endAt(Node, "10.0.0.1", 40000+uint16(i)), dst: endAt(web, webAddr, 100+p), state: "SYN_SENT", at: at(float64(i)), n: n})
				}
			}
		}, "tcp.refused node shop/web-0 29 100 !shop/web-0" + func() (rest string) {
			for p := 1; p < scannedPorts; p++ {
				rest += fmt.Sprintf("\ntcp.refused node shop/web-0 9 %d !shop/web-0", 100+p)
			}
			return rest
		}()},
		{"a server that starts", func(r *recording) {
			for i := range 9 {
				r.events = append(r.events, occurrence{typ: "TCPRESET_NOSOCK", owner: web, src: endAt(web, webAddr, 8080), dst: endAt(client, clientAddr, 40000+uint16(i)), at: at(float64(i)), n: 1},
					occurrence{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000+uint16(i)), dst: endAt(web, webAddr, 8080), state: "SYN_SENT", at: at(float64(i)), n: 1})
			}
			r.after.netns[web].sockets = []socket{{state: listening, local: port("::", 8080)}}
		}, ""},
		{"a moment's refusals", func(r *recording) {
			for i := range 9 {
				r.events = append(r.events, occurrence{typ: "TCPRESET_NOSOCK", owner: web, src: endAt(web, webAddr, 8080), dst: endAt(far, far, 40000), at: at(9 + float64(i)/10), n: 1})
			}
		}, ""},
		{"a server that listens on the loopback address", func(r *recording) {
			for i := range 9 {
				r.events = append(r.events, occurrence{typ: "TCPRESET_NOSOCK", owner: web, src: endAt(web, webAddr, 8080), dst: endAt(far, far, 40000), at: at(float64(i)), n: 1})
			}
			r.after.netns[web].sockets = []socket{{state: listening, local: port("127.0.0.1", 8080)}}
		}, "tcp.loopback_only 192.0.2.7 shop/web-0 9 8080 !shop/web-0"},
		{"datagrams to a closed port", func(r *recording) {
			for i := range 9 {
				r.events = append(r.events, occurrence{typ: "PacketLoss", owner: web, src: endAt(far, far, 40000), dst: endAt(web, webAddr, 8125), protocol: "UDP", reason: "NO_SOCKET", at: at(float64(i)), n: 1})
			}
		}, "drop.local shop/web-0 192.0.2.7 9\nudp.refused 192.0.2.7 shop/web-0 9 8125 !shop/web-0"},
		{"answers that come after their clients have given up", func(r *recording) {
			for i := range 9 {
				r.events = append(r.events, occurrence{typ: "PacketLoss", owner: web, src: endAt(far, far, 53), dst: endAt(web, webAddr, 40000), protocol: "UDP", reason: "NO_SOCKET", at: at(float64(i)), n: 1})
			}
		}, "drop.local shop/web-0 192.0.2.7 9"},
		{"resets that the peer sent", func(r *recording) {
			r.events = []occurrence{{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 8080), state: "ESTABLISHED", at: at(1), n: 1},
				{typ: "TCPRESET_ACTIVE", owner: web, src: endAt(web, webAddr, 8080), dst: endAt(client, clientAddr, 40000), at: at(1), n: 1}}
		}, ""},
		{"resets that the peer has not sent", func(r *recording) {
			r.events = []occurrence{{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 8080), state: "ESTABLISHED", at: at(1), n: 1}}
		}, "reset.unsent shop/client-0 shop/web-0 1"},
		{"resets, of which some of others were held back", func(r *recording) {
			r.left = map[leftOut]uint64{{"lab/thief-0", "TCPRESET_NOSOCK"}: 9, {web, "TCPRESET_RECEIVE"}: 9, {web, "PacketLoss"}: 9, {"", "TCPRESET_NOSOCK"}: 9}
			r.events = []occurrence{{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 8080), state: "ESTABLISHED", at: at(1), n: 1}}
		}, "reset.unsent shop/client-0 shop/web-0 1"},
		{"resets, of which some that are unattributed were held back", func(r *recording) {
			r.left = map[leftOut]uint64{{unattributed, "TCPRESET_NOSOCK"}: 1}
			r.events = []occurrence{{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 8080), state: "ESTABLISHED", at: at(1), n: 1}}
		}, ""},
		{"resets, of which some were held back", func(r *recording) {
			r.left = map[leftOut]uint64{{web, "TCPRESET_ACTIVE"}: 1}
			r.events = []occurrence{{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 8080), state: "ESTABLISHED", at: at(1), n: 1}}
		}, ""},
		{"resets, of which this kernel does not show all", func(r *recording) {
			r.resetsUnseen = true
			r.events = []occurrence{{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 8080), state: "ESTABLISHED", at: at(1), n: 1}}
		}, ""},
		{"a reset from a peer that is not here", func(r *recording) {
			r.events = []occurrence{{typ: "TCPRESET_RECEIVE", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(far, far, 8080), state: "ESTABLISHED", at: at(1), n: 1}}
		}, ""},

		{"a closed window", func(r *recording) {
			r.before.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000}, 0, 0)}
			s := connected(netlink.TCPInfo{Snd_mss: 1448, Notsent_bytes: 90000, Rwnd_limited: 8_000_000, Backoff: 3}, 0, 90000)
			s.timer = timerPersist
			r.after.netns[client].sockets = []socket{s}
		}, "window.closed shop/client-0 192.0.2.7 1"},
		{"a window that opens by and by", func(r *recording) {
			r.before.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 4000, Snd_mss: 1448, Rwnd_limited: 1_000_000, Rtt: 9000}, 0, 9000)}
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 4000, Snd_mss: 1448, Rwnd_limited: 9_000_000, Rtt: 9000, Bytes_acked: 200_000}, 0, 9000)}
		}, "window.closed shop/client-0 192.0.2.7 1"},
		{"a fast transfer that the window limits", func(r *recording) {
			r.before.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000, Snd_mss: 1448, Rwnd_limited: 1_000_000, Rtt: 20000}, 0, 90000)}
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000, Snd_mss: 1448, Rwnd_limited: 9_000_000, Rtt: 20000, Bytes_acked: 30_000_000}, 0, 90000)}
		}, ""},
		{"a window that fills a slow path", func(r *recording) {
			r.before.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000, Snd_mss: 1448, Rwnd_limited: 1_000_000, Rtt: 230_000}, 0, 90000)}
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000, Snd_mss: 1448, Rwnd_limited: 9_000_000, Rtt: 230_000, Bytes_acked: 2_500_000}, 0, 90000)}
		}, ""},
		{"an idle connection to a peer without a window", func(r *recording) {
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 0, Snd_mss: 1448, Rwnd_limited: 8_000_000}, 0, 0)}
		}, ""},
		{"large segments that get lost", func(r *recording) {
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000, Snd_mss: 1448, Unacked: 6, Retransmits: 3, Bytes_acked: 1}, 0, 8192)}
		}, "stuck.large shop/client-0 192.0.2.7 1"},
		{"segments that get lost of a peer that does not answer", func(r *recording) {
			r.before.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000, Snd_mss: 1448, Bytes_acked: 7000}, 0, 0)}
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000, Snd_mss: 1448, Unacked: 6, Retransmits: 3, Bytes_acked: 7000}, 0, 8192)}
		}, ""},
		{"small segments that get lost", func(r *recording) {
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Snd_wnd: 60000, Snd_mss: 1448, Unacked: 1, Retransmits: 3}, 0, 100)}
		}, "stuck.small shop/client-0 192.0.2.7 1"},
		{"data that nobody reads", func(r *recording) {
			r.before.netns[client].sockets = []socket{connected(netlink.TCPInfo{Bytes_received: 5000}, 5000, 0)}
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Bytes_received: 95000}, 95000, 0)}
		}, "unread.stands shop/client-0 192.0.2.7 9.5e+04"},
		{"a rule that rejects", func(r *recording) {
			for i := range 3 {
				from := endAt(client, clientAddr, uint16(40000+i))
				r.events = append(r.events, occurrence{typ: "PacketLoss", owner: web, src: from, dst: endAt(web, webAddr, 8080), protocol: "TCP", reason: "NETFILTER_DROP", at: at(float64(3 * i)), n: 1},
					occurrence{typ: "TCPRESET_RECEIVE", owner: client, src: from, dst: endAt(web, webAddr, 8080), state: "SYN_SENT", at: at(float64(3 * i)), n: 1})
			}
		}, "drop.local shop/client-0 shop/web-0 3\ndrop.local shop/web-0 shop/client-0 3\ndrop.rule shop/web-0 shop/client-0 3 TCP port 8080"},
		{"a rule of somebody else, who sends with the addresses of both", func(r *recording) {
			for i := range 3 {
				from := endAt(client, clientAddr, uint16(40000+i))
				for _, thief := range []string{"", "lab/thief-0"} {
					r.events = append(r.events, occurrence{typ: "PacketLoss", owner: thief, src: from, dst: endAt(web, webAddr, 8080), protocol: "TCP", reason: "NETFILTER_DROP", at: at(float64(3 * i)), n: 1})
				}
				r.events = append(r.events, occurrence{typ: "TCPRESET_RECEIVE", owner: client, src: from, dst: endAt(web, webAddr, 8080), state: "ESTABLISHED", at: at(float64(3 * i)), n: 1})
			}
		}, "reset.unsent shop/client-0 shop/web-0 3"},
		{"a shaper of the node in front of a pod", func(r *recording) {
			r.after.netns[client].links = []link{{name: "eth0", index: 2, peer: 5}}
			r.after.netns[Node].links = []link{{name: "veth1", index: 5}, {name: "up0", index: 6}}
			r.before.netns[Node].qdiscs = []qdisc{{device: "veth1", kind: "tbf", handle: 1, rate: 1000}, {device: "up0", kind: "fq_codel"}}
			r.after.netns[Node].qdiscs = []qdisc{{device: "veth1", kind: "tbf", handle: 1, rate: 1000, bytes: 9900, packets: 100, limits: 90}, {device: "up0", kind: "fq_codel", packets: 7}}
		}, "queue.packets node 7 up0\nshaper.packets shop/client-0 100 veth1 of the node\nshaper.waits shop/client-0 90 veth1 of the node"},
		{"a server that is stuck, also for a proxy beside it", func(r *recording) {
			stuck(r, netlink.TCPInfo{Bytes_received: 64}, netlink.TCPInfo{Bytes_received: 64})
		}, "unread.server shop/web-0 2 8080"},
		{"a server that lets requests wait and answers others", func(r *recording) {
			stuck(r, netlink.TCPInfo{Bytes_received: 64}, netlink.TCPInfo{Bytes_received: 64})
			r.middle[1][web] = []socket{{state: established, local: port(webAddr, 8080), remote: port(far, 40009), info: &netlink.TCPInfo{Bytes_received: 64, Bytes_acked: 64}}}
		}, ""},
		{"a server that reads one of its connections", func(r *recording) {
			stuck(r, netlink.TCPInfo{Bytes_received: 64}, netlink.TCPInfo{Bytes_received: 128})
		}, ""},
		{"clients that have come and gone without a word", func(r *recording) {
			for _, at := range []*[]socket{&r.before.netns[web].sockets, &r.after.netns[web].sockets} {
				*at = []socket{{state: listening, local: port("::", 8080), tx: 8}}
				for i := range 9 {
					*at = append(*at, socket{state: closeWait, local: port(webAddr, 8080), remote: port(far, uint16(40000+i)), rx: 1, info: &netlink.TCPInfo{}})
				}
			}
		}, ""},
		{"a client that does not read what its server tells it now and then", func(r *recording) {
			for _, at := range []*[]socket{&r.before.netns[client].sockets, &r.after.netns[client].sockets} {
				*at = nil
				for i := range 9 {
					*at = append(*at, socket{state: established, local: port(clientAddr, uint16(40000+i)), remote: port(far, 443), rx: 500, info: &netlink.TCPInfo{Bytes_received: 500}})
				}
			}
		}, ""},
		{"data of which some were read", func(r *recording) {
			r.before.netns[client].sockets = []socket{connected(netlink.TCPInfo{Bytes_received: 5000}, 5000, 0)}
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Bytes_received: 995000}, 95000, 0)}
		}, ""},
		{"a farewell that nobody reads", func(r *recording) {
			r.before.netns[client].sockets = []socket{connected(netlink.TCPInfo{Bytes_received: 5000}, 31, 0)}
			r.after.netns[client].sockets = []socket{connected(netlink.TCPInfo{Bytes_received: 5000}, 31, 0)}
		}, ""},
		{"a full accept queue", func(r *recording) {
			r.middle[0][web] = []socket{{state: listening, local: port("::", 8080), rx: 9, tx: 8}}
			r.after.netns[web].sockets = []socket{{state: listening, local: port("::", 8080), rx: 2, tx: 8}}
		}, "listen.full shop/web-0 9 8080, which holds 8"},
		{"half-open handshakes of one address, in each sample", func(r *recording) {
			var half []socket
			for i := range 30 {
				half = append(half, socket{state: synRecv, local: port(webAddr, 8080), remote: port(far, 1000+uint16(i))})
			}
			r.middle[0][web], r.middle[1][web], r.after.netns[web].sockets = half, half, half[:20]
		}, "syn.half_open shop/web-0 192.0.2.7 20"},
		{"a burst of handshakes", func(r *recording) {
			var half []socket
			for i := range 30 {
				half = append(half, socket{state: synRecv, local: port(webAddr, 8080), remote: port(far, 1000+uint16(i))})
			}
			r.middle[0][web] = half
		}, ""},
		{"IPv6 that does not answer", func(r *recording) {
			asks := []socket{{state: synSent, local: port("2001:db8::2", 40000), remote: port("2001:db8::7", 80)}, {state: timeWait, local: port(clientAddr, 40000), remote: port(far, 80)}}
			r.before.netns[client].sockets, r.middle[0][client], r.middle[1][client], r.after.netns[client].sockets = asks, asks, asks, asks
			r.after.netns[client].default6 = true
		}, "ipv6.stuck shop/client-0 2001:db8::7 4"},
		{"IPv6 that answers", func(r *recording) {
			asks := []socket{{state: synSent, local: port("2001:db8::2", 40000), remote: port("2001:db8::7", 80)}, {state: established, local: port("2001:db8::2", 40001), remote: port("2001:db8::7", 80)}, {state: timeWait, local: port(clientAddr, 40000), remote: port(far, 80)}}
			r.before.netns[client].sockets, r.middle[0][client], r.middle[1][client], r.after.netns[client].sockets = asks, asks, asks, asks
		}, ""},
		{"no IPv6 route, with an address", func(r *recording) {
			r.after.netns[client].addrs = []address{{netip.MustParseAddr("2001:db8::2"), 64, "eth0"}}
			r.before.netns[client].counters["Ip6OutNoRoutes"], r.after.netns[client].counters["Ip6OutNoRoutes"] = 1, 10
		}, "ipv6.no_route shop/client-0 9 !shop/client-0"},
		{"no IPv6 at all", func(r *recording) {
			r.after.netns[client].addrs = []address{{netip.MustParseAddr("fe80::2"), 64, "eth0"}}
			r.before.netns[client].counters["Ip6OutNoRoutes"], r.after.netns[client].counters["Ip6OutNoRoutes"] = 1, 10
		}, ""},
		{"ports in TIME_WAIT, to one destination and to many", func(r *recording) {
			s := r.after.netns[client]
			s.portsFrom, s.portsTo, s.twMax = 40000, 40099, 0
			r.after.netns[web].twMax = 0
			for i := range 100 {
				s.sockets = append(s.sockets, socket{state: timeWait, local: port(clientAddr, 40000+uint16(i)), remote: port(webAddr, 80)})
				r.after.netns[web].sockets = append(r.after.netns[web].sockets, socket{state: timeWait, local: port(webAddr, 40000+uint16(i)), remote: port(far, 80+uint16(i))})
			}
		}, "ports.time_wait shop/client-0 shop/web-0 100 10.0.0.3:80, 100 of 100"},
		{"a shaper at its rate", func(r *recording) {
			r.before.netns[client].qdiscs = []qdisc{{device: "eth0", kind: "tbf", handle: 1, rate: 1000}}
			r.after.netns[client].qdiscs = []qdisc{{device: "eth0", kind: "tbf", handle: 1, rate: 1000, bytes: 9900, packets: 100, limits: 90, qlen: 3}, {device: "eth0", kind: "bfifo", handle: 2, packets: 100, drops: 9}}
		}, "shaper.packets shop/client-0 100 eth0\nshaper.queue shop/client-0 3 eth0\nshaper.waits shop/client-0 90 eth0"},
		{"a shaper below its rate that has no room for bursts", func(r *recording) {
			r.before.netns[client].qdiscs = []qdisc{{device: "eth0", kind: "tbf", handle: 1, rate: 1000}}
			r.after.netns[client].qdiscs = []qdisc{{device: "eth0", kind: "tbf", handle: 1, rate: 1000, bytes: 2500, packets: 100, limits: 90, drops: 50}}
		}, "queue.drops shop/client-0 50 eth0\nqueue.packets shop/client-0 150 eth0"},
		{"a pod that is throttled", func(r *recording) {
			r.before.groups[web] = groupState{periods: 100, throttled: 10}
			r.after.groups[web] = groupState{periods: 200, throttled: 60, throttledFor: 4e9}
		}, "cpu.throttled shop/web-0 50\ncpu.throttled_time shop/web-0 40"},
		{"a pod at its limit of a disk", func(r *recording) {
			k := ioKey{"8:0", "riops"}
			r.before.groups[web] = groupState{done: map[ioKey]uint64{k: 100}}
			r.after.groups[web] = groupState{done: map[ioKey]uint64{k: 150}, limits: []ioLimit{{k, 5}}}
		}, "disk.limit shop/web-0 100 8:0 riops=5"},
		{"a pod that waits below its limit, for a fast disk", func(r *recording) {
			heldAt(r, 40)
		}, "disk.held shop/web-0 60 8:0 riops=5\ndisk.ios node 40 sda\ndisk.limit shop/web-0 80 8:0 riops=5\ndisk.stall shop/web-0 60\ndisk.wait node 1 sda"},
		{"a pod that waits below its limit, for a slow disk", func(r *recording) {
			heldAt(r, 4000)
		}, "disk.ios node 40 sda\ndisk.limit shop/web-0 80 8:0 riops=5\ndisk.stall shop/web-0 60\ndisk.wait node 100 sda"},
		{"a busy CPU and a slow disk", func(r *recording) {
			r.before.node = &nodeState{cpus: map[int64]procfs.CPUStat{0: {}, 3: {}}, disks: map[string]disk{"sda": {}}, stall: map[string]uint64{"io": 0}}
			r.after.node = &nodeState{cpus: map[int64]procfs.CPUStat{0: {Idle: 9.99, SoftIRQ: 0.01}, 2: {SoftIRQ: 5}, 3: {Idle: 2, SoftIRQ: 8}}, disks: map[string]disk{"sda": {ios: 20, waits: 4000}}, stall: map[string]uint64{"io": 9_000_000}}
		}, "cpu.softirq node 80 3\ncpu.softirq node 0.1 0\ndisk.ios node 20 sda\ndisk.stall node 90\ndisk.wait node 200 sda"},
		{"slow and lost lookups", func(r *recording) {
			a := netip.MustParseAddr
			r.lookups = []lookup{{a(clientAddr), a(far), at(1), at(1.01), 4}, {a(clientAddr), a(far), at(2), at(3.5), 4}, {a(clientAddr), a(far), at(3), time.Time{}, 4}, {a(clientAddr), a(far), at(9), time.Time{}, 4}}
		}, "dns.lookups shop/client-0 192.0.2.7 3\ndns.slow shop/client-0 192.0.2.7 2\ndns.worst shop/client-0 192.0.2.7 7"},
		{"lookups with a pod's address that came by another's interface", func(r *recording) {
			a := netip.MustParseAddr
			r.after.netns[client].links = []link{{name: "eth0", index: 2, peer: 5}}
			r.after.netns[Node].links = []link{{name: "veth1", index: 5}, {name: "veth2", index: 6}}
			r.lookups = []lookup{{a(clientAddr), a(far), at(1), at(1.01), 5}, {a(clientAddr), a(far), at(1), time.Time{}, 6}, {a(clientAddr), a(far), at(2), time.Time{}, 6}}
		}, "dns.lookups shop/client-0 192.0.2.7 1"},
		{"a neighbour at another of the node's interfaces", func(r *recording) {
			r.after.netns[Node].links = []link{{name: "eth0", mac: "02:00:00:00:00:01"}, {name: "eth1", mac: "02:00:00:00:00:02"}}
			r.after.netns[Node].addrs = []address{{netip.MustParseAddr("10.0.0.1"), 24, "eth0"}}
			r.after.netns[web].neighbours = []neighbour{{netip.MustParseAddr("10.0.0.1"), "02:00:00:00:00:02", netlink.NUD_REACHABLE}}
			r.after.netns[client].neighbours = []neighbour{{netip.MustParseAddr("10.0.0.1"), "02:00:00:00:00:01", netlink.NUD_REACHABLE}}
		}, "arp.other_device shop/web-0 node 1 10.0.0.1 of eth0 at eth1"},
		{"reads that were late in one second, and in many", func(r *recording) {
			for i := range 40 {
				r.events = append(r.events, occurrence{typ: "SOCKETLAT_READSLOW", owner: web, comm: "server", at: at(3 + float64(i)/50), n: 1},
					occurrence{typ: "SOCKETLAT_READSLOW", owner: client, comm: "reader", at: at(float64(i) / 4), n: 1})
			}
		}, "read.late shop/client-0 100 reader\nread.late shop/web-0 10 server"},
		{"a wrong checksum from a pod", func(r *recording) {
			r.before.netns[web].counters["UdpInCsumErrors"], r.after.netns[web].counters["UdpInCsumErrors"] = 0, 4
			r.events = []occurrence{{typ: "PacketLoss", owner: web, src: endAt(client, clientAddr, 40000), dst: endAt(web, webAddr, 53), protocol: "UDP", reason: "UDP_CSUM", at: at(1), n: 4}}
		}, "checksum.bad shop/web-0 shop/client-0 4\ndrop.checksum shop/web-0 shop/client-0 4\ndrop.local shop/client-0 shop/web-0 4\ndrop.local shop/web-0 shop/client-0 4"},
		{"late segments on the wire, and between pods", func(r *recording) {
			at := func(n uint32) []socket {
				info := &netlink.TCPInfo{Dsack_dups: n, Total_retrans: n, Data_segs_out: 10 * n}
				return []socket{{state: established, local: port(clientAddr, 40000), remote: port(far, 80), info: info},
					{state: established, local: port(clientAddr, 40001), remote: port(webAddr, 80), info: info}}
			}
			r.before.netns[client].sockets, r.after.netns[client].sockets = at(10), at(110)
		}, "needless.peer shop/client-0 192.0.2.7 100\nsent.peer shop/client-0 192.0.2.7 1000\nsent.peer shop/client-0 shop/web-0 1000"},
		{"losses on the wire, a few segments of which were late", func(r *recording) {
			at := func(n uint32) []socket {
				return []socket{{state: established, local: port(clientAddr, 40000), remote: port(far, 80), info: &netlink.TCPInfo{Dsack_dups: n, Total_retrans: 3 * n, Data_segs_out: 10 * n}}}
			}
			r.before.netns[client].sockets, r.after.netns[client].sockets = at(10), at(110)
		}, "sent.peer shop/client-0 192.0.2.7 1000"},
		{"retransmissions, half of them needless", func(r *recording) {
			r.events = []occurrence{{typ: "TCPRetrans", owner: client, src: endAt(client, clientAddr, 40000), dst: endAt(far, far, 80), state: "ESTABLISHED", at: at(1), n: 20},
				{typ: "TCPRetrans", owner: client, src: endAt(client, clientAddr, 40001), dst: endAt(far, far, 80), state: "SYN_SENT", at: at(1), n: 2}}
			r.after.netns[client].counters["TcpRetransSegs"], r.after.netns[client].counters["TcpExtTCPDSACKRecv"] = 22, 11
		}, "syn.retransmitted shop/client-0 192.0.2.7 2\ntcp.lost shop/client-0 192.0.2.7 10\ntcp.retransmitted shop/client-0 192.0.2.7 20"},
	} {
		if got := text(record(c.make)); got != c.want {
			t.Errorf("%s:\n%s\nwant:\n%s", c.what, got, c.want)
		}
	}
}

// TestUsedPorts: the destination for which NAT uses all ports of a range.
func TestUsedPorts(t *testing.T) {
	flow := func(from, to uint16, dst string) *netlink.ConntrackFlow {
		return &netlink.ConntrackFlow{
			Forward: netlink.IPTuple{Protocol: 6, SrcIP: net.ParseIP(clientAddr), SrcPort: from, DstIP: net.ParseIP(dst), DstPort: 80},
			Reverse: netlink.IPTuple{Protocol: 6, SrcIP: net.ParseIP(dst), SrcPort: 80, DstIP: net.ParseIP("10.0.0.1"), DstPort: to},
		}
	}
	var flows []*netlink.ConntrackFlow
	for i := range uint16(20) {
		flows = append(flows, flow(30000+i, 40000+i, far), flow(31000+i, 40000+7*i, "192.0.2.8"))
	}
	// These belong to another rule.
	flows = append(flows, flow(32000, 1025, far), flow(32001, 50000, far))
	// Clients choose every other port.
	for i := range uint16(60) {
		flows = append(flows, flow(33000+2*i, 45000+2*i, "192.0.2.9"))
	}
	if got, want := usedPorts(flows), (natPorts{20, 20, "192.0.2.7:80"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := usedPorts(flows[:12]); got != (natPorts{}) {
		t.Errorf("of a few: %+v", got)
	}
}

// stuck adds a server at port 8080 with a client and a proxy, whose requests get no answer.
func stuck(r *recording, before, after netlink.TCPInfo) {
	for at, info := range map[*[]socket]netlink.TCPInfo{&r.before.netns[web].sockets: before, &r.after.netns[web].sockets: after} {
		*at = []socket{{state: listening, local: port("::", 8080), tx: 8},
			{state: established, local: port(webAddr, 8080), remote: port(far, 40000), rx: 64, info: &info},
			{state: established, local: port("127.0.0.1", 8080), remote: port("127.0.0.1", 40001), rx: 64, info: &info}}
	}
}

// heldAt adds a pod that made 40 reads in 10 s of the 50 that it may make, and waited for
// 6 s. The disk took so many milliseconds for all of them.
func heldAt(r *recording, waits uint64) {
	k := ioKey{"8:0", "riops"}
	r.before.groups[web] = groupState{stalls: true}
	r.after.groups[web] = groupState{stalls: true, stall: 6_000_000, done: map[ioKey]uint64{k: 40}, limits: []ioLimit{{k, 5}}}
	r.before.node = &nodeState{disks: map[string]disk{"sda": {device: "8:0"}}}
	r.after.node = &nodeState{disks: map[string]disk{"sda": {device: "8:0", ios: 40, waits: waits}}}
}
