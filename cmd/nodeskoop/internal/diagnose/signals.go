package diagnose

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"github.com/vishvananda/netlink"
)

// observation is a signal that was measured.
type observation struct {
	signal string
	// owner is the pod that the observation belongs to, or Node.
	owner string
	// peer is the other end: a pod, Node or an address; "" if there is none.
	peer  string
	value float64
	// subject of the number: a port, a device
	what string
	// blame is the end to blame if the observation itself shows it; "" leaves it to
	// the cause.
	blame string
	// from is the end that sent the packets which a rule of the node dropped.
	from string
	// in is the owner of the namespace that shows the observation; "" is the owner's.
	in string
	// parts is the number of observations that this one sums up, 0 for a single one;
	// others are the other ends of the parts. A sum has no peer, or anyone as its
	// owner.
	parts  int
	others []string
}

// anyone is the owner of a sum over the ends that deal with one peer.
const anyone = "*"

// same reports whether two observations are equal.
func (x observation) same(y observation) bool {
	return x.signal == y.signal && x.owner == y.owner && x.peer == y.peer && x.what == y.what && x.from == y.from
}

// moment is the state that was read at one time.
type moment struct {
	at     time.Time
	node   *nodeState
	values map[string]values
	netns  map[string]*netnsState
	groups map[string]groupState
	// ids are the pods' IDs, which distinguish a pod from a later one of the same
	// name.
	ids map[string]string
}

// recording is all that diagnose looks at.
type recording struct {
	before, after moment
	// middle holds the connections at the moments in between, by owner.
	middle []map[string][]socket
	events []occurrence
	left   map[leftOut]uint64 // numbers of events that were not kept
	// resetsUnseen says that on this kernel the probe does not see all sent resets.
	resetsUnseen bool
	lookups      []lookup
	descriptors  map[string]descriptors
	// nat holds the ports that NAT uses, by owner.
	nat map[string]natPorts
	// pods maps addresses to pod names; nodes holds the node's addresses.
	pods  map[netip.Addr]string
	nodes map[netip.Addr]bool
}

func (r *recording) took() time.Duration { return r.after.at.Sub(r.before.at) }

// nameOf returns the owner of an address: a pod, the node, or else the address
// itself.
func (r *recording) nameOf(a netip.Addr) string {
	switch {
	case r.pods[a] != "":
		return r.pods[a]
	case r.nodes[a]:
		return Node
	case !a.IsValid():
		return ""
	}
	return a.String()
}

// observer collects observations. Those of the same signal, owner, peer and kind
// are merged.
type observer struct {
	*recording
	all map[observationKey]*observation
}

type observationKey struct{ signal, owner, peer, what, from string }

func (o *observer) add(x observation) {
	if x.value == 0 || x.owner == "" {
		return
	}
	k := observationKey{x.signal, x.owner, x.peer, x.what, x.from}
	if was := o.all[k]; was != nil {
		was.value += x.value
		was.blame = cmp.Or(was.blame, x.blame)
		return
	}
	o.all[k] = &x
}

// observe makes observations of a recording.
func observe(r *recording) []observation {
	o := &observer{r, map[observationKey]*observation{}}
	same := func(name string) bool { return r.before.ids[name] == r.after.ids[name] }
	for name, before := range r.before.values {
		if !same(name) {
			continue
		}
		for metric, v := range rises(before, r.after.values[name]) {
			o.add(observation{signal: metric, owner: name, value: v})
		}
	}
	for name, after := range r.after.netns {
		before := r.before.netns[name]
		if before == nil || !same(name) {
			continue // a pod that started meanwhile
		}
		o.counters(name, before, after)
		samples := [][]socket{before.sockets}
		for _, m := range r.middle {
			samples = append(samples, m[name])
		}
		o.sockets(name, after, append(samples, after.sockets))
		o.qdiscs(name, before, after)
		o.ports(name, after)
	}
	for name, after := range r.after.groups {
		if before, ok := r.before.groups[name]; ok && same(name) {
			o.groups(name, before, after)
		}
	}
	o.drops()
	o.retransmissions()
	o.resets()
	o.latencies()
	o.names()
	o.node()
	o.conntrack()
	o.arpFlux()
	for name, d := range r.descriptors {
		if d.limit > 0 {
			o.add(observation{signal: "fd.used", owner: name, value: 100 * float64(d.open) / float64(d.limit), what: d.comm + "[" + strconv.Itoa(d.pid) + "], " + strconv.FormatUint(d.open, 10) + " of " + strconv.FormatUint(d.limit, 10)})
		}
	}
	list := make([]observation, 0, len(o.all))
	for _, x := range o.all {
		list = append(list, *x)
	}
	slices.SortFunc(list, func(a, b observation) int {
		return cmp.Or(strings.Compare(a.signal, b.signal), strings.Compare(a.owner, b.owner), cmp.Compare(b.value, a.value), strings.Compare(a.peer, b.peer), strings.Compare(a.what, b.what), strings.Compare(a.from, b.from))
	})
	return list
}

// counters observes the IP stack's counters, and sums of them.
func (o *observer) counters(name string, before, after *netnsState) {
	rise := func(counter string) float64 {
		was, ok := before.counters[counter]
		if now := after.counters[counter]; ok && now > was {
			return float64(now - was)
		}
		return 0
	}
	for counter := range after.counters {
		o.add(observation{signal: counter, owner: name, value: rise(counter)})
	}
	all := func(counters ...string) (total float64) {
		for _, c := range counters {
			total += rise(c)
		}
		return total
	}
	add := func(signal string, counters ...string) {
		o.add(observation{signal: signal, owner: name, value: all(counters...)})
	}
	add("udp.full", "UdpRcvbufErrors", "Udp6RcvbufErrors")
	add("udp.datagrams", "UdpInDatagrams", "Udp6InDatagrams", "UdpRcvbufErrors", "Udp6RcvbufErrors")
	add("tcp.opens", "TcpActiveOpens", "TcpPassiveOpens")
	add("tcp.aborts", "TcpExtTCPAbortOnClose", "TcpExtTCPAbortOnData")
	add("tcp.reordered", "TcpExtTCPSACKReorder", "TcpExtTCPTSReorder", "TcpExtTCPRenoReorder")
	o.add(observation{signal: "checksum.bad", owner: name, peer: o.damaged(name),
		value: all("TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors", "IcmpInCsumErrors", "Icmp6InCsumErrors")})
	add("syn.refused", "TcpExtTCPReqQFullDoCookies", "TcpExtTCPReqQFullDrop")
	if sent, answered := rise("TcpExtSyncookiesSent"), rise("TcpExtSyncookiesRecv"); sent > answered {
		o.add(observation{signal: "syn.cookies_unanswered", owner: name, value: sent - answered})
	}
	if sharesSegment(after) {
		add("rpfilter.shared", "TcpExtIPReversePathFilter")
	}
	global6 := slices.ContainsFunc(after.addrs, func(a address) bool {
		return a.addr.Is6() && a.addr.IsGlobalUnicast()
	})
	if global6 && after.default4 && !after.default6 {
		o.add(observation{signal: "ipv6.no_route", owner: name, value: rise("Ip6OutNoRoutes"), blame: name})
	}
}

// sharesSegment reports whether two interfaces have addresses in the same network.
func sharesSegment(s *netnsState) bool {
	for i, a := range s.addrs {
		for _, b := range s.addrs[i+1:] {
			if a.device != b.device && a.addr.Is4() && b.addr.Is4() && !a.addr.IsLoopback() && a.bits < 32 && b.bits < 32 &&
				(netip.PrefixFrom(a.addr, a.bits).Contains(b.addr) || netip.PrefixFrom(b.addr, b.bits).Contains(a.addr)) {
				return true
			}
		}
	}
	return false
}

// damaged returns the pod that sent all packets with a wrong checksum, "" if there is
// none.
func (o *observer) damaged(name string) (from string) {
	for _, e := range o.events {
		if e.typ != "PacketLoss" || e.owner != name || dropSignals[e.reason] != "drop.checksum" {
			continue
		}
		if !isPodName(e.src.name) || from != "" && from != e.src.name {
			return ""
		}
		from = e.src.name
	}
	return from
}

// connection names a connection of a namespace.
type connection struct{ local, remote netip.AddrPort }

// isOpen reports whether a socket is a connection on which data may be sent.
func (s *socket) isOpen() bool {
	switch s.state {
	case established, closeWait, 4 /* FIN_WAIT1 */, 9 /* LAST_ACK */, 11 /* CLOSING */ :
		return s.info != nil
	}
	return false
}

// isStuck reports whether the data that a socket has sent are unacknowledged after
// two or more timeouts.
func (s *socket) isStuck() bool {
	return s.isOpen() && s.info.Unacked > 0 && s.timer != timerPersist && (s.info.Retransmits >= 2 || s.info.Backoff >= 2)
}

// sockets observes connections: in the sample at the start, which is the first, and
// in later ones.
func (o *observer) sockets(name string, after *netnsState, samples [][]socket) {
	was := map[connection]*socket{}
	for i := range samples[0] {
		s := &samples[0][i]
		was[connection{s.local, s.remote}] = s
	}
	peers := o.peers(samples, was)
	closed, large, small := map[connection]bool{}, map[connection]bool{}, map[connection]bool{}
	full := map[uint16]*socket{}
	idle, window := map[connection]bool{}, map[connection]uint32{}
	var halfOpen map[string]float64
	for _, sample := range samples[1:] {
		half := map[string]float64{}
		for i := range sample {
			s := &sample[i]
			switch {
			case s.state == listening && s.rx > 0 && s.rx >= s.tx:
				if f := full[s.local.Port()]; f == nil || f.rx < s.rx {
					full[s.local.Port()] = s
				}
			case s.state == synRecv:
				half[o.nameOf(s.remote.Addr())]++
			}
			if !s.isOpen() || s.remote.Addr().IsLoopback() {
				continue
			}
			c := connection{s.local, s.remote}
			mss := max(s.info.Snd_mss, 536)
			limited := s.info.Rwnd_limited
			if old := was[c]; old != nil && old.info != nil {
				limited = since(limited, old.info.Rwnd_limited)
			}
			waits := s.tx > 0 || s.info.Notsent_bytes > 0
			if waits && s.timer == timerPersist && limited >= leastLimited {
				closed[c] = true
			}
			idle[c] = idle[c] || !waits
			window[c] = max(window[c], s.info.Snd_wnd, mss)
			if s.isStuck() {
				if p := peers[o.nameOf(c.remote.Addr())]; s.tx >= mss*9/10 && p.answers && !p.takes {
					large[c] = true
				}
				if s.tx < mss*9/10 {
					small[c] = true
				}
			}
		}
		// A handshake that stays half open is in each sample, so the smallest sample
		// counts.
		if sum(half) < sum(halfOpen) || halfOpen == nil {
			halfOpen = half
		}
	}
	for i := range after.sockets {
		s := &after.sockets[i]
		c := connection{s.local, s.remote}
		if old := was[c]; s.isOpen() && old != nil && old.info != nil && !idle[c] && !c.remote.Addr().IsLoopback() && o.trickles(s, old, window[c]) {
			closed[c] = true
		}
	}
	for signal, which := range map[string]map[connection]bool{"window.closed": closed, "stuck.large": large, "stuck.small": small} {
		for c := range which {
			o.add(observation{signal: signal, owner: name, peer: o.nameOf(c.remote.Addr()), value: 1})
		}
	}
	for port, s := range full {
		o.add(observation{signal: "listen.full", owner: name, value: float64(s.rx), what: strconv.Itoa(int(port)) + ", which holds " + strconv.Itoa(int(s.tx))})
	}
	most, from := 0.0, ""
	for peer, n := range halfOpen {
		if n > most || n == most && peer < from {
			most, from = n, peer
		}
	}
	if most < 0.8*sum(halfOpen) {
		from = "" // many
	}
	o.add(observation{signal: "syn.half_open", owner: name, peer: from, value: sum(halfOpen)})
	for peer, p := range peers {
		if p.v6 && p.asked >= leastAsked && !p.opened && slices.ContainsFunc(after.sockets, worksOver4) {
			blame := ""
			if !after.default6 {
				blame = name
			}
			o.add(observation{signal: "ipv6.stuck", owner: name, peer: peer, value: p.asked, blame: blame})
		}
	}
	o.servers(name, after, samples, was)
	for i := range after.sockets {
		s := &after.sockets[i]
		old := was[connection{s.local, s.remote}]
		if !s.isOpen() || s.remote.Addr().IsLoopback() {
			continue
		}
		reordered, needless := s.info.Reord_seen, s.info.Dsack_dups
		retransmitted, sent := s.info.Total_retrans, s.info.Data_segs_out
		if old != nil && old.info != nil {
			reordered = uint32(since(uint64(reordered), uint64(old.info.Reord_seen)))
			needless = uint32(since(uint64(needless), uint64(old.info.Dsack_dups)))
			retransmitted = uint32(since(uint64(retransmitted), uint64(old.info.Total_retrans)))
			sent = uint32(since(uint64(sent), uint64(old.info.Data_segs_out)))
			// If the application has read nothing during the observation, all received
			// data have been added to the queue.
			if s.state == established && old.rx > 0 && s.rx >= leastUnread && s.rx >= old.rx &&
				since(s.info.Bytes_received, old.info.Bytes_received) == uint64(s.rx-old.rx) {
				o.add(observation{signal: "unread.stands", owner: name, peer: o.nameOf(s.remote.Addr()), value: float64(s.rx)})
			}
		}
		peer := o.nameOf(s.remote.Addr())
		o.add(observation{signal: "reordered.peer", owner: name, peer: peer, value: float64(reordered)})
		o.add(observation{signal: "sent.peer", owner: name, peer: peer, value: float64(sent)})
		// If both ends are on this node, a busy CPU delays acknowledgements, not a
		// path. If segments were lost as well, most retransmissions were necessary.
		if !isPodName(peer) && peer != Node && needless > retransmitted/2 {
			o.add(observation{signal: "needless.peer", owner: name, peer: peer, value: float64(needless)})
		}
	}
}

// holdsRequest reports whether a server's socket holds unread data of a client. The FIN
// of a client that has given up counts as one byte.
func (s *socket) holdsRequest() bool {
	return s.info != nil && (s.state == established && s.rx > 0 || s.state == closeWait && s.rx > 1)
}

// servers looks for stuck servers: clients of a port have sent data, and no process has
// read from or written to any connection of the port. Clients on the loopback interface
// count, such as a proxy in the server's pod.
func (o *observer) servers(name string, after *netnsState, samples [][]socket, was map[connection]*socket) {
	stands := map[uint16]float64{}
	for i := range after.sockets {
		s := &after.sockets[i]
		if s.state == listening {
			stands[s.local.Port()] += 0
		}
	}
	for i := range after.sockets {
		s := &after.sockets[i]
		old := was[connection{s.local, s.remote}]
		if _, serves := stands[s.local.Port()]; serves && s.holdsRequest() && old != nil && old.holdsRequest() {
			stands[s.local.Port()]++
		}
	}
	for _, sample := range samples[1:] {
		for i := range sample {
			s := &sample[i]
			if stands[s.local.Port()] == 0 || !s.isOpen() {
				continue
			}
			old := was[connection{s.local, s.remote}]
			if old == nil || old.info == nil {
				old = &socket{info: &netlink.TCPInfo{}}
			}
			read := int64(since(s.info.Bytes_received, old.info.Bytes_received)) - (int64(s.rx) - int64(old.rx))
			if read > 0 || s.info.Bytes_acked > old.info.Bytes_acked {
				stands[s.local.Port()] = 0
			}
		}
	}
	for port, n := range stands {
		o.add(observation{signal: "unread.server", owner: name, value: n, what: strconv.Itoa(int(port))})
	}
}

// leastLimited is the minimum time, in microseconds, for which a sender must have
// waited for window space.
const leastLimited = 1_000_000

// trickles reports whether a peer opens its window only slowly: the sender had no
// window for half of the time, and the peer takes far longer than a round trip to
// free one window of space. A reader that keeps up frees one window per round trip,
// however small.
func (o *observer) trickles(s, old *socket, window uint32) bool {
	took := o.took()
	if time.Duration(since(s.info.Rwnd_limited, old.info.Rwnd_limited))*time.Microsecond < took/2 {
		return false
	}
	acked := since(s.info.Bytes_acked, old.info.Bytes_acked)
	perWindow := took
	if acked > 0 {
		perWindow = time.Duration(float64(took) * float64(window) / float64(acked))
	}
	return perWindow >= 50*time.Millisecond && perWindow >= 4*time.Duration(s.info.Rtt)*time.Microsecond
}

// leastAsked is the minimum number of unanswered handshakes, over all samples and
// without any answered one. If a path works, a sample is more likely to see a
// connection than a handshake.
const leastAsked = 3

func sum(m map[string]float64) (total float64) {
	for _, n := range m {
		total += n
	}
	return total
}

// peer is what the sockets of a namespace show about another end.
type peer struct {
	answers bool // the end answers handshakes, or takes small segments
	takes   bool // the end takes large segments
	// For global IPv6 addresses: unanswered SYNs, by sample, and whether any sample
	// had a connection.
	v6     bool
	asked  float64
	opened bool
}

func (o *observer) peers(samples [][]socket, was map[connection]*socket) map[string]*peer {
	peers := map[string]*peer{}
	for i, sample := range samples {
		for j := range sample {
			s := &sample[j]
			far := s.remote.Addr()
			if s.state == listening || far.IsLoopback() || !far.IsValid() {
				continue
			}
			name := o.nameOf(far)
			p := peers[name]
			if p == nil {
				p = &peer{}
				peers[name] = p
			}
			if far.Is6() && far.IsGlobalUnicast() {
				p.v6 = true
				if s.state == synSent {
					p.asked++
				} else {
					p.opened = true
				}
			}
			if i == 0 || !s.isOpen() {
				continue
			}
			acked, received := s.info.Bytes_acked, s.info.Bytes_received
			old := was[connection{s.local, s.remote}]
			if old != nil && old.info != nil {
				acked, received = since(acked, old.info.Bytes_acked), since(received, old.info.Bytes_received)
			}
			// A new connection has completed its handshake during the observation.
			p.answers = p.answers || old == nil || received > 0 || acked > 0
			p.takes = p.takes || acked > 4*uint64(max(s.info.Snd_mss, 536))
		}
	}
	return peers
}

// worksOver4 reports whether a socket is an established IPv4 connection.
func worksOver4(s socket) bool {
	return s.remote.Addr().Is4() && !s.remote.Addr().IsLoopback() && (s.state == established || s.state == timeWait || s.state == closeWait)
}

// leastUnread is more unread bytes than a closed or idle connection leaves, such as
// a last TLS record or a protocol's closing message.
const leastUnread = 4096

func since(now, was uint64) uint64 {
	if now < was {
		return now
	}
	return now - was
}

// shapers are the queueing disciplines that limit traffic to a rate.
var shapers = []string{"tbf", "htb", "hfsc", "cake"}

// atRate is the used share of a shaper's rate above which the rate is the
// bottleneck. Below it, the queue is too short for bursts.
const atRate = 0.8

func (o *observer) qdiscs(name string, before, after *netnsState) {
	type sum struct{ packets, drops, limits, backlog, full, sent float64 }
	devices := map[string]*sum{}
	for _, q := range after.qdiscs {
		i := slices.IndexFunc(before.qdiscs, func(b qdisc) bool {
			return b.device == q.device && b.handle == q.handle && b.kind == q.kind && b.packets <= q.packets
		})
		old := qdisc{}
		if i >= 0 {
			old = before.qdiscs[i]
		} else if slices.ContainsFunc(before.qdiscs, func(b qdisc) bool { return b.device == q.device }) {
			continue // the qdisc was replaced
		}
		s := devices[q.device]
		if s == nil {
			s = &sum{}
			devices[q.device] = s
		}
		packets, drops := float64(q.packets-old.packets), float64(since(q.drops, old.drops))
		used := 1.0 // a qdisc without a known rate counts as fully used
		if q.rate > 0 {
			used = float64(since(q.bytes, old.bytes)) / o.took().Seconds() / float64(q.rate)
		}
		switch {
		case slices.Contains(shapers, q.kind) && used >= atRate:
			s.packets = max(s.packets, packets)
			s.limits = max(s.limits, float64(since(q.limits, old.limits)))
			s.backlog = max(s.backlog, float64(q.qlen))
			s.drops = max(s.drops, drops)
		case q.kind == "netem":
			// Its losses imitate the losses of a link.
		default:
			s.full, s.sent = max(s.full, drops), max(s.sent, packets+drops)
		}
	}
	ofPods := map[string]string{}
	if name == Node {
		ofPods = o.podDevices()
	}
	for device, s := range devices {
		name, in := name, ""
		if pod := ofPods[device]; pod != "" {
			// Only packets to this pod pass through the interface.
			name, device, in = pod, device+" of the node", Node
		}
		o.add(observation{signal: "shaper.packets", owner: name, what: device, in: in, value: s.packets + s.drops})
		o.add(observation{signal: "shaper.waits", owner: name, what: device, in: in, value: s.limits})
		o.add(observation{signal: "shaper.queue", owner: name, what: device, in: in, value: s.backlog})
		o.add(observation{signal: "shaper.drops", owner: name, what: device, in: in, value: s.drops})
		if s.packets == 0 { // a shaper's inner queue is full because of the shaper
			o.add(observation{signal: "queue.drops", owner: name, what: device, in: in, value: s.full})
			o.add(observation{signal: "queue.packets", owner: name, what: device, in: in, value: s.sent})
		}
	}
}

// ports looks for destinations for which all ephemeral ports are used.
func (o *observer) ports(name string, after *netnsState) {
	if after.portsTo == 0 {
		return
	}
	room := float64(after.portsTo) - float64(after.portsFrom) + 1
	type to struct {
		local  netip.Addr
		remote netip.AddrPort
	}
	type use struct{ all, waiting float64 }
	uses := map[to]*use{}
	for _, s := range after.sockets {
		if s.state == listening || s.state == synRecv || s.local.Port() < after.portsFrom || s.local.Port() > after.portsTo {
			continue
		}
		k := to{s.local.Addr(), s.remote}
		if uses[k] == nil {
			uses[k] = &use{}
		}
		uses[k].all++
		if s.state == timeWait {
			uses[k].waiting++
		}
	}
	for k, u := range uses {
		if u.all < room/2 {
			continue
		}
		signal := "ports.open"
		if u.waiting >= u.all/2 {
			signal = "ports.time_wait"
		}
		o.add(observation{signal: signal, owner: name, peer: o.nameOf(k.remote.Addr()), value: 100 * u.all / room,
			what: k.remote.String() + ", " + strconv.Itoa(int(u.all)) + " of " + strconv.Itoa(int(room))})
	}
	if after.twMax > 0 {
		o.add(observation{signal: "time_wait.used", owner: name, value: 100 * float64(after.tw) / float64(after.twMax)})
	}
}

func (o *observer) groups(name string, before, after groupState) {
	window := o.took().Seconds()
	if after.periods > before.periods {
		o.add(observation{signal: "cpu.throttled", owner: name, what: after.throttledIn, value: 100 * float64(since(after.throttled, before.throttled)) / float64(after.periods-before.periods)})
	}
	o.add(observation{signal: "cpu.throttled_time", owner: name, what: after.throttledIn, value: 100 * float64(since(after.throttledFor, before.throttledFor)) / 1e9 / window})
	stall := 0.0
	if after.stalls && before.stalls {
		stall = 100 * float64(since(after.stall, before.stall)) / 1e6 / window
		o.add(observation{signal: "disk.stall", owner: name, value: stall})
	}
	for _, l := range after.limits {
		if l.most == 0 {
			continue
		}
		rate := float64(since(after.done[l.ioKey], before.done[l.ioKey])) / window
		what := l.device + " " + l.kind + "=" + strconv.FormatUint(l.most, 10)
		o.add(observation{signal: "disk.limit", owner: name, value: 100 * rate / float64(l.most), what: what})
		// The kernel grants I/O in slices of 100 ms, so pods with few large I/Os stay
		// well below their limit.
		if rate >= 0.6*float64(l.most) && o.isFast(l.device) {
			o.add(observation{signal: "disk.held", owner: name, value: stall, what: what})
		}
	}
}

// isFast reports whether a disk did I/O and took hardly any time for it.
func (o *observer) isFast(device string) bool {
	if o.before.node == nil || o.after.node == nil {
		return false
	}
	for name, d := range o.after.node.disks {
		if old := o.before.node.disks[name]; d.device == device && d.ios > old.ios {
			return float64(d.waits-old.waits)/float64(d.ios-old.ios) < fastDisk
		}
	}
	return false
}

// fastDisk, in milliseconds, is a mean time of I/O that no process notices.
const fastDisk = 20

func functionOf(location string) string {
	function, _, _ := strings.Cut(location, "+")
	return function
}

// dropSignals maps the kernel's drop reasons to signals.
var dropSignals = map[string]string{
	"NETFILTER_DROP": "drop.rule", "IP_OUTNOROUTES": "drop.no_route", "IP_INNOROUTES": "drop.no_route",
	"NEIGH_FAILED": "drop.neighbour", "NEIGH_QUEUEFULL": "drop.neighbour", "NEIGH_DEAD": "drop.neighbour",
	"NEIGH_CREATEFAIL": "drop.neighbour_table",
	"TCP_CSUM":         "drop.checksum", "UDP_CSUM": "drop.checksum", "IP_CSUM": "drop.checksum", "ICMP_CSUM": "drop.checksum", "SKB_CSUM": "drop.checksum",
	"CPU_BACKLOG": "drop.backlog", "PKT_TOO_BIG": "drop.too_big", "IP_RPFILTER": "drop.rpfilter",
	"QDISC_DROP": "drop.queue", "SOCKET_RCVBUFF": "drop.socket",
	"PROTO_MEM": "drop.memory", "SOCKET_BACKLOG": "drop.socket",
}

// hookFunction drops packets for iptables rules, and for conntrack.
const hookFunction = "nf_hook_slow"

// ruleFunctions drop packets for rules, on kernels without drop reasons.
var ruleFunctions = []string{hookFunction, "nft_do_chain", "ipt_do_table", "ip6t_do_table", "nf_hook_slow_list"}

// dropSignal is the signal of a lost packet, "" if there is none.
func dropSignal(e occurrence) string {
	if e.reason == "" && slices.Contains(ruleFunctions, e.function) {
		return "drop.rule"
	}
	return dropSignals[e.reason]
}

// onItsWay reports whether a packet was lost at one of its ends or at the node. Anybody
// else may send packets with any addresses, and lose them.
func (e *occurrence) onItsWay() bool {
	return e.owner == Node || e.owner != "" && (e.owner == e.src.name || e.owner == e.dst.name)
}

// drops observes the packets lost in the namespace of a pod or the node.
func (o *observer) drops() {
	// Conntrack drops packets whose connection it cannot insert. It does so in the
	// hook in which iptables rules drop packets, too, and counts these drops; newer
	// kernels count failed insertions in both counters.
	untracked := map[string]float64{}
	for name := range o.after.values {
		v := rises(o.before.values[name], o.after.values[name])
		untracked[name] = max(v["kubeskoop_conntrack_insertfailed"], v["kubeskoop_conntrack_drop"])
	}
	wanted := o.missed()
	type rule struct{ owner, peer, what, from string }
	type dropped struct {
		n           float64
		first, last time.Time
		wanted      bool
	}
	rules := map[rule]*dropped{}
	for _, e := range o.events {
		if e.typ != "PacketLoss" || e.owner == "" {
			continue
		}
		signal := dropSignal(e)
		peer, what := e.dst.name, ""
		if e.dst.name == e.owner {
			peer = e.src.name
		}
		if port := servicePort(e.src, e.dst); port != 0 {
			what = strings.ToUpper(e.protocol) + " port " + strconv.Itoa(int(port))
		}
		switch signal {
		case "drop.rule":
			// Packets from outside that the node's firewall refuses are the
			// firewall's purpose. So are packets that it forwards for no pod of
			// this node.
			if e.owner == Node && e.src.name != Node && !isPodName(e.src.name) && !isPodName(e.dst.name) {
				continue
			}
			if e.owner == Node {
				peer = e.dst.name
			}
			if e.function == hookFunction && untracked[e.owner] >= float64(e.n) {
				untracked[e.owner] -= float64(e.n)
				signal, peer, what = "drop.untracked", "", ""
				break
			}
			k := rule{e.owner, peer, what, e.src.name}
			d := rules[k]
			if d == nil {
				d = &dropped{first: e.at}
				rules[k] = d
			}
			d.n, d.last = d.n+float64(e.n), e.at
			d.wanted = d.wanted || e.protocol != "TCP" || wanted[talkOf(e)]
			signal = ""
		case "drop.neighbour", "drop.checksum":
			what = ""
		}
		if signal == "drop.checksum" {
			peer = e.src.name
		}
		if signal != "" {
			o.add(observation{signal: signal, owner: e.owner, peer: peer, value: float64(e.n), what: what})
		}
		// A loss on this node is not the path's fault, whichever end retransmits.
		if e.src.known() && e.onItsWay() {
			o.add(observation{signal: "drop.local", owner: e.src.name, peer: e.dst.name, value: float64(e.n)})
		}
		if e.dst.known() && e.onItsWay() {
			o.add(observation{signal: "drop.local", owner: e.dst.name, peer: e.src.name, value: float64(e.n)})
		}
	}
	for k, d := range rules {
		// Rules, such as kube-proxy's, drop late packets of a connection that
		// conntrack has forgotten, which is harmless. Of TCP, count drops that a
		// sender retransmits, or that continue.
		if d.wanted || d.n >= leastDropped && d.last.Sub(d.first) >= o.took()/3 {
			x := observation{signal: "drop.rule", owner: k.owner, peer: k.peer, value: d.n, what: k.what}
			if k.owner == Node {
				x.signal, x.from = "drop.node", k.from
			}
			o.add(x)
		}
	}
}

// leastDropped is the minimum number of TCP packets to one port that a rule drops
// if no sender is seen to retransmit. The sender may be on another machine, or give
// up at once.
const leastDropped = 10

// talk identifies the traffic of two addresses at the port of a service.
type talk struct {
	low, high string
	port      uint16
}

func talkOf(e occurrence) talk {
	return talk{min(e.src.addr, e.dst.addr), max(e.src.addr, e.dst.addr), servicePort(e.src, e.dst)}
}

// missed holds the ends and the port of segments whose loss was noticed: those that open
// a connection or carry data and were retransmitted, and those that open one and were
// refused, as a rule that rejects them does.
func (o *observer) missed() map[talk]bool {
	out := map[talk]bool{}
	for _, e := range o.events {
		if e.typ == "TCPRESET_RECEIVE" && e.state == "SYN_SENT" {
			out[talkOf(e)] = true
		}
		if e.typ == "TCPRetrans" && slices.Contains([]string{"SYN_SENT", "SYN_RECV", "NEW_SYN_RECV", "ESTABLISHED", "CLOSE_WAIT"}, e.state) {
			out[talkOf(e)] = true
		}
	}
	return out
}

// isPodName reports whether a name is a pod's. Addresses contain no slash.
func isPodName(name string) bool { return strings.Contains(name, "/") }

// ephemeral is the start of the kernel's default range of ephemeral ports.
const ephemeral = 32768

// servicePort returns the service's port of a connection, 0 if neither end is a
// service.
func servicePort(a, b end) uint16 {
	low := min(a.port, b.port)
	if low == 0 || low >= ephemeral {
		return 0
	}
	return low
}

// needed returns the share of an owner's retransmissions that the other ends did not
// report as unnecessary (DSACK, RFC 2883).
func (o *observer) needed(name string) float64 {
	before, after := o.before.netns[name], o.after.netns[name]
	if before == nil || after == nil {
		return 1
	}
	rise := func(counter string) float64 { return float64(since(after.counters[counter], before.counters[counter])) }
	if all := rise("TcpRetransSegs"); all > 0 {
		return max(0, 1-rise("TcpExtTCPDSACKRecv")/all)
	}
	return 1
}

func (o *observer) retransmissions() {
	for _, e := range o.events {
		if e.typ != "TCPRetrans" || e.owner == "" {
			continue
		}
		signal := "tcp.retransmitted"
		switch e.state {
		case "SYN_SENT":
			signal = "syn.retransmitted"
		case "SYN_RECV", "NEW_SYN_RECV":
			signal = "synack.retransmitted"
		}
		peer := e.dst.name
		if peer == e.owner {
			peer = e.src.name
		}
		o.add(observation{signal: signal, owner: e.owner, peer: peer, value: float64(e.n)})
		if signal == "tcp.retransmitted" {
			o.add(observation{signal: "tcp.lost", owner: e.owner, peer: peer, value: float64(e.n) * o.needed(e.owner)})
		}
		if a, err := netip.ParseAddr(e.dst.addr); err == nil && signal == "syn.retransmitted" && a.Is6() {
			o.add(observation{signal: "ipv6.syn", owner: e.owner, peer: peer, value: float64(e.n)})
		}
	}
}

// resets compares the received resets with the sent ones.
func (o *observer) resets() {
	type way struct{ from, to end }
	sent := map[way]int{}
	for _, e := range o.events {
		if strings.HasPrefix(e.typ, "TCPRESET_") && e.typ != "TCPRESET_RECEIVE" {
			sent[way{bare(e.src), bare(e.dst)}] += int(e.n)
		}
	}
	type service struct {
		owner string // owner of the refused traffic
		peer  string
		addr  string
		port  uint16
		udp   bool
	}
	type refusals struct {
		n           float64
		first, last time.Time
	}
	refused := map[service]*refusals{}
	note := func(k service, e occurrence) {
		r := refused[k]
		if r == nil {
			r = &refusals{first: e.at}
			refused[k] = r
		}
		r.n += float64(e.n)
		r.last = e.at
	}
	// A rule that rejects packets drops them and answers in the name of their receiver.
	rejected := map[talk]bool{}
	for _, e := range o.events {
		if e.typ == "PacketLoss" && dropSignal(e) == "drop.rule" && e.onItsWay() {
			rejected[talkOf(e)] = true
		}
	}
	for _, e := range o.events {
		if e.owner == "" {
			continue
		}
		switch e.typ {
		case "TCPRESET_RECEIVE":
			if rejected[talkOf(e)] {
				continue
			}
			// Both ends are on this node, and the peer sent no such reset. The peer's
			// events may have been suppressed or not seen; then the origin of the
			// reset cannot be decided.
			k := way{bare(e.dst), bare(e.src)}
			switch {
			case sent[k] > 0:
				sent[k]--
			case isPodName(e.dst.name) && o.showsResetsOf(e.dst.name) && e.dst.name != e.owner && e.state != "NEW_SYN_RECV":
				o.add(observation{signal: "reset.unsent", owner: e.owner, peer: e.dst.name, value: float64(e.n)})
				continue
			}
			if e.state == "SYN_SENT" {
				note(service{e.owner, e.dst.name, e.dst.addr, e.dst.port, false}, e)
			}
		case "TCPRESET_NOSOCK":
			if isPodName(e.owner) && !e.dst.known() {
				note(service{e.dst.name, e.owner, e.src.addr, e.src.port, false}, e)
			}
		case "PacketLoss":
			// Only datagrams to a port below the ephemeral range. One to a port above
			// may be an answer to a client that has given up.
			if e.reason == "NO_SOCKET" && e.protocol == "UDP" && e.dst.name == e.owner && isPodName(e.owner) && servicePort(e.dst, e.src) == e.dst.port && e.dst.port != 0 {
				note(service{e.src.name, e.owner, e.dst.addr, e.dst.port, true}, e)
			}
		}
	}
	// A client that tries many ports of one peer scans it and needs none of them. The
	// node is an exception: its processes belong to many users, and one user's scan
	// must not hide another's trouble.
	ports := map[[2]string]int{}
	for k := range refused {
		ports[[2]string{k.owner, k.peer}]++
	}
	// The refusals of each port, by any client.
	byAnybody := map[service]*refusals{}
	for k, r := range refused {
		if k.owner != Node && ports[[2]string{k.owner, k.peer}] >= scannedPorts {
			delete(refused, k)
			continue
		}
		k.owner = anyone
		if all := byAnybody[k]; all == nil {
			byAnybody[k] = &refusals{first: r.first, last: r.last}
		} else {
			if r.first.Before(all.first) {
				all.first = r.first
			}
			if r.last.After(all.last) {
				all.last = r.last
			}
		}
	}
	for k, r := range refused {
		// A starting server refuses connections for a moment, but not at the end of
		// the observation.
		anybody := k
		anybody.owner = anyone
		if all := byAnybody[anybody]; all.last.Sub(all.first) < o.took()/3 || o.after.at.Sub(all.last) > o.took()/2 {
			continue
		}
		signal := "tcp.refused"
		if at := o.after.netns[k.peer]; k.udp {
			signal = "udp.refused"
		} else if at != nil {
			anywhere, loopback := listensOn(at.sockets, k.addr, k.port)
			if anywhere {
				continue // the port has a listener by now
			}
			if loopback {
				signal = "tcp.loopback_only"
			}
		}
		o.add(observation{signal: signal, owner: k.owner, peer: k.peer, value: r.n, what: strconv.Itoa(int(k.port)), blame: k.peer})
	}
}

// scannedPorts is the number of refusing ports of one peer that make a client a
// scanner. A client of a service tries few.
const scannedPorts = 10

// showsResetsOf reports whether all resets that a pod sent were seen. Suppressed
// events of other owners do not matter, but unattributed ones may be this pod's.
func (o *observer) showsResetsOf(name string) bool {
	for x := range o.left {
		if (x.owner == name || x.owner == unattributed) && strings.HasPrefix(x.typ, "TCPRESET_") && x.typ != "TCPRESET_RECEIVE" {
			return false
		}
	}
	return !o.resetsUnseen
}

func bare(e end) end { return end{addr: e.addr, port: e.port} }

// listensOn reports whether a socket listens on an address and port, and whether
// one listens on that port of the loopback interface.
func listensOn(sockets []socket, addr string, port uint16) (there, loopback bool) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return false, false
	}
	for _, s := range sockets {
		if s.state != listening || s.local.Port() != port {
			continue
		}
		l := s.local.Addr()
		switch {
		case l.IsLoopback():
			loopback = true
		case l.IsUnspecified(), l == a:
			there = true
		}
	}
	return there, loopback
}

// latencies observes slow reads and I/Os. Reads are counted as seconds with at least
// one, because a process that was paused once makes many slow reads afterwards.
func (o *observer) latencies() {
	type reader struct{ owner, comm string }
	seconds := map[reader]map[int64]bool{}
	for _, e := range o.events {
		switch e.typ {
		case "SOCKETLAT_READSLOW":
			r := reader{e.owner, e.comm}
			if seconds[r] == nil {
				seconds[r] = map[int64]bool{}
			}
			seconds[r][int64(e.at.Sub(o.before.at)/time.Second)] = true
		case "BIOLAT_10MS", "BIOLAT_100MS":
			o.add(observation{signal: "disk.late", owner: Node, value: float64(e.n), what: e.disk})
		}
	}
	for r, in := range seconds {
		o.add(observation{signal: "read.late", owner: r.owner, value: min(100, 100*float64(len(in))/o.took().Seconds()), what: r.comm})
	}
}

const (
	// slowLookup is longer than any server needs for a cached answer, and than most
	// need to ask other servers.
	slowLookup = 500 * time.Millisecond
	// lostLookup is when a query counts as unanswered.
	lostLookup = 2 * time.Second
)

// devices returns the node's interfaces at the other end of a pod's veth pairs, none if
// the pod is connected in another way. Packets of the pod are seen there first.
func (o *observer) devices(name string) (own []int) {
	at, node := o.after.netns[name], o.after.netns[Node]
	if name == Node || at == nil || node == nil {
		return nil
	}
	for _, l := range at.links {
		if l.peer != 0 && slices.ContainsFunc(node.links, func(n link) bool { return n.index == l.peer }) {
			own = append(own, l.peer)
		}
	}
	return own
}

// podDevices returns the pod of each of the node's interfaces that leads to a pod.
func (o *observer) podDevices() map[string]string {
	pods := map[string]string{}
	for pod := range o.after.netns {
		for _, index := range o.devices(pod) {
			for _, l := range o.after.netns[Node].links {
				if l.index == index {
					pods[l.name] = pod
				}
			}
		}
	}
	return pods
}

// names observes the DNS queries, by server.
func (o *observer) names() {
	type of struct{ client, server string }
	all, slow := map[of]float64{}, map[of]float64{}
	worst := map[of]time.Duration{}
	for _, l := range o.lookups {
		k := of{o.nameOf(l.client), o.nameOf(l.server)}
		if own := o.devices(k.client); len(own) > 0 && !slices.Contains(own, l.device) {
			continue // somebody else uses the pod's address
		}
		took := l.answered.Sub(l.asked)
		if l.answered.IsZero() {
			if took = o.after.at.Sub(l.asked); took < lostLookup {
				continue
			}
		}
		all[k]++
		if took >= slowLookup {
			slow[k]++
			worst[k] = max(worst[k], took)
		}
	}
	for k, n := range all {
		o.add(observation{signal: "dns.lookups", owner: k.client, peer: k.server, value: n})
		if slow[k] > 0 {
			o.add(observation{signal: "dns.slow", owner: k.client, peer: k.server, value: slow[k]})
			o.add(observation{signal: "dns.worst", owner: k.client, peer: k.server, value: worst[k].Seconds()})
		}
	}
}

func (o *observer) node() {
	before, after := o.before.node, o.after.node
	if before == nil || after == nil {
		return
	}
	window := o.took().Seconds()
	for cpu, now := range after.cpus {
		was, ok := before.cpus[cpu]
		if all := allTimes(&now) - allTimes(&was); ok && all > 0 {
			o.add(observation{signal: "cpu.softirq", owner: Node, what: strconv.FormatInt(cpu, 10), value: 100 * max(0, now.SoftIRQ-was.SoftIRQ) / all})
		}
	}
	for name, d := range after.disks {
		old, ok := before.disks[name]
		if n := since(d.ios, old.ios); ok && n > 0 {
			o.add(observation{signal: "disk.ios", owner: Node, what: name, value: float64(n)})
			o.add(observation{signal: "disk.wait", owner: Node, what: name, value: float64(since(d.waits, old.waits)) / float64(n)})
		}
	}
	if was, ok := before.stall["io"]; ok {
		o.add(observation{signal: "disk.stall", owner: Node, value: 100 * float64(since(after.stall["io"], was)) / 1e6 / window})
	}
	if after.tcpPressure > 0 {
		o.add(observation{signal: "tcp.memory", owner: Node, value: 100 * float64(after.tcpMem) / float64(after.tcpPressure), what: strconv.FormatUint(after.tcpMem, 10) + " pages"})
	}
	o.add(observation{signal: "neighbour.table_full", owner: Node, value: float64(since(after.arpFulls, before.arpFulls))})
	if after.arpMax > 0 {
		o.add(observation{signal: "neighbour.table_used", owner: Node, value: 100 * float64(after.arp) / float64(after.arpMax)})
	}
}

// allTimes returns the time for which a CPU has existed, in seconds. Guest time is
// included in user time.
func allTimes(c *procfs.CPUStat) float64 {
	return c.User + c.Nice + c.System + c.Idle + c.Iowait + c.IRQ + c.SoftIRQ + c.Steal
}

// natPorts holds the ports that NAT uses for one destination.
type natPorts struct {
	used, room float64
	to         string
}

func (o *observer) conntrack() {
	for name, v := range o.after.values {
		entries, most := v["kubeskoop_conntrack_entries"], v["kubeskoop_conntrack_maxentries"]
		if most > 0 {
			o.add(observation{signal: "conntrack.used", owner: name, value: 100 * entries / most, what: strconv.FormatFloat(entries, 'f', 0, 64) + " of " + strconv.FormatFloat(most, 'f', 0, 64)})
		}
	}
	for name, n := range o.nat {
		if n.room > 0 {
			o.add(observation{signal: "nat.ports", owner: name, value: 100 * n.used / n.room, what: n.to})
		}
	}
}

// arpFlux looks for a neighbour entry in which the node's address has the hardware
// address of the wrong interface of the node.
func (o *observer) arpFlux() {
	node := o.after.netns[Node]
	if node == nil {
		return
	}
	mac, device := map[string]string{}, map[string]string{}
	for _, l := range node.links {
		mac[l.name] = l.mac
		if l.mac != "" {
			device[l.mac] = l.name
		}
	}
	owns := map[netip.Addr]string{}
	for _, a := range node.addrs {
		owns[a.addr] = a.device
	}
	for name, s := range o.after.netns {
		if name == Node {
			continue
		}
		for _, n := range s.neighbours {
			own := owns[n.addr]
			other := device[n.mac]
			if own == "" || other == "" || own == other || mac[own] == n.mac || n.state&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE|netlink.NUD_PERMANENT) != 0 {
				continue
			}
			o.add(observation{signal: "arp.other_device", owner: name, peer: Node, value: 1, what: n.addr.String() + " of " + own + " at " + other})
		}
	}
}
