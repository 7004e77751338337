// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* packetloss: packets that a receiver should have got and did not, by namespace,
 * reason and location.
 *
 * The kernel also frees packets by kfree_skb() when nothing is lost. The table of
 * rules in packetloss_rules.go defines which packets are ignored, and why: a rule
 * names functions, reasons and traits of the packet. The programs here look up the
 * rules of the function (a search in a table of code addresses) and those of the
 * reason (an index), and test the traits of the rules in both. A packet that
 * matches no rule is lost. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct drop_key {
	__u64 netns; /* netns_id */
	__u64 location;
	__u32 reason;
	__u32 traits; /* set only for an undecided packet */
};

/* The value is a count. On the CPU that created the entry, its upper bits hold the
 * room that the entry occupies. */
enum drop { DROP_ROOM_SHIFT = 62 };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct drop_key);
	__type(value, __u64);
} drops SEC(".maps");

DEFINE_SHARES(drop_shares, 1024);

/* Counts by class, only of drops that found no room in the table of drops. */
DEFINE_COUNTERS();

/* Classes of lost packets. */
enum slot { ABNORMAL, TCP_HANDLE, TCP_RCV, TCP_STATM, NETFILTER, SLOTS };

/* Why a packet is not a loss. */
enum why { LOST, DELIVERED, UNWANTED, CLOSING, NOT_A_PACKET, WHYS };

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WHYS);
	__type(key, enum why);
	__type(value, __u64);
} ignored SEC(".maps");

/* Whether the tracepoint passes the receiving socket, according to the kernel's
 * BTF. */
const volatile bool has_rx_sk = false;
const volatile bool with_stack = true;

/* Traits of a packet, which rules refer to. */
enum trait {
	/* Traits of the skb itself. */
	NO_PACKET = 1 << 0, /* a message of netlink, of a local socket, ... */
	DEVICE = 1 << 1, /* the packet is at a device, not in a socket's queue */
	GROUP = 1 << 2, /* a multicast or broadcast frame */
	OTHERHOST = 1 << 3, /* a frame for another host */
	PULLED = 1 << 4, /* the data begins behind the IP header: a part of a larger packet */
	OUTGOING = 1 << 5, /* a copy made for a capture, or in a socket's error queue */
	COPIED = 1 << 6, /* a socket has, or had, a copy of it */
	UNJOINED = 1 << 21, /* no socket here has joined the frame's group */
	DOWN = 1 << 22, /* a multicast or broadcast frame at a device that is down */
	/* Traits of the headers. */
	BARE = 1 << 7, /* TCP: neither data nor SYN, FIN or RST */
	FIN = 1 << 8, /* TCP: FIN without data */
	RST = 1 << 9, /* TCP: RST; SCTP: ABORT, SHUTDOWN COMPLETE */
	SYN = 1 << 10, /* TCP: SYN without data */
	BYTE = 1 << 11, /* TCP: one byte of data */
	ECHO_REPLY = 1 << 12, /* ICMP or ICMPv6 echo reply */
	ICMPV6 = 1 << 13,
	CHECKSUM = 1 << 14, /* the checksum is correct, or the device verified it */
	DHCP_REPLY = 1 << 15, /* UDP to a DHCPv4 client */
	CONTROL = 1 << 16, /* IGMP, or ICMPv6 to a multicast group */
	/* Traits of the socket. */
	OLD = 1 << 17, /* TCP: the socket has already received all of its data */
	LISTENER = 1 << 18, /* TCP: a listening socket */
	DEFERRED = 1 << 19, /* TCP: a listening socket with TCP_DEFER_ACCEPT */
	INFORMED = 1 << 20, /* if there is a receiving socket, it is known here */
	/* User space has to judge the packet. */
	UNDECIDED = 1u << 31,
};

enum size {
	RULES = 40,
	REASONS = 256, /* reasons that rules may name */
	STEPS = 2048,
	EXPIRIES = 4,
};

/* The rules in the order of testing; bit n of a mask stands for rule n. */

struct rule {
	__u32 need; /* traits that the packet must have */
	__u32 deny; /* traits that it must not have */
	__u32 why; /* enum why; 0: no rule */
	__u32 unused;
};

const volatile struct rule rules[RULES] = {};

#define RULE_MASK ((1ull << RULES) - 1)

/* Rules without a function, rules without a reason, and rules that match on kernels
 * without reasons. */
const volatile __u64 rules_anywhere = 0;
const volatile __u64 rules_any_reason = 0;
const volatile __u64 rules_no_reasons = 0;
/* Rules with traits of the headers or of the socket. */
const volatile __u64 rules_of_headers = 0;
/* Rules with the traits UNJOINED and DOWN. */
const volatile __u64 rules_of_members = 0;
/* Rules for messages, for frames to a group, and for frames to another host. */
const volatile __u64 rules_of_messages = 0;
const volatile __u64 rules_of_groups = 0;
const volatile __u64 rules_of_others = 0;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, REASONS);
	__type(key, __u32);
	__type(value, __u64);
} rules_by_reason SEC(".maps");

/* A step is a code address at which the set of matching rules changes. The upper
 * bits of its mask describe the code from there on. */
enum code_bit {
	HELPER = 55, /* code of a helper: the drop belongs to its caller */
	CLASS = 56, /* three bits: the drop class of this code */
	LIST = 59, /* code that frees the parts of a packet */
	READER = 60, /* code that runs in the reading process */
	FRAGMENT = 61, /* code that frees the current fragment */
	FRAGMENTS = 62, /* code that frees a fragment queue */
	MODULE = 63, /* code outside the kernel's own */
};

#define AT(bit) (1ull << (bit))

struct step {
	__u64 start;
	__u64 mask;
};

/* In ascending order; unused steps hold the highest address. */
struct steps {
	struct step step[STEPS];
};

/* Two tables: user space writes the unused one, then switches. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct steps);
} code SEC(".maps");

/* Shared with user space: the table in use, the number of modules loaded since the
 * start, how many of them user space knows, and whether the programs that note
 * sockets are attached. */
__u32 table_in_use;
__u64 modules_loaded;
__u64 modules_known;
__u32 sockets_noted;

/* Timer functions of fragment queues; 0 ends the list. */
__u64 expiries[EXPIRIES];

GO_TYPES(enum slot slot; enum drop drop; enum trait trait; enum size size; enum code_bit code_bit;);

/* At least the size of struct sk_buff on every kernel. Where it is smaller, the
 * copy reads into the next object of the slab. */
#define SKB_BYTES 256
#define NESTED 4
#define FOUND 16

/* Notes of one program for the next one on the same CPU. */
struct notes {
	__u64 skb; /* the noted packet, and below its socket: */
	__u64 sk;
	__u64 segment;
	__u64 state; /* state of that socket, or 0 for one of a connection */
	__u64 part; /* the next part of a lost packet, which is freed after it */
	__u64 part_location; /* location, owner and reason of that loss */
	struct owner part_owner;
	struct owner fragment_owner; /* owner of the fragment freed last */
	struct owner expiry_owner; /* owner of the fragment queue whose timer runs */
	__u32 part_reason;
	__u32 nested; /* number of packets being judged on this CPU */
	/* Copies of the packets being judged: a field then costs a load instead of a
	 * helper call. An interrupt may free another packet meanwhile, so there are several.  */
	struct {
		__u8 bytes[SKB_BYTES];
	} copy[NESTED];
	/* Cache of search results by code address, for one of the two tables. */
	struct {
		__u64 location;
		__u64 mask;
		__u64 table;
	} found[FOUND];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct notes);
} notes SEC(".maps");

static __always_inline struct notes *notes_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&notes, &zero);
}

static __always_inline const struct sk_buff *copy_of(const struct notes *n, __u32 nested)
{
	return (const struct sk_buff *)n->copy[nested & (NESTED - 1)].bytes;
}

/* Finds the step for a return address. If a call is the last instruction of its
 * function, the return address is the start of the next function, so the search
 * compares with the byte before it. It uses arithmetic instead of branches, because
 * the verifier follows every branch. All code lies in the upper half of the address
 * space, so a difference has a sign. */
VERIFIED_ONCE __u64 search(__u64 location, __u32 table)
{
	struct steps *s = bpf_map_lookup_elem(&code, &table);
	__u64 low = 0;

	if (!s || !s->step[0].start)
		return rules_anywhere;
#pragma unroll
	for (__u64 half = STEPS / 2; half; half /= 2) {
		__u64 middle = low | half;

		barrier_var(middle); /* keeps the compiler from removing the bound */
		middle &= STEPS - 1;
		low |= half & -((s->step[middle].start - location) >> 63);
	}
	barrier_var(low);
	return s->step[low & (STEPS - 1)].mask;
}

/* Returns the cached result, or searches. An interrupt may use the same cache entry
 * meanwhile, so the address is written last and read twice. */
static __always_inline __u64 code_at(struct notes *n, __u64 location)
{
	__u64 table = table_in_use, mask;
	__u32 place = location * 0x9E3779B97F4A7C15ull >> 60;
	volatile typeof(n->found[0]) *f = &n->found[place & (FOUND - 1)];

	if (f->location == location && f->table == table) {
		mask = f->mask;
		if (f->location == location && f->table == table)
			return mask;
	}
	mask = search(location, table);
	f->location = 0;
	f->mask = mask;
	f->table = table;
	f->location = location;
	return mask;
}

static __always_inline __u64 rules_for(__u32 reason)
{
	__u64 *mask;

	if (!bpf_core_type_exists(enum skb_drop_reason))
		return rules_no_reasons;
	mask = bpf_map_lookup_elem(&rules_by_reason, &reason);
	return mask ? *mask : rules_any_reason;
}

/* The kernel's drop reason says that the packet was consumed. */
static __always_inline bool is_consumed(__u32 reason)
{
	if (!bpf_core_type_exists(enum skb_drop_reason))
		return false;
	if (reason == bpf_core_enum_value(enum skb_drop_reason, SKB_NOT_DROPPED_YET))
		return true;
	return bpf_core_enum_value_exists(enum skb_drop_reason, SKB_CONSUMED) &&
	       reason == bpf_core_enum_value(enum skb_drop_reason, SKB_CONSUMED);
}

static __always_inline bool is_local(__u16 family)
{
	return family == AF_UNIX || family == AF_NETLINK || family == AF_KEY ||
	       family == AF_VSOCK || family == AF_ALG;
}

/* Messages of local sockets and of the kernel itself are in the same structure.
 * They have no protocol, no device and no network socket. */
VERIFIED_ONCE __u32 kind_of(__u32 nested, __u32 dev_netns)
{
	const struct notes *n = notes_here();
	const struct sk_buff *skb;
	const struct sock *sk;
	__u32 traits = 0;
	__u16 family;
	__u8 type;

	if (!n)
		return 0;
	skb = copy_of(n, nested);
	sk = skb->sk;
	family = sk ? BPF_CORE_READ(sk, __sk_common.skc_family) : 0;
	type = BPF_CORE_READ_BITFIELD(skb, pkt_type);
	if (is_local(family))
		return NO_PACKET;
	if (!skb->protocol) {
		if (!dev_netns && family != AF_INET && family != AF_INET6 && family != AF_PACKET)
			return NO_PACKET;
		/* A packet that a device generates for a self-test. */
		if (!skb->len && !family)
			return NO_PACKET;
	}
	if (dev_netns)
		traits |= DEVICE;
	if (type == PACKET_BROADCAST || type == PACKET_MULTICAST || type == PACKET_LOOPBACK)
		traits |= GROUP;
	else if (type == PACKET_OTHERHOST)
		traits |= OTHERHOST;
	else if (type == PACKET_OUTGOING)
		traits |= OUTGOING;
	if (BPF_CORE_READ_BITFIELD(skb, cloned))
		traits |= COPIED;
	if ((__u64)skb->data > (__u64)skb->head + skb->network_header)
		traits |= PULLED;
	return traits;
}

#define ARPHRD_ETHER 1
#define IFF_PROMISC 0x100
#define IFF_ALLMULTI 0x200
#define GROUPS 32
#define LINK_STATE_START 0 /* bits of net_device's state (enum netdev_state_t) */
#define LINK_STATE_NOCARRIER 2

/* Whether the device is down, and whether its multicast filter (dev_mc_add) rejects a frame's group. The
 * group counts as joined if the device is in promiscuous mode, if a bridge or the
 * like takes its frames, or if it has more groups than are searched here. */
VERIFIED_ONCE __u32 traits_of_group(__u32 nested)
{
	const struct notes *n = notes_here();
	const struct net_device *dev;
	const struct list_head *end, *at;
	const struct sk_buff *skb;
	struct {
		__u32 high;
		__u16 low;
		__u16 unused;
	} to = {}, group = {};
	unsigned long state;

	if (!n)
		return 0;
	skb = copy_of(n, nested);
	dev = skb->dev;
	if (!dev)
		return 0;
	/* A device that goes down loses these before its flag (dev_close_many()). */
	state = BPF_CORE_READ(dev, state);
	if (!(state & 1ul << LINK_STATE_START) || state & 1ul << LINK_STATE_NOCARRIER)
		return DOWN;
	if (BPF_CORE_READ(dev, type) != ARPHRD_ETHER || BPF_CORE_READ(dev, rx_handler) ||
	    BPF_CORE_READ(dev, flags) & (IFF_PROMISC | IFF_ALLMULTI) ||
	    bpf_probe_read_kernel(&to, 6, skb->head + skb->mac_header))
		return 0;
	if (to.high == 0xffffffff && to.low == 0xffff)
		return 0; /* broadcast */
	end = __builtin_preserve_access_index(&dev->mc.list);
	at = BPF_CORE_READ(end, next);
	for (int i = 0; i < GROUPS && at; i++) {
		if (at == end)
			return UNJOINED;
		BPF_CORE_READ_INTO(&group, (const struct netdev_hw_addr *)at, addr);
		if (group.high == to.high && group.low == to.low)
			return 0;
		at = BPF_CORE_READ(at, next);
	}
	return 0;
}

VERIFIED_ONCE __u32 traits_of_tcp(__u64 header, __u32 len, __u64 socket)
{
	const struct sock *sk = (const struct sock *)socket;
	struct {
		__be16 source, dest;
		__be32 seq, ack;
		__u8 offset, flags;
	} th;
	__u32 payload, end, next, traits = 0;
	__u8 state;

	if (bpf_probe_read_kernel(&th, sizeof(th), (void *)header) || (th.offset >> 4) < 5 ||
	    len < (th.offset >> 4) * 4u)
		return 0;
	payload = len - (th.offset >> 4) * 4;
	if (th.flags & TCP_FLAG_RST)
		traits = RST;
	else if (payload == 1)
		traits = BYTE;
	else if (!payload)
		traits = th.flags & TCP_FLAG_SYN ? SYN : th.flags & TCP_FLAG_FIN ? FIN : BARE;
	if (!sk)
		return traits;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_LISTEN) {
		traits |= LISTENER;
		if (BPF_CORE_READ((const struct inet_connection_sock *)sk,
				  icsk_accept_queue.rskq_defer_accept))
			traits |= DEFERRED;
		return traits;
	}
	if (state == TCP_NEW_SYN_RECV)
		return traits;
	next = state == TCP_TIME_WAIT ? BPF_CORE_READ(sk, __sk_common.skc_tw_rcv_nxt) :
					BPF_CORE_READ((const struct tcp_sock *)sk, rcv_nxt);
	end = bpf_ntohl(th.seq) + payload + !!(th.flags & TCP_FLAG_FIN) +
	      !!(th.flags & TCP_FLAG_SYN);
	if ((__s32)(end - next) <= 0)
		traits |= OLD;
	return traits;
}

static __always_inline bool is_checked(const struct sk_buff *skb)
{
	__u8 summed = BPF_CORE_READ_BITFIELD(skb, ip_summed);

	return summed == CHECKSUM_UNNECESSARY || summed == CHECKSUM_PARTIAL ||
	       BPF_CORE_READ_BITFIELD(skb, csum_valid);
}

/* SCTP chunks that are never answered (RFC 9260, section 8.4). */
#define SCTP_ABORT 6
#define SCTP_SHUTDOWN_COMPLETE 14

/* Only for packets that a transport protocol received or that are on their way
 * there, so that the stack has set the transport header. */
VERIFIED_ONCE __u32 traits_of_headers(__u32 nested, __u64 sk)
{
	const struct notes *n = notes_here();
	const struct sk_buff *skb;
	const unsigned char *head;
	__u32 l3, l4, len, header, traits = 0;
	__u8 ip[20] __attribute__((aligned(8))), protocol, type = 0xff, group = 0;
	__be16 ports[2] = {};

	if (!n)
		return 0;
	skb = copy_of(n, nested);
	head = skb->head;
	l3 = skb->network_header;
	l4 = skb->transport_header;
	if (bpf_probe_read_kernel(ip, sizeof(ip), head + l3))
		return 0;
	if (ip[0] >> 4 == 4) {
		protocol = ip[9];
		len = ip[2] << 8 | ip[3];
		header = (ip[0] & 15) * 4;
	} else if (ip[0] >> 4 == 6) {
		protocol = ip[6];
		len = 40 + (ip[4] << 8 | ip[5]);
		header = 40;
	} else {
		return 0;
	}
	/* If the transport header is not set yet, it follows a plain IP header. */
	if (l4 <= l3 || l4 - l3 > 512)
		l4 = l3 + header;
	header = l4 - l3;
	len = len > header ? len - header : 0;
	if (header > 40)
		/* IPv6 extensions name the next header last; TCP and ICMPv6 do not follow
		 * other extensions here. */
		protocol = ip[0] >> 4 == 6 ? 0 : protocol;

	switch (protocol) {
	case IPPROTO_TCP:
		traits = traits_of_tcp((__u64)head + l4, len, sk);
		if (is_checked(skb))
			traits |= CHECKSUM;
		break;
	case IPPROTO_ICMP:
		if (!bpf_probe_read_kernel(&type, sizeof(type), head + l4) &&
		    type == ICMP_ECHOREPLY)
			traits = ECHO_REPLY;
		if (is_checked(skb))
			traits |= CHECKSUM;
		break;
	case IPPROTO_IGMP:
		traits = CONTROL;
		break;
	case IPPROTO_HOPOPTS: /* membership reports (IGMP, MLD) have this option */
	case IPPROTO_ICMPV6:
		if (ip[0] >> 4 == 6 &&
		    !bpf_probe_read_kernel(&group, sizeof(group), head + l3 + 24) && group == 0xff)
			traits = CONTROL;
		if (protocol == IPPROTO_HOPOPTS)
			break;
		traits |= ICMPV6;
		if (!bpf_probe_read_kernel(&type, sizeof(type), head + l4) &&
		    type == ICMPV6_ECHO_REPLY)
			traits |= ECHO_REPLY;
		if (is_checked(skb))
			traits |= CHECKSUM;
		break;
	case IPPROTO_SCTP:
		/* Read the type of the first chunk, behind the common header. */
		if (!bpf_probe_read_kernel(&type, sizeof(type), head + l4 + 12) &&
		    (type == SCTP_ABORT || type == SCTP_SHUTDOWN_COMPLETE))
			traits = RST;
		if (is_checked(skb))
			traits |= CHECKSUM;
		break;
	case IPPROTO_UDP:
		if (!bpf_probe_read_kernel(ports, sizeof(ports), head + l4) &&
		    ports[0] == bpf_htons(BOOTP_SERVER) && ports[1] == bpf_htons(BOOTP_CLIENT))
			traits = DHCP_REPLY;
		break;
	}
	return traits;
}

/* Most packets are for this host; skip the rules for others then. */
static __always_inline __u64 rules_that_need(__u32 traits)
{
	return (traits & NO_PACKET ? ~0ull : ~rules_of_messages) &
	       (traits & GROUP ? ~0ull : ~rules_of_groups) &
	       (traits & OTHERHOST ? ~0ull : ~rules_of_others);
}

/* The first matching rule says why the packet is not a loss. */
VERIFIED_ONCE __u32 judge(__u64 candidates, __u32 traits)
{
#pragma unroll
	for (int i = 0; i < RULES; i += 8) {
		/* Few candidates are set. */
		if (!(candidates & 0xffull << i))
			continue;
#pragma unroll
		for (int j = i; j < i + 8; j++) {
			if (candidates & 1ull << j &&
			    (traits & rules[j].need) == rules[j].need &&
			    !(traits & rules[j].deny))
				return rules[j].why;
		}
	}
	return LOST;
}

/* Drops by filter rules have a reason of their own; other classes follow from the
 * function. */
static __always_inline __u32 class_of(__u32 reason, __u64 at)
{
	if (bpf_core_type_exists(enum skb_drop_reason) &&
	    bpf_core_enum_value_exists(enum skb_drop_reason, SKB_DROP_REASON_NETFILTER_DROP) &&
	    reason == bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_NETFILTER_DROP))
		return NETFILTER;
	return at >> CLASS & 7;
}

static __always_inline void count_drop(struct owner o, __u32 reason, __u64 location, __u32 traits,
				       __u64 at)
{
	struct drop_key key = {
		.netns = netns_id(o), .location = location, .reason = reason, .traits = traits
	};
	__u64 *n = bpf_map_lookup_elem(&drops, &key), fresh;
	__u32 room;

	if (!n) {
		room = take_room(&drop_shares, o);
		if (room != NO_ROOM) {
			fresh = (__u64)room << DROP_ROOM_SHIFT;
			bpf_map_update_elem(&drops, &key, &fresh, BPF_NOEXIST);
			n = bpf_map_lookup_elem(&drops, &key);
		}
	}
	if (n)
		__sync_fetch_and_add(n, 1);
	else
		count(o, class_of(reason, at));
}

static __always_inline int ignore(__u32 why)
{
	__u64 *n = bpf_map_lookup_elem(&ignored, &why);

	if (n)
		__sync_fetch_and_add(n, 1);
	return 0;
}

static __always_inline void fill(struct event *e, const struct sk_buff *skb, __u32 reason,
				 __u64 location, __u32 traits)
{
	e->reason = reason;
	e->location = location;
	e->detail = traits;
	event_set_dev(e, BPF_CORE_READ(skb, dev));
	tuple_from_skb(skb, &e->tuple);
}

static __always_inline void tell(void *ctx, const struct sk_buff *skb, struct owner o, __u32 reason,
				 __u64 location, __u32 traits)
{
	__u64 now = bpf_ktime_get_ns();

	if (with_stack) {
		struct event_stack *es =
			event_reserve(EVENT_PACKETLOSS, o, now, sizeof(struct event_stack));

		if (!es)
			return;
		fill(&es->event, skb, reason, location, traits);
		event_set_stack(ctx, es);
		event_submit(es);
	} else {
		struct event *e = event_reserve(EVENT_PACKETLOSS, o, now, sizeof(struct event));

		if (!e)
			return;
		fill(e, skb, reason, location, traits);
		event_submit(e);
	}
}

/* Returns the owner of a lost packet. The links of a socket's queue overwrite the
 * device pointer of a packet in it, so the socket comes first. */
static __always_inline struct owner owner_of(const struct sk_buff *skb, const struct sock *sk,
					     __u64 at, const struct notes *n, struct owner dev)
{
	struct owner o = owner_of_sock(sk);
	struct task_struct *task;

	/* The rest of a fragment queue is freed when its timer has expired, or right
	 * after the fragment that exceeded the limit. The queue's links overwrite a
	 * fragment's device. */
	if (!o.netns && at & AT(FRAGMENTS))
		o = n->expiry_owner.netns ? n->expiry_owner : n->fragment_owner;
	if (!o.netns)
		o = dev;
	if (!o.netns)
		o = owner_of_skb(skb);
	if (!o.netns && at & AT(READER)) {
		task = (struct task_struct *)bpf_get_current_task();
		o = owner_of_net(BPF_CORE_READ(task, nsproxy, net_ns));
	}
	return o;
}

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct skb_shared_info___parts {
	struct sk_buff *frag_list;
};

#pragma clang attribute pop

/* The parts of a freed packet are freed one by one right after it. */
static __always_inline __u64 parts_of(const struct sk_buff *copy)
{
	const struct skb_shared_info___parts *shared = (const void *)(copy->head + copy->end);

	if (!copy->data_len)
		return 0;
	return (__u64)BPF_CORE_READ(shared, frag_list);
}

/* Copy only the parts with fields in use: the beginning, and from the length on. */
static __always_inline void copy_skb(void *copy, const struct sk_buff *skb)
{
	const __u32 rest = bpf_core_field_offset(struct sk_buff, len);

	if (rest <= SKB_BYTES - 128) {
		bpf_probe_read_kernel(copy, 32, skb);
		bpf_probe_read_kernel(copy + rest, 128, (const void *)skb + rest);
	} else {
		bpf_probe_read_kernel(copy, SKB_BYTES, skb);
	}
}

/* Frames of the stack to search for the caller of a kernel helper, which is
 * the function that lost the packet. Some compilers inline such a helper, and
 * then no frame belongs to it. */
#define FRAMES 12

static __noinline __u64 caller_of(void *ctx, __u64 location)
{
	__u64 frame[FRAMES] = {};
	long bytes = bpf_get_stack(ctx, frame, sizeof(frame), 0);

#pragma unroll
	for (int i = 0; i < FRAMES - 1; i++) {
		if ((i + 2) * (long)sizeof(frame[0]) <= bytes && frame[i] == location)
			return frame[i + 1];
	}
	return location;
}

/* Ports and sequence number, which differ for another packet at the same address. */
static __always_inline __u64 segment_of(const struct sk_buff *skb)
{
	const unsigned char *head = BPF_CORE_READ(skb, head);
	__u64 segment = 0;

	bpf_probe_read_kernel(&segment, sizeof(segment),
			      head + BPF_CORE_READ(skb, transport_header));
	return segment;
}

/* A listener that has been closed since is no longer one, and its fields are
 * meaningless. */
static __always_inline const struct sock *still(const struct sock *sk, __u64 noted)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (noted)
		return state == noted ? sk : NULL;
	return state != TCP_LISTEN && state != TCP_CLOSE && state != TCP_TIME_WAIT ? sk : NULL;
}

static __always_inline int freed(void *ctx, const struct sk_buff *skb, __u64 location, __u32 reason,
				 const struct sock *rx_sk)
{
	const struct sock *sk = rx_sk;
	struct notes *n = notes_here();
	__u32 traits, nested, why = LOST, undecided = 0;
	struct owner dev, o, nobody = {};
	const struct sk_buff *copy;
	bool part;
	__u64 at;

	if (is_consumed(reason))
		return ignore(DELIVERED);
	if (!n)
		return 0; /* cannot happen: the map has an entry per CPU */
	if (n->skb == (__u64)skb) {
		if (!sk && segment_of(skb) == n->segment)
			sk = still((const struct sock *)n->sk, n->state);
		n->skb = 0;
	}
	nested = n->nested & (NESTED - 1);
	n->nested++;
	copy = copy_of(n, nested);
	copy_skb((void *)copy, skb);
	at = code_at(n, location);
	part = at & AT(LIST) && n->part == (__u64)skb;
	dev = owner_of_dev(copy->dev);
	traits = kind_of(nested, dev.netns);

	/* A part of a lost packet is lost too. */
	if (!part) {
		__u64 candidates = at & rules_for(reason) & RULE_MASK & rules_that_need(traits);
		bool pending = at & AT(MODULE) && modules_loaded != modules_known;

		if ((candidates & rules_of_headers || pending) && !(traits & NO_PACKET)) {
			traits |= traits_of_headers(nested, (__u64)sk);
			if (has_rx_sk || sockets_noted)
				traits |= INFORMED;
		}
		if (candidates & rules_of_members)
			traits |= traits_of_group(nested);
		why = candidates ? judge(candidates, traits) : LOST;
		/* The code belongs to a module that user space does not know yet. User
		 * space will judge the packet by the same rules. */
		if (why == LOST && pending)
			undecided = traits | UNDECIDED;
	}
	n->nested--;
	if (why != LOST) {
		n->part = 0;
		return ignore(why);
	}
	if (part) {
		n->part = (__u64)copy->next;
		o = n->part_owner;
		reason = n->part_reason;
		location = n->part_location;
	} else {
		o = owner_of(skb, sk, at, n, dev);
		if (at & AT(HELPER)) {
			location = caller_of(ctx, location);
			at = code_at(n, location);
		}
		n->part = parts_of(copy);
		n->part_owner = o;
		n->part_reason = reason;
		n->part_location = location;
	}
	if (!(at & AT(FRAGMENTS)))
		n->fragment_owner = at & AT(FRAGMENT) ? o : nobody;
	count_drop(o, reason, location, undecided, at);
	tell(ctx, skb, o, reason, location, undecided);
	return 0;
}

SEC("raw_tp/kfree_skb")
int raw_kfree_skb(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 reason = REASON_NONE;
	struct sock *rx_sk = NULL;

	if (bpf_core_type_exists(enum skb_drop_reason))
		reason = ctx->args[2];
	if (has_rx_sk)
		rx_sk = (struct sock *)ctx->args[3];
	return freed(ctx, (struct sk_buff *)ctx->args[0], ctx->args[1], reason, rx_sk);
}

/* Arguments as numbers, see kernellatency.bpf.c. */
static __always_inline __u64 argument(const __u64 *at)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), at);
	return value;
}

/* Packet and socket are passed as numbers, because the verifier does not accept
 * typed pointers everywhere. */
SEC("tp_btf/kfree_skb")
int btf_kfree_skb(__u64 *ctx)
{
	__u32 reason = REASON_NONE;
	struct sock *rx_sk = NULL;

	if (bpf_core_type_exists(enum skb_drop_reason))
		reason = ctx[2];
	if (has_rx_sk)
		rx_sk = (struct sock *)argument(&ctx[3]);
	return freed(ctx, (struct sk_buff *)argument(&ctx[0]), ctx[1], reason, rx_sk);
}

/* After a module is loaded, its code is unknown until user space has read the
 * symbols again. */
SEC("raw_tp/module_load")
int raw_module_load(struct bpf_raw_tracepoint_args *ctx)
{
	__sync_fetch_and_add(&modules_loaded, 1);
	return 0;
}

/* When a fragment queue expires, its fragments are freed without a device. The
 * timer's argument gives the namespace. */
SEC("raw_tp/timer_expire_entry")
int raw_timer(struct bpf_raw_tracepoint_args *ctx)
{
	struct timer_list *timer = (struct timer_list *)ctx->args[0];
	__u64 function = (__u64)BPF_CORE_READ(timer, function);
	struct inet_frag_queue *queue;
	struct notes *n;

	/* Runs for each timer of the node, so it must return quickly. */
	if (function != expiries[0] && function != expiries[1] && function != expiries[2] &&
	    function != expiries[3])
		return 0;
	n = notes_here();
	if (!n || !function)
		return 0;
	queue = (void *)timer - bpf_core_field_offset(struct inet_frag_queue, timer);
	n->expiry_owner = owner_of_net(BPF_CORE_READ(queue, fqdir, net));
	return 0;
}

SEC("raw_tp/timer_expire_exit")
int raw_timer_end(struct bpf_raw_tracepoint_args *ctx)
{
	struct notes *n = notes_here();
	struct owner nobody = {};

	if (n)
		n->expiry_owner = nobody;
	return 0;
}

/* For kernels whose tracepoint passes no socket: functions that TCP calls with the
 * socket before it frees a packet. None of them is on the path of an established
 * connection. */

static __always_inline int note_socket(__u64 skb, __u64 sk, __u64 state)
{
	struct notes *n = notes_here();

	if (n) {
		n->sk = sk;
		n->state = state;
		n->segment = segment_of((const struct sk_buff *)skb);
		n->skb = skb;
	}
	return 0;
}

/* The kernel passes the address of the field in the socket that holds the time of
 * the last rate-limited ACK. A request socket has such a field too, and must be
 * excluded. */
static __always_inline int note_connection(__u64 skb, __u64 field)
{
	__u64 sk = field - bpf_core_field_offset(struct tcp_sock, last_oow_ack_time);
	__u16 family = BPF_CORE_READ((struct sock *)sk, __sk_common.skc_family);
	__u8 state = BPF_CORE_READ((struct sock *)sk, __sk_common.skc_state);

	if ((family != AF_INET && family != AF_INET6) || !state || state >= TCP_NEW_SYN_RECV ||
	    BPF_CORE_READ((struct sock *)sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	return note_socket(skb, sk, 0);
}

SEC("fentry/tcp_check_req")
int fen_check_req(__u64 *ctx)
{
	return note_socket(argument(&ctx[1]), argument(&ctx[0]), TCP_LISTEN);
}

SEC("fentry/tcp_timewait_state_process")
int fen_timewait(__u64 *ctx)
{
	return note_socket(argument(&ctx[1]), argument(&ctx[0]), TCP_TIME_WAIT);
}

SEC("fentry/tcp_oow_rate_limited")
int fen_out_of_window(__u64 *ctx)
{
	return note_connection(argument(&ctx[1]), argument(&ctx[3]));
}

SEC("kprobe/tcp_check_req")
int BPF_KPROBE(kp_check_req, __u64 sk, __u64 skb)
{
	return note_socket(skb, sk, TCP_LISTEN);
}

SEC("kprobe/tcp_timewait_state_process")
int BPF_KPROBE(kp_timewait, __u64 sk, __u64 skb)
{
	return note_socket(skb, sk, TCP_TIME_WAIT);
}

SEC("kprobe/tcp_oow_rate_limited")
int BPF_KPROBE(kp_out_of_window, __u64 net, __u64 skb, __u64 index, __u64 field)
{
	return note_connection(skb, field);
}
