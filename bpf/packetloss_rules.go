package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

// Why is the reason why a packet that the kernel freed as dropped is not a loss.
type Why uint32

// Values of Why.
const (
	// Lost: a receiver should have got the packet and did not.
	Lost = Why(objects.PacketlossWhyLOST)
	// Delivered: the packet's data or the reply to it has reached its socket.
	Delivered = Why(objects.PacketlossWhyDELIVERED)
	// Unwanted: a multicast or broadcast packet, or one for another host, that no
	// socket on this node asked for.
	Unwanted = Why(objects.PacketlossWhyUNWANTED)
	// Closing: data in, or sent to, a socket that closes.
	Closing = Why(objects.PacketlossWhyCLOSING)
	// NotAPacket: a message of netlink or of a local socket, which the kernel
	// stores in the same structure as packets.
	NotAPacket = Why(objects.PacketlossWhyNOT_A_PACKET)

	whys = Why(objects.PacketlossWhyWHYS)
)

var whyNames = [whys]string{Lost: "lost", Delivered: "delivered", Unwanted: "unwanted", Closing: "closing", NotAPacket: "not_a_packet"}

// String returns the value of the label why.
func (w Why) String() string {
	if w < whys {
		return whyNames[w]
	}
	return fmt.Sprintf("why_%d", uint32(w))
}

// WhyIgnored returns the values of Why for ignored packets.
func WhyIgnored() []Why { return []Why{Delivered, Unwanted, Closing, NotAPacket} }

// traits are properties of a packet that rules refer to: enum trait of
// packetloss.bpf.c, which explains them.
type traits uint32

const (
	traitNoPacket  = traits(objects.PacketlossTraitNO_PACKET)
	traitDevice    = traits(objects.PacketlossTraitDEVICE)
	traitGroup     = traits(objects.PacketlossTraitGROUP)
	traitOtherHost = traits(objects.PacketlossTraitOTHERHOST)
	traitPulled    = traits(objects.PacketlossTraitPULLED)
	traitOutgoing  = traits(objects.PacketlossTraitOUTGOING)
	traitCopied    = traits(objects.PacketlossTraitCOPIED)
	traitDown      = traits(objects.PacketlossTraitDOWN)
	traitUnjoined  = traits(objects.PacketlossTraitUNJOINED)
	traitACK       = traits(objects.PacketlossTraitBARE)
	traitFIN       = traits(objects.PacketlossTraitFIN)
	traitRST       = traits(objects.PacketlossTraitRST)
	traitSYN       = traits(objects.PacketlossTraitSYN)
	traitByte      = traits(objects.PacketlossTraitBYTE)
	traitEchoReply = traits(objects.PacketlossTraitECHO_REPLY)
	traitICMPv6    = traits(objects.PacketlossTraitICMPV6)
	traitChecksum  = traits(objects.PacketlossTraitCHECKSUM)
	traitDHCPReply = traits(objects.PacketlossTraitDHCP_REPLY)
	traitControl   = traits(objects.PacketlossTraitCONTROL)
	traitOld       = traits(objects.PacketlossTraitOLD)
	traitListener  = traits(objects.PacketlossTraitLISTENER)
	traitDeferred  = traits(objects.PacketlossTraitDEFERRED)
	traitInformed  = traits(objects.PacketlossTraitINFORMED)
	traitUndecided = traits(objects.PacketlossTraitUNDECIDED)
)

// A lossRule matches packets that are not lost although the kernel frees them by
// kfree_skb(). All of its conditions have to hold.
type lossRule struct {
	why Why
	// functions that free the packet; a final * matches any suffix. Empty matches
	// every function.
	functions []string
	// reasons that the kernel gives. Empty matches every reason. On kernels without
	// reasons (before 5.17) a rule with reasons matches by its functions alone,
	// unless it names none or is decisive: then only the reason identifies packets
	// that are not lost.
	reasons  []string
	decisive bool
	// need are traits that the packet must have, deny those that it must not have.
	need, deny traits
	// kernels that free such packets this way, and the test of the rule: a subtest
	// of TestHealthy, or another test.
	kernels, test string
}

// Kernel functions that several rules name.
var (
	// tcpInput are TCP's functions that process a segment, and the functions into
	// which compilers inline them.
	tcpInput = []string{"tcp_v4_rcv", "tcp_v4_do_rcv", "tcp_v6_rcv", "tcp_v6_do_rcv", "tcp_rcv_*", "tcp_validate_*", "tcp_data_*", "tcp_ack*", "tcp_drop*", "tcp_ofo_*", "tcp_queue_*"}
	// tcpReceive look up the socket of a segment, and free segments with a bad
	// checksum.
	tcpReceive = []string{"tcp_v4_rcv", "tcp_v6_rcv"}
	// tcpReasons are the reasons for discarding a segment by its sequence numbers
	// and timestamps.
	tcpReasons = []string{
		"NOT_SPECIFIED", "TCP_OLD_DATA", "TCP_OLD_SEQUENCE", "TCP_INVALID_SEQUENCE", "TCP_INVALID_END_SEQUENCE",
		"TCP_INVALID_ACK_SEQUENCE", "TCP_OLD_ACK", "TCP_TOO_OLD_ACK", "TCP_ACK_UNSENT_DATA", "TCP_OVERWINDOW",
		"TCP_ZEROWINDOW", "TCP_RFC7323_PAWS", "TCP_RFC7323_PAWS_ACK", "TCP_RFC7323_TW_PAWS", "TCP_RFC7323_TSECR",
		"TCP_FASTOPEN", "TCP_CLOSE",
	}
	// socketQueues are functions that empty the queues of a closing socket.
	socketQueues = []string{
		"skb_queue_purge", "skb_queue_purge_reason", "skb_errqueue_purge", "sk_stream_kill_queues", "inet_sock_destruct",
		"udp_destruct_*", "udpv6_destruct_*", "tcp_disconnect", "packet_sock_destruct", "packet_release",
	}
	// unheard are functions that free a packet for which this host has no protocol,
	// address or socket.
	unheard = []string{
		"__netif_receive_skb_core", "__netif_receive_skb_one_core", "__netif_receive_skb_list_core", "netif_receive_skb_*",
		"ip_rcv", "ip_rcv_core", "ip_rcv_finish", "ip_rcv_finish_core", "ip_list_rcv*", "ip_sublist_rcv*", "ip_route_input*",
		"ip_local_deliver*", "ip_protocol_deliver_rcu", "ip_error", "ip_forward", "ip_mr_input", "ip_mr_forward", "ip_mc_*",
		"ipv6_rcv", "ip6_rcv_core", "ip6_rcv_finish*", "ip6_list_rcv*", "ip6_sublist_rcv*", "ipv6_list_rcv", "ip6_mc_input", "ip6_mr_*",
		"ip6_input*", "ip6_protocol_deliver_rcu", "ip6_pkt_drop", "ip6_pkt_discard", "ip6_pkt_prohibit", "ip6_forward",
		"icmp_rcv", "icmpv6_rcv", "igmp_rcv", "ndisc_*", "arp_rcv", "arp_process", "ping_rcv",
		"tcp_v4_rcv", "tcp_v6_rcv", "sctp_rcv", "__udp4_lib_rcv", "__udp6_lib_rcv", "__udp4_lib_mcast_deliver", "__udp6_lib_mcast_deliver", "udp_rcv", "udpv6_rcv",
		"llc_rcv", "stp_pdu_rcv", "br_stp_rcv", "br_handle_frame*", "br_pass_frame_up", "br_dev_xmit", "br_flood", "br_multicast_flood",
		"bond_handle_frame", "vlan_do_receive", "vlan_skb_recv", "macvlan_handle_frame", "macvlan_broadcast", "macvlan_process_broadcast",
		"ipvlan_*", "eth_type_trans", "lldp_*", "snap_rcv",
	}
	unheardReasons = []string{
		"NOT_SPECIFIED", "UNHANDLED_PROTO", "OTHERHOST", "IP_INNOROUTES", "IP_INADDRERRORS", "IP_INVALID_DEST", "IP_LOCALNET",
		"IP_NOPROTO", "INVALID_PROTO", "NO_SOCKET", "UNICAST_IN_L2_MULTICAST", "IPV6DISABLED", "BRIDGE_INGRESS_STP_STATE",
		"LOCAL_MAC", "MAC_IEEE_MAC_CONTROL", "NO_TX_TARGET", "ARP_PVLAN_DISABLE", "IPV6_NDISC_NS_OTHERHOST",
	}
)

// lossRules are tested in this order; the first match says why the packet is
// ignored. A packet that matches no rule is lost.
var lossRules = []lossRule{
	{
		// Messages of netlink, audit, uevents, vsock and local sockets.
		why: NotAPacket, need: traitNoPacket,
		kernels: "all", test: "TestHealthy/local",
	},
	{
		// A dummy packet for a route lookup by a program.
		why: NotAPacket, functions: []string{"inet_rtm_getroute", "inet6_rtm_getroute"},
		kernels: "to 6.1", test: "TestHealthy/local",
	},
	{
		// A packet merged by GRO or reassembly: after the read its parts are freed
		// one by one.
		why: Delivered, functions: []string{"kfree_skb_list", "kfree_skb_list_reason", "skb_release_data"},
		reasons: []string{"NOT_SPECIFIED"}, need: traitPulled,
		kernels: "to 6.1, and later where TCP frees the packet", test: "TestHealthy/tcp",
	},
	{
		// icmpv6_rcv() ends here for handled packets: neighbour discovery, echo
		// requests, forwarded errors.
		why: Delivered, functions: []string{"icmpv6_rcv"}, reasons: []string{"NOT_SPECIFIED"},
		need:    traitICMPv6 | traitChecksum,
		kernels: "to 6.1", test: "TestHealthy/link",
	},
	{
		// A raw socket has got a copy; the original is for ping sockets.
		why: Delivered, functions: []string{"ping_rcv", "icmp_rcv", "icmpv6_rcv"},
		reasons: []string{"NOT_SPECIFIED", "NO_SOCKET"}, need: traitEchoReply | traitChecksum | traitCopied,
		kernels: "all", test: "TestHealthy/datagram",
	},
	{
		// The lease offered to a DHCP client goes to an address that the client
		// does not have yet. The client reads a copy through a packet socket.
		why: Delivered, functions: []string{"ip_error", "ip_forward", "ip_rcv", "ip_rcv_finish", "ip_rcv_finish_core", "ip_list_rcv*", "ip_sublist_rcv*", "ip_route_input*"},
		reasons: unheardReasons, need: traitDHCPReply,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// The copy for a capture whose buffer is full. The packet itself is
		// delivered.
		why: Delivered, functions: []string{"packet_rcv", "packet_rcv_spkt", "tpacket_rcv"},
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// Acknowledgements, keep-alives and window probes that a socket has
		// processed: on a half-closed connection, or with old sequence numbers.
		why: Delivered, functions: []string{"tcp_rcv_*", "tcp_validate_*", "tcp_data_*", "tcp_ack*", "tcp_drop*"},
		reasons: tcpReasons, need: traitACK,
		kernels: "from 5.18", test: "TestHealthy/tcp",
	},
	{
		// As above, for a socket in TIME_WAIT.
		why: Delivered, functions: tcpReceive,
		reasons: tcpReasons, need: traitACK | traitInformed | traitChecksum, deny: traitListener,
		kernels: "all", test: "TestHealthy/tcp",
	},
	{
		// The final ACK of a handshake, to a listener that waits for data
		// (TCP_DEFER_ACCEPT).
		why: Delivered, functions: tcpReceive,
		reasons: []string{"NOT_SPECIFIED"}, need: traitACK | traitDeferred | traitChecksum,
		kernels: "all", test: "TestHealthy/tcp",
	},
	{
		// A FIN for a socket in TIME_WAIT whose substate is FIN_WAIT2.
		why: Delivered, functions: tcpReceive,
		reasons: tcpReasons, need: traitFIN | traitChecksum,
		kernels: "all", test: "TestHealthy/tcp",
	},
	{
		// A RST has been processed, whatever its effect.
		why: Delivered, functions: tcpInput,
		reasons: append([]string{"TCP_RESET", "TCP_FLAGS"}, tcpReasons...), need: traitRST | traitChecksum,
		kernels: "all", test: "TestHealthy/tcp",
	},
	{
		// A retransmitted SYN before the handshake was complete: the SYN-ACK was
		// retransmitted.
		why: Delivered, functions: tcpReceive,
		reasons: []string{"NOT_SPECIFIED"}, need: traitSYN | traitListener | traitChecksum,
		kernels: "all", test: "TestHealthy/wire",
	},
	{
		// A retransmitted SYN or SYN-ACK after the handshake: a challenge ACK
		// answers.
		why: Delivered, functions: tcpInput,
		reasons: []string{"TCP_INVALID_SYN"}, decisive: true, need: traitSYN,
		kernels: "from 5.18", test: "TestHealthy/wire",
	},
	{
		// A duplicate segment: the socket has all of its data.
		why: Delivered, functions: tcpInput, reasons: tcpReasons, need: traitOld, deny: traitListener,
		kernels: "from 5.18", test: "TestHealthy/wire",
	},
	{
		why: Delivered, reasons: []string{"TCP_OLD_DATA", "TCP_OFOMERGE", "TCP_OFO_DROP"},
		kernels: "from 5.18", test: "TestHealthy/wire",
	},
	{
		// The one-byte window probe of other systems.
		why: Delivered, reasons: []string{"TCP_ZEROWINDOW"}, need: traitByte,
		kernels: "from 5.18", test: "TestLossJudge",
	},
	{
		// Messages that were read. sctp_rcv() frees those that reach no
		// association.
		why: Delivered, functions: []string{"sctp_chunk_*", "sctp_ulpevent_*", "sctp_ulpq_*", "sctp_recvmsg", "sctp_inq_*", "sctp_outq_*", "sctp_datamsg_*", "sctp_skb_*", "sctp_queue_*"},
		reasons: []string{"NOT_SPECIFIED", "QUEUE_PURGE"},
		kernels: "all", test: "TestHealthy/datagram",
	},
	{
		// An ACK, FIN or RST that arrives after the socket is gone has no effect.
		why: Closing, functions: tcpReceive, reasons: []string{"NO_SOCKET"}, decisive: true, need: traitACK | traitChecksum,
		kernels: "from 5.17", test: "TestHealthy/tcp",
	},
	{
		why: Closing, functions: tcpReceive, reasons: []string{"NO_SOCKET"}, decisive: true, need: traitFIN | traitChecksum,
		kernels: "from 5.17", test: "TestHealthy/tcp",
	},
	{
		why: Closing, functions: tcpReceive, reasons: []string{"NO_SOCKET"}, decisive: true, need: traitRST | traitChecksum,
		kernels: "from 5.17", test: "TestHealthy/tcp",
	},
	{
		// SCTP's ABORT and SHUTDOWN COMPLETE after the association is gone.
		why: Closing, functions: []string{"sctp_rcv"}, reasons: []string{"NOT_SPECIFIED"}, need: traitRST | traitChecksum,
		kernels: "all", test: "TestHealthy/datagram",
	},
	{
		// A frame for another host, on a device in promiscuous mode.
		why: Unwanted, functions: []string{
			"__netif_receive_skb_core", "__netif_receive_skb_one_core", "__netif_receive_skb_list_core", "ip_rcv*", "ip_list_rcv*", "ipv6_rcv",
			"ip6_rcv_core", "ipv6_list_rcv", "arp_rcv", "tcp_v4_rcv", "tcp_v6_rcv", "sctp_rcv", "llc_rcv", "ip_forward", "ip6_forward",
		},
		reasons: []string{"NOT_SPECIFIED", "OTHERHOST", "UNHANDLED_PROTO"}, need: traitOtherHost,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// Multicast and broadcast without a listener on this host.
		why: Unwanted, functions: unheard, reasons: unheardReasons, need: traitGroup,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// As above, dropped because the queue towards possible listeners is full:
		// that of a CPU, or of a virtual device.
		why: Unwanted, functions: []string{
			"enqueue_to_backlog", "netif_rx", "netif_rx_internal", "__netif_rx", "netif_rx_ni", "netif_receive_skb*",
			"veth_xmit", "veth_xdp_rx", "veth_forward_skb",
		},
		reasons: []string{"NOT_SPECIFIED", "CPU_BACKLOG", "FULL_RING"}, need: traitGroup | traitUnjoined,
		kernels: "all", test: "TestLossGroups",
	},
	{
		// Multicast and broadcast at a device that is down, or is just going down or
		// up, such as a bridge's port when its pod ends: the frame could reach nobody.
		why: Unwanted, need: traitGroup | traitDown,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		why: Unwanted, reasons: []string{"IPV6_NDISC_NS_OTHERHOST"},
		kernels: "from 6.6", test: "TestHealthy/link",
	},
	{
		// Queries that a bridge generates without having an address to send them
		// from.
		why: Unwanted, functions: []string{"__br_multicast_send_query", "br_multicast_send_query", "br_ip6_multicast_alloc_query", "br_multicast_alloc_query"},
		reasons: []string{"NOT_SPECIFIED"}, deny: traitCopied,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// Multicast that no ipvlan device of the card has joined. Packets that find
		// the queue full are freed elsewhere.
		why: Unwanted, functions: []string{"ipvlan_process_multicast", "macvlan_process_broadcast"},
		reasons: []string{"NOT_SPECIFIED"},
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// The kernel's own announcements on a link that is down or has no peer; the
		// kernel repeats them when the link comes up.
		why: Unwanted, reasons: []string{"QDISC_DROP", "DEV_READY", "NO_TX_TARGET"}, need: traitControl,
		kernels: "from 5.17", test: "TestHealthy/link",
	},
	{
		why: Unwanted, functions: []string{"__dev_queue_xmit", "__dev_xmit_skb", "kfree_skb_list", "kfree_skb_list_reason", "br_dev_xmit", "br_flood", "br_multicast_flood",
			"br_dev_queue_push_xmit", "br_forward_finish", "__br_forward", "__dev_forward_skb", "__dev_forward_skb2", "dev_forward_skb*"},
		reasons: []string{"NOT_SPECIFIED"}, need: traitControl,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// Data and errors in the queues of a closing socket. Packets in the queue
		// of a neighbour or of a device have a device.
		why: Closing, reasons: []string{"QUEUE_PURGE"}, deny: traitDevice,
		kernels: "from 6.6", test: "TestHealthy/datagram",
	},
	{
		why: Closing, reasons: []string{"QUEUE_PURGE"}, need: traitOutgoing,
		kernels: "from 6.6", test: "TestHealthy/datagram",
	},
	{
		// As above, on kernels without this reason.
		why: Closing, functions: socketQueues,
		reasons: []string{"NOT_SPECIFIED"}, need: traitOutgoing,
		kernels: "all", test: "TestHealthy/datagram",
	},
	{
		why: Closing, functions: socketQueues,
		reasons: []string{"NOT_SPECIFIED"}, deny: traitDevice,
		kernels: "all", test: "TestHealthy/datagram",
	},
	{
		// Out-of-order data in a closing socket. The queue's links overwrite the
		// packet's device pointer.
		why: Closing, functions: []string{"skb_rbtree_purge"},
		kernels: "all", test: "TestHealthy/wire",
	},
}

// Properties of functions that the programs need besides the rules.
const (
	atModule     = uint64(1) << objects.PacketlossCodeBitMODULE
	atFragments  = uint64(1) << objects.PacketlossCodeBitFRAGMENTS
	atFragment   = uint64(1) << objects.PacketlossCodeBitFRAGMENT
	atReader     = uint64(1) << objects.PacketlossCodeBitREADER
	atList       = uint64(1) << objects.PacketlossCodeBitLIST
	atHelper     = uint64(1) << objects.PacketlossCodeBitHELPER
	atClassShift = objects.PacketlossCodeBitCLASS
)

var lossPlaces = []struct {
	flag      uint64
	functions []string
}{
	{atFragments, []string{"inet_frag_rbtree_purge", "inet_frag_destroy", "inet_frags_free_cb"}},
	{atFragment, []string{
		"ip_defrag", "ip_frag_queue", "ip_frag_reasm", "ip_expire", "ipv6_frag_rcv", "ip6_frag_queue", "ip6_frag_reasm",
		"ip6_frag_expire", "ip6frag_expire_frag_queue", "nf_ct_frag6_*",
	}},
	{atReader, []string{"udp_recvmsg", "udpv6_recvmsg", "first_packet_length", "__first_packet_length", "udp_poll", "udp_ioctl", "udp_read_skb", "__skb_recv_udp"}},
	{atHelper, []string{"tcp_drop", "tcp_drop_reason"}},
	{atList, []string{"kfree_skb_list", "kfree_skb_list_reason", "skb_release_data"}},
}

const (
	lossSteps   = int(objects.PacketlossSizeSTEPS)
	lossReasons = uint32(objects.PacketlossSizeREASONS)
)

// lossExpiries are the timer functions of fragment queues; the programs have room
// for EXPIRIES of them.
var lossExpiries = []string{"ip_expire", "ip6_frag_expire", "nf_ct_frag6_expire"}

type lossStep = objects.PacketlossStep

// lossMasks holds the rules as bit masks, the form that the programs search.
type lossMasks struct {
	rules      [objects.PacketlossSizeRULES]objects.PacketlossRule
	anywhere   uint64 // rules without a function
	anyReason  uint64 // rules without a reason
	noReasons  uint64 // rules that match on kernels without reasons
	ofHeaders  uint64 // rules with traits of the headers
	ofMembers  uint64 // rules with the traits UNJOINED and DOWN
	ofMessages uint64 // rules for messages that are not packets
	ofGroups   uint64 // rules for frames to a group
	ofOthers   uint64 // rules for frames to another host
	byReason   map[string]uint64
	byName     map[string]uint64 // functions by full name
	byPrefix   map[string]uint64 // functions by prefix
	prefixLens []int
}

var lossTable = makeLossMasks(lossRules)

func makeLossMasks(rules []lossRule) *lossMasks {
	m := &lossMasks{byReason: map[string]uint64{}, byName: map[string]uint64{}, byPrefix: map[string]uint64{}}
	name := func(functions []string, mask uint64) {
		for _, f := range functions {
			if prefix, ok := strings.CutSuffix(f, "*"); ok {
				m.byPrefix[prefix] |= mask
				if !slices.Contains(m.prefixLens, len(prefix)) {
					m.prefixLens = append(m.prefixLens, len(prefix))
				}
			} else {
				m.byName[f] |= mask
			}
		}
	}
	for i, r := range rules {
		bit := uint64(1) << i
		m.rules[i] = objects.PacketlossRule{Need: uint32(r.need), Deny: uint32(r.deny), Why: uint32(r.why)}
		if len(r.functions) == 0 {
			m.anywhere |= bit
		}
		name(r.functions, bit)
		if len(r.reasons) == 0 {
			m.anyReason |= bit
		}
		for _, reason := range r.reasons {
			m.byReason[reason] |= bit
		}
		if len(r.reasons) == 0 || len(r.functions) > 0 && !r.decisive {
			m.noReasons |= bit
		}
		if (r.need|r.deny)&^(traitNoPacket|traitDevice|traitGroup|traitOtherHost|traitPulled|traitOutgoing|traitCopied|traitUnjoined|traitDown) != 0 {
			m.ofHeaders |= bit
		}
		if r.need&(traitUnjoined|traitDown) != 0 {
			m.ofMembers |= bit
		}
		if r.need&traitNoPacket != 0 {
			m.ofMessages |= bit
		}
		if r.need&traitGroup != 0 {
			m.ofGroups |= bit
		}
		if r.need&traitOtherHost != 0 {
			m.ofOthers |= bit
		}
	}
	for _, p := range lossPlaces {
		name(p.functions, p.flag)
	}
	for function, class := range dropFunctions {
		name([]string{function}, uint64(class)<<atClassShift)
	}
	return m
}

// at returns the mask of a function, given its name without a compiler suffix.
func (m *lossMasks) at(function string) uint64 {
	mask := m.anywhere | m.byName[function]
	for _, n := range m.prefixLens {
		if n <= len(function) {
			mask |= m.byPrefix[function[:n]]
		}
	}
	return mask
}

// because returns the mask of a reason.
func (m *lossMasks) because(r *Reasons, reason uint32) uint64 {
	if len(r.drop) == 0 {
		return m.noReasons
	}
	return m.anyReason | m.byReason[r.drop[reason]]
}

// judge does in user space what the programs' judge() does, for packets that they
// left undecided.
func (m *lossMasks) judge(function string, r *Reasons, reason uint32, t traits) Why {
	candidates := m.at(function) & m.because(r, reason)
	for i, rule := range m.rules {
		if candidates&(1<<i) != 0 && uint32(t)&rule.Need == rule.Need && uint32(t)&rule.Deny == 0 {
			return Why(rule.Why)
		}
	}
	return Lost
}

// prepareLosses writes the rules into the object.
func prepareLosses(spec *ebpf.CollectionSpec) error {
	m := lossTable
	if len(lossRules) > len(m.rules) {
		return fmt.Errorf("%d rules of losses, the programs have room for %d", len(lossRules), len(m.rules))
	}
	return errors.Join(
		set(spec, objects.PacketlossVarRules, m.rules),
		set(spec, objects.PacketlossVarRulesAnywhere, m.anywhere),
		set(spec, objects.PacketlossVarRulesAnyReason, m.anyReason),
		set(spec, objects.PacketlossVarRulesNoReasons, m.noReasons),
		set(spec, objects.PacketlossVarRulesOfHeaders, m.ofHeaders),
		set(spec, objects.PacketlossVarRulesOfMembers, m.ofMembers),
		set(spec, objects.PacketlossVarRulesOfMessages, m.ofMessages),
		set(spec, objects.PacketlossVarRulesOfGroups, m.ofGroups),
		set(spec, objects.PacketlossVarRulesOfOthers, m.ofOthers),
	)
}

// steps builds the table of code addresses, in ascending order.
func (s *Symbols) steps(m *lossMasks) (*objects.PacketlossSteps, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const first = uint64(1) << 63 // kernel code lies above this address
	var steps []lossStep
	add := func(start, mask uint64) {
		if n := len(steps); n > 0 && steps[n-1].Start == start {
			steps[n-1].Mask = mask
		} else if n == 0 || steps[n-1].Mask != mask {
			steps = append(steps, lossStep{Start: start, Mask: mask})
		}
	}
	add(first, m.anywhere|atModule)
	for _, sym := range s.table.symbols {
		name, module, isModule := strings.Cut(s.table.text(sym), " ")
		if sym.address <= first || module == "[bpf]" {
			continue
		}
		name, _, _ = strings.Cut(name, ".")
		mask := m.at(name)
		if isModule || !s.table.isKernel(sym.address) {
			mask |= atModule
		}
		add(sym.address, mask)
	}
	if len(steps) > lossSteps {
		return nil, fmt.Errorf("%d code addresses at which the rules of losses change, the programs have room for %d", len(steps), lossSteps)
	}
	var table objects.PacketlossSteps
	for i := range table.Step {
		table.Step[i].Start = 1<<64 - 1
	}
	copy(table.Step[:], steps)
	return &table, nil
}
