package bpf

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"nodeskoop/bpf/internal/objects"
)

// Why says why a packet that the kernel freed as dropped is no loss.
type Why uint32

// Why packets are ignored.
const (
	// Lost is a packet that somebody should have got and did not.
	Lost = Why(objects.PacketlossWhyLOST)
	// Delivered is a packet whose content or answer has reached its socket.
	Delivered = Why(objects.PacketlossWhyDELIVERED)
	// Unwanted is a packet to a group, to everybody or to another host that
	// nobody on this node asked for.
	Unwanted = Why(objects.PacketlossWhyUNWANTED)
	// Closing is what a socket held, or was still sent, when it was closed.
	Closing = Why(objects.PacketlossWhyCLOSING)
	// NotAPacket is a message of netlink or of a local socket, which the
	// kernel keeps in the same structure as packets.
	NotAPacket = Why(objects.PacketlossWhyNOT_A_PACKET)

	whys = Why(objects.PacketlossWhyWHYS)
)

var whyNames = [whys]string{Lost: "lost", Delivered: "delivered", Unwanted: "unwanted", Closing: "closing", NotAPacket: "not_a_packet"}

// String is the value of the label why.
func (w Why) String() string {
	if w < whys {
		return whyNames[w]
	}
	return fmt.Sprintf("why_%d", uint32(w))
}

// WhyIgnored lists the reasons for which packets are ignored.
func WhyIgnored() []Why { return []Why{Delivered, Unwanted, Closing, NotAPacket} }

// traits of a packet, as the rules name them: enum trait of packetloss.bpf.c,
// which explains them.
type traits uint32

const (
	traitNoPacket  = traits(objects.PacketlossTraitNO_PACKET)
	traitDevice    = traits(objects.PacketlossTraitDEVICE)
	traitGroup     = traits(objects.PacketlossTraitGROUP)
	traitOtherHost = traits(objects.PacketlossTraitOTHERHOST)
	traitPulled    = traits(objects.PacketlossTraitPULLED)
	traitOutgoing  = traits(objects.PacketlossTraitOUTGOING)
	traitCopied    = traits(objects.PacketlossTraitCOPIED)
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

// A lossRule names packets that are no losses, although the kernel frees them
// by kfree_skb(). All that it says has to hold.
type lossRule struct {
	why Why
	// functions that free the packet; a final * stands for any rest. None:
	// wherever it is freed.
	functions []string
	// reasons that the kernel gives. None: whatever it says. On a kernel
	// without reasons (before 5.17) a rule with reasons holds if it names
	// functions, too, unless it is the reason that decides.
	reasons  []string
	decisive bool
	// need are traits that the packet has, deny some that it has not.
	need, deny traits
	// kernels that free such packets this way, and the test that holds the
	// rule: a subtest of TestHealthy, or another test.
	kernels, test string
}

// Functions of the kernel that several rules name.
var (
	// tcpInput are TCP's functions that take a segment in, with those into which
	// compilers put them.
	tcpInput = []string{"tcp_v4_rcv", "tcp_v4_do_rcv", "tcp_v6_rcv", "tcp_v6_do_rcv", "tcp_rcv_*", "tcp_validate_*", "tcp_data_*", "tcp_ack*", "tcp_drop*", "tcp_ofo_*", "tcp_queue_*"}
	// tcpReceive look for the socket of a segment, and free one with a bad
	// checksum, too.
	tcpReceive = []string{"tcp_v4_rcv", "tcp_v6_rcv"}
	// tcpReasons are those of a segment that a socket judged by its sequence
	// numbers and time stamps.
	tcpReasons = []string{
		"NOT_SPECIFIED", "TCP_OLD_DATA", "TCP_OLD_SEQUENCE", "TCP_INVALID_SEQUENCE", "TCP_INVALID_END_SEQUENCE",
		"TCP_INVALID_ACK_SEQUENCE", "TCP_OLD_ACK", "TCP_TOO_OLD_ACK", "TCP_ACK_UNSENT_DATA", "TCP_OVERWINDOW",
		"TCP_ZEROWINDOW", "TCP_RFC7323_PAWS", "TCP_RFC7323_PAWS_ACK", "TCP_RFC7323_TW_PAWS", "TCP_RFC7323_TSECR",
		"TCP_FASTOPEN", "TCP_CLOSE",
	}
	// socketQueues empty the queues of a socket that closes.
	socketQueues = []string{
		"skb_queue_purge", "skb_queue_purge_reason", "skb_errqueue_purge", "sk_stream_kill_queues", "inet_sock_destruct",
		"udp_destruct_*", "udpv6_destruct_*", "tcp_disconnect", "packet_sock_destruct", "packet_release",
	}
	// unheard are where a packet ends that no protocol, address or socket of
	// this host waits for.
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

// lossRules are asked in this order; the first that holds says why the packet
// is ignored. A packet that none names is lost.
var lossRules = []lossRule{
	{
		// Messages of netlink, audit, uevents, vsock and local sockets.
		why: NotAPacket, need: traitNoPacket,
		kernels: "all", test: "TestHealthy/local",
	},
	{
		// The packet that stands for one when a program asks for a route.
		why: NotAPacket, functions: []string{"inet_rtm_getroute", "inet6_rtm_getroute"},
		kernels: "to 6.1", test: "TestHealthy/local",
	},
	{
		// What GRO or a reassembly put together is one packet, whose parts
		// are freed one by one when it has been read.
		why: Delivered, functions: []string{"kfree_skb_list", "kfree_skb_list_reason", "skb_release_data"},
		reasons: []string{"NOT_SPECIFIED"}, need: traitPulled,
		kernels: "to 6.1, and later where TCP frees the packet", test: "TestHealthy/tcp",
	},
	{
		// The end of the function for what it handled: neighbour discovery,
		// echo requests, errors passed on.
		why: Delivered, functions: []string{"icmpv6_rcv"}, reasons: []string{"NOT_SPECIFIED"},
		need:    traitICMPv6 | traitChecksum,
		kernels: "to 6.1", test: "TestHealthy/link",
	},
	{
		// A raw socket got a copy before; the original is for ping sockets.
		why: Delivered, functions: []string{"ping_rcv", "icmp_rcv", "icmpv6_rcv"},
		reasons: []string{"NOT_SPECIFIED", "NO_SOCKET"}, need: traitEchoReply | traitChecksum | traitCopied,
		kernels: "all", test: "TestHealthy/datagram",
	},
	{
		// The lease that a client of DHCP is offered goes to an address that
		// it does not have yet. It reads a copy through a packet socket.
		why: Delivered, functions: []string{"ip_error", "ip_forward", "ip_rcv", "ip_rcv_finish", "ip_rcv_finish_core", "ip_list_rcv*", "ip_sublist_rcv*", "ip_route_input*"},
		reasons: unheardReasons, need: traitDHCPReply,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// The copy that a capture has no room for. Who else should get the
		// packet, gets it.
		why: Delivered, functions: []string{"packet_rcv", "packet_rcv_spkt", "tpacket_rcv"},
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// Acknowledgements, keep-alives and window probes that a socket has
		// taken in: on a connection that is half closed, or with old numbers.
		why: Delivered, functions: []string{"tcp_rcv_*", "tcp_validate_*", "tcp_data_*", "tcp_ack*", "tcp_drop*"},
		reasons: tcpReasons, need: traitACK,
		kernels: "from 5.18", test: "TestHealthy/tcp",
	},
	{
		// The same for a socket in TIME_WAIT.
		why: Delivered, functions: tcpReceive,
		reasons: tcpReasons, need: traitACK | traitInformed | traitChecksum, deny: traitListener,
		kernels: "all", test: "TestHealthy/tcp",
	},
	{
		// The acknowledgement of a handshake to a listener that waits for data.
		why: Delivered, functions: tcpReceive,
		reasons: []string{"NOT_SPECIFIED"}, need: traitACK | traitDeferred | traitChecksum,
		kernels: "all", test: "TestHealthy/tcp",
	},
	{
		// A FIN for a socket in TIME_WAIT, which remembers FIN_WAIT2.
		why: Delivered, functions: tcpReceive,
		reasons: tcpReasons, need: traitFIN | traitChecksum,
		kernels: "all", test: "TestHealthy/tcp",
	},
	{
		// A reset has been heard, whatever it did.
		why: Delivered, functions: tcpInput,
		reasons: append([]string{"TCP_RESET", "TCP_FLAGS"}, tcpReasons...), need: traitRST | traitChecksum,
		kernels: "all", test: "TestHealthy/tcp",
	},
	{
		// A SYN that came again before the handshake was complete: it was
		// answered again.
		why: Delivered, functions: tcpReceive,
		reasons: []string{"NOT_SPECIFIED"}, need: traitSYN | traitListener | traitChecksum,
		kernels: "all", test: "TestHealthy/wire",
	},
	{
		// A SYN or SYN-ACK that came again afterwards: a challenge ACK answers.
		why: Delivered, functions: tcpInput,
		reasons: []string{"TCP_INVALID_SYN"}, decisive: true, need: traitSYN,
		kernels: "from 5.18", test: "TestHealthy/wire",
	},
	{
		// A segment that came twice: the socket has all of it.
		why: Delivered, functions: tcpInput, reasons: tcpReasons, need: traitOld, deny: traitListener,
		kernels: "from 5.18", test: "TestHealthy/wire",
	},
	{
		why: Delivered, reasons: []string{"TCP_OLD_DATA", "TCP_OFOMERGE", "TCP_OFO_DROP"},
		kernels: "from 5.18", test: "TestHealthy/wire",
	},
	{
		// The byte by which other systems ask for a window.
		why: Delivered, reasons: []string{"TCP_ZEROWINDOW"}, need: traitByte,
		kernels: "from 5.18", test: "TestLossJudge",
	},
	{
		// Messages that were read. What does not reach an association is
		// freed by sctp_rcv.
		why: Delivered, functions: []string{"sctp_chunk_*", "sctp_ulpevent_*", "sctp_ulpq_*", "sctp_recvmsg", "sctp_inq_*", "sctp_outq_*", "sctp_datamsg_*", "sctp_skb_*", "sctp_queue_*"},
		reasons: []string{"NOT_SPECIFIED", "QUEUE_PURGE"},
		kernels: "all", test: "TestHealthy/datagram",
	},
	{
		// An acknowledgement, a FIN or a reset that comes when the socket is
		// gone: it would have changed nothing.
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
		// SCTP's ABORT and SHUTDOWN COMPLETE, when the association is gone.
		why: Closing, functions: []string{"sctp_rcv"}, reasons: []string{"NOT_SPECIFIED"}, need: traitRST | traitChecksum,
		kernels: "all", test: "TestHealthy/datagram",
	},
	{
		// A frame to another host, on a device that takes all.
		why: Unwanted, functions: []string{
			"__netif_receive_skb_core", "__netif_receive_skb_one_core", "__netif_receive_skb_list_core", "ip_rcv*", "ip_list_rcv*", "ipv6_rcv",
			"ip6_rcv_core", "ipv6_list_rcv", "arp_rcv", "tcp_v4_rcv", "tcp_v6_rcv", "sctp_rcv", "llc_rcv", "ip_forward", "ip6_forward",
		},
		reasons: []string{"NOT_SPECIFIED", "OTHERHOST", "UNHANDLED_PROTO"}, need: traitOtherHost,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// Multicast and broadcast that nobody here asked for.
		why: Unwanted, functions: unheard, reasons: unheardReasons, need: traitGroup,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// The same where the queue to those that it might concern is full: that
		// of a CPU, or of a virtual device.
		why: Unwanted, functions: []string{
			"enqueue_to_backlog", "netif_rx", "netif_rx_internal", "__netif_rx", "netif_rx_ni", "netif_receive_skb*",
			"veth_xmit", "veth_xdp_rx", "veth_forward_skb",
		},
		reasons: []string{"NOT_SPECIFIED", "CPU_BACKLOG", "FULL_RING"}, need: traitGroup | traitUnjoined,
		kernels: "all", test: "TestLossGroups",
	},
	{
		why: Unwanted, reasons: []string{"IPV6_NDISC_NS_OTHERHOST"},
		kernels: "from 6.6", test: "TestHealthy/link",
	},
	{
		// Queries that a bridge makes for an address that it does not have.
		why: Unwanted, functions: []string{"__br_multicast_send_query", "br_multicast_send_query", "br_ip6_multicast_alloc_query", "br_multicast_alloc_query"},
		reasons: []string{"NOT_SPECIFIED"}, deny: traitCopied,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// Multicasts that none of a card's ipvlan devices has joined: those
		// that find the queue full are freed elsewhere.
		why: Unwanted, functions: []string{"ipvlan_process_multicast", "macvlan_process_broadcast"},
		reasons: []string{"NOT_SPECIFIED"},
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// The kernel's own announcements on a link that is down or leads to
		// nobody: they are repeated when it comes up.
		why: Unwanted, reasons: []string{"QDISC_DROP", "DEV_READY", "NO_TX_TARGET"}, need: traitControl,
		kernels: "from 5.17", test: "TestHealthy/link",
	},
	{
		why: Unwanted, functions: []string{"__dev_queue_xmit", "__dev_xmit_skb", "kfree_skb_list", "kfree_skb_list_reason", "br_dev_xmit", "br_flood", "br_multicast_flood"},
		reasons: []string{"NOT_SPECIFIED"}, need: traitControl,
		kernels: "all", test: "TestHealthy/link",
	},
	{
		// Data and errors in the queues of a socket that closes. Packets in
		// the queue of a neighbour or of a device know their device.
		why: Closing, reasons: []string{"QUEUE_PURGE"}, deny: traitDevice,
		kernels: "from 6.6", test: "TestHealthy/datagram",
	},
	{
		why: Closing, reasons: []string{"QUEUE_PURGE"}, need: traitOutgoing,
		kernels: "from 6.6", test: "TestHealthy/datagram",
	},
	{
		// The same where the kernel does not say so.
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
		// What came out of order, and waits for what is missing. The queue's
		// links lie where the device was.
		why: Closing, functions: []string{"skb_rbtree_purge"},
		kernels: "all", test: "TestHealthy/wire",
	},
}

// What the programs need to know of functions besides the rules.
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

// lossExpiries are what the timers of queues of fragments call; the programs
// have room for EXPIRIES of them.
var lossExpiries = []string{"ip_expire", "ip6_frag_expire", "nf_ct_frag6_expire"}

type lossStep = objects.PacketlossStep

// lossMasks is the table of rules, as the programs search it.
type lossMasks struct {
	rules      [objects.PacketlossSizeRULES]objects.PacketlossRule
	anywhere   uint64 // rules that name no function
	anyReason  uint64 // rules that name no reason
	noReasons  uint64 // rules that hold where the kernel gives none
	ofHeaders  uint64 // rules that ask for what the headers say
	ofMembers  uint64 // rules that ask whether somebody has joined the group
	ofMessages uint64 // rules that ask for a message, not a packet
	ofGroups   uint64 // rules that ask for a frame to a group
	ofOthers   uint64 // rules that ask for a frame to another host
	byReason   map[string]uint64
	byName     map[string]uint64 // functions, in full
	byPrefix   map[string]uint64 // functions, by how they begin
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
		if (r.need|r.deny)&^(traitNoPacket|traitDevice|traitGroup|traitOtherHost|traitPulled|traitOutgoing|traitCopied|traitUnjoined) != 0 {
			m.ofHeaders |= bit
		}
		if r.need&traitUnjoined != 0 {
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

// at gives the mask of a function, by its name without a compiler's suffix.
func (m *lossMasks) at(function string) uint64 {
	mask := m.anywhere | m.byName[function]
	for _, n := range m.prefixLens {
		if n <= len(function) {
			mask |= m.byPrefix[function[:n]]
		}
	}
	return mask
}

// because gives the mask of a reason.
func (m *lossMasks) because(r *Reasons, reason uint32) uint64 {
	if len(r.drop) == 0 {
		return m.noReasons
	}
	return m.anyReason | m.byReason[r.drop[reason]]
}

// judge is the programs' function of that name, for what they left undecided.
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

// steps makes the table of code addresses, in the order of the addresses.
func (s *Symbols) steps(m *lossMasks) (*objects.PacketlossSteps, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const first = uint64(1) << 63 // all code lies above
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
