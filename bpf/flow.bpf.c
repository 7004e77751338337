// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* flow: what this node sends, per connection, in one of two ways.
 *
 * One program at the root of the cgroups sees the packets of all sockets in
 * all network namespaces, once each, and none that is only forwarded. Or the
 * devices that the user names have a program each, which sees what they
 * transmit, forwarded packets too. Never both: a packet would count twice. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/tuple.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { BYTES, PACKETS, MADE, FAILED, SLOTS };

GO_TYPES(enum slot slot;);

/* Without ports, all connections of two addresses share an entry. */
const volatile bool with_ports = false;

/* The network namespace of the devices. */
const volatile __u32 device_netns = 0;

#define ETHERNET_HEADER 14
#define TC_NEXT -1 /* the device's other programs and filters decide */

struct flow_key {
	struct tuple tuple;
	__u32 netns;
};

struct flow {
	__u64 bytes;
	__u64 packets;
	__u64 made_ns; /* tells an entry from another of the same connection */
	__u32 seen; /* the sweep before which it had its last packet */
	__u32 room; /* that it takes, see room.h */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

DEFINE_SHARES(flow_shares, 1024);

/* User space numbers its sweeps through the table. */
__u32 sweep;

/* The totals go on when the map evicts a flow: what is missing in the flows
 * is what it evicted. */
DEFINE_HOST_COUNTERS();

/* The context shows a socket that may be looked at only through a few fields.
 * Its address, read from memory, is a plain number, which may be looked at
 * through the kernel's type information. */
static __always_inline struct owner owner_of_context(struct __sk_buff *skb)
{
	__u64 shown = skb->sk, address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &shown);
	return owner_of_sock((const struct sock *)address);
}

/* The headers of a packet in a tunnel, when the device cuts the inner one up.
 * The fields are in groups whose names changed; only these are looked at. */
struct sk_buff___tunnel {
	__u8 encapsulation : 1;
	__u16 inner_transport_header;
	__u16 network_header;
	unsigned int end;
	unsigned char *head;
} __attribute__((preserve_access_index));

struct skb_shared_info {
	unsigned int gso_type;
} __attribute__((preserve_access_index));

#define GSO_TCP (1 << 0 | 1 << 4) /* SKB_GSO_TCPV4, SKB_GSO_TCPV6 */

/* The length of what each packet has of its own when one is cut up: IP header,
 * transport header, and those of tunnels between them. */
static __always_inline __u32 headers_length(struct __sk_buff *skb, const struct tuple *t,
					    const struct headers *h)
{
	const struct sk_buff___tunnel *kernel = NULL;
	void *shown = skb;
	const struct skb_shared_info *shared;
	__u32 l4 = h->l4;
	__u8 offset = 0;
	bool tcp = t->protocol == IPPROTO_TCP;

	if (!tcp) {
		/* The context's address, read from memory, is a plain number. */
		bpf_probe_read_kernel(&kernel, sizeof(kernel), &shown);
		if (BPF_CORE_READ_BITFIELD_PROBED(kernel, encapsulation)) {
			l4 = h->l3 + BPF_CORE_READ(kernel, inner_transport_header) -
			     BPF_CORE_READ(kernel, network_header);
			shared = (const void *)(BPF_CORE_READ(kernel, head) + BPF_CORE_READ(kernel, end));
			tcp = BPF_CORE_READ(shared, gso_type) & GSO_TCP;
		}
	}
	if (!tcp)
		return l4 - h->l3 + 8;
	bpf_skb_load_bytes(skb, l4 + 12, &offset, sizeof(offset));
	return l4 - h->l3 + (offset >> 4) * 4;
}

/* Most packets have their IP header without options or extensions, and it lies
 * where it can be read without helpers. What is otherwise, tuple_parse reads. */
static __always_inline bool tuple_direct(struct __sk_buff *skb, const __u32 offset, __be16 protocol,
					 struct tuple *t, struct headers *h)
{
	const __u8 *ip = (const __u8 *)(long)skb->data + offset, *ports;
	const __u8 *end = (const __u8 *)(long)skb->data_end;
	__u16 total;

	if (protocol == bpf_htons(ETH_P_IP)) {
		if (ip + 24 > end || ip[0] != 0x45)
			return false;
		if (*(__be16 *)&ip[6] & bpf_htons(IPV4_OFFSET_MASK))
			return false;
		total = bpf_ntohs(*(__be16 *)&ip[2]);
		if (total && total < 20)
			return false;
		h->l4 = offset + 20;
		t->family = 4;
		t->protocol = ip[9];
		tuple_set_v4(t->saddr, *(__be32 *)&ip[12]);
		tuple_set_v4(t->daddr, *(__be32 *)&ip[16]);
		ports = ip + 20;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		if (ip + 44 > end || ip[0] >> 4 != 6 || is_extension(ip[6]))
			return false;
		h->l4 = offset + 40;
		t->family = 6;
		t->protocol = ip[6];
		__builtin_memcpy(t->saddr, &ip[8], 16);
		__builtin_memcpy(t->daddr, &ip[24], 16);
		ports = ip + 40;
	} else {
		return false;
	}
	h->l3 = offset;
	h->first = true;
	if (with_ports && has_ports(t->protocol)) {
		t->sport = bpf_ntohs(*(__be16 *)&ports[0]);
		t->dport = bpf_ntohs(*(__be16 *)&ports[2]);
	}
	return true;
}

static __always_inline void account(struct __sk_buff *skb, const __u32 offset, __be16 protocol,
				    struct owner o)
{
	struct packet p = { .context = skb };
	struct headers h = {};
	struct flow_key key = {};
	struct flow *f, fresh = {};
	struct counter *c = counter_of_host();
	__u32 segments = skb->gso_segs, size = skb->gso_size, headers;
	__u64 bytes, packets = 1;

	if (!c || (!tuple_direct(skb, offset, protocol, &key.tuple, &h) &&
		   !tuple_parse(&p, offset, protocol, &key.tuple, &h)))
		return;
	bytes = skb->len - h.l3;
	/* One packet for the device to cut up is counted as what it is cut
	 * into. Virtual machines send such without saying how many it makes. */
	if (size) {
		headers = headers_length(skb, &key.tuple, &h);
		if (!segments && bytes > headers)
			segments = (bytes - headers + size - 1) / size;
		if (segments > 1) {
			packets = segments;
			bytes += (segments - 1) * (__u64)headers;
		}
	}
	if (!with_ports)
		key.tuple.sport = key.tuple.dport = 0;
	key.netns = o.netns;
	__sync_fetch_and_add(&c->slot[BYTES], bytes);
	__sync_fetch_and_add(&c->slot[PACKETS], packets);

	f = bpf_map_lookup_elem(&flows, &key);
	if (!f) {
		fresh.room = take_room(&flow_shares, o);
		fresh.made_ns = bpf_ktime_get_ns();
		if (fresh.room != NO_ROOM) {
			if (!bpf_map_update_elem(&flows, &key, &fresh, BPF_NOEXIST))
				__sync_fetch_and_add(&c->slot[MADE], 1);
			f = bpf_map_lookup_elem(&flows, &key);
		}
	}
	if (f) {
		f->seen = sweep;
		__sync_fetch_and_add(&f->bytes, bytes);
		__sync_fetch_and_add(&f->packets, packets);
	} else {
		__sync_fetch_and_add(&c->slot[FAILED], packets);
	}
}

SEC("cgroup_skb/egress")
int cgroup_egress(struct __sk_buff *skb)
{
	account(skb, 0, skb->protocol, owner_of_context(skb));
	return 1;
}

/* A device whose packets begin with an Ethernet header: it says what follows.
 * A VLAN tag that the device is to add is beside the packet, not in it. */
SEC("tc")
int device_frames(struct __sk_buff *skb)
{
	struct owner o = { .netns = device_netns };
	__be16 protocol;

	if (!bpf_skb_load_bytes(skb, ETHERNET_HEADER - 2, &protocol, sizeof(protocol)))
		account(skb, ETHERNET_HEADER, protocol, o);
	return TC_NEXT;
}

/* A device whose packets begin with the IP header. */
SEC("tc")
int device_packets(struct __sk_buff *skb)
{
	struct owner o = { .netns = device_netns };

	account(skb, 0, skb->protocol, o);
	return TC_NEXT;
}
