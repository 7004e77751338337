// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* flow: traffic that this node sends, per connection.
 *
 * By default a program at the root cgroup sees the packets of all sockets in all
 * network namespaces, once each, and no forwarded packets. With configured devices,
 * each has a program that sees every packet it transmits, forwarded ones included.
 * The two never run together: packets would count twice. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/tuple.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { BYTES, PACKETS, MADE, FAILED, SLOTS };

GO_TYPES(enum slot slot;);

/* Without ports, all connections between two addresses share an entry. */
const volatile bool with_ports = false;

/* The network namespace of the devices. */
const volatile __u32 device_netns = 0;

#define ETHERNET_HEADER 14
#define TC_NEXT -1 /* let the device's other programs and filters decide */

struct flow_key {
	struct tuple tuple;
	__u64 netns; /* netns_id; for devices only the inode number */
};

struct flow {
	__u64 bytes;
	__u64 packets;
	__u64 made_ns; /* distinguishes entries of the same connection */
	__u32 seen; /* number of the sweep before which it had its last packet */
	__u32 room; /* room that it occupies, see room.h */
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

/* The totals keep counting when the map evicts a flow: the difference to the sum of
 * all flows is what evicted flows had counted. */
DEFINE_HOST_COUNTERS();

/* Through the context's socket pointer only a few fields are readable. Read as a
 * plain number from memory, the same address gives access to all fields through
 * BTF. */
static __always_inline struct owner owner_of_context(struct __sk_buff *skb)
{
	__u64 shown = skb->sk, address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &shown);
	return owner_of_sock((const struct sock *)address);
}

/* Headers of a tunnelled packet that the device will segment. The kernel renamed
 * the groups around these fields; only the fields themselves are read. */
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

/* Length of the headers that each segment of a GSO packet carries: IP, transport
 * and tunnel headers. */
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
		/* Read from memory, the context's address becomes a plain number. */
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

/* Fast path for an IP header without options or extensions that is readable without
 * helpers. tuple_parse handles all other packets. */
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
	/* A GSO packet counts as its segments. Virtual machines send GSO packets
	 * without a segment count. */
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
	key.netns = netns_id(o);
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

/* For devices whose packets begin with an Ethernet header, which names the
 * protocol. A VLAN tag that the device will add is in skb metadata, not in the
 * packet. */
SEC("tc")
int device_frames(struct __sk_buff *skb)
{
	struct owner o = { .netns = device_netns };
	__be16 protocol;

	if (!bpf_skb_load_bytes(skb, ETHERNET_HEADER - 2, &protocol, sizeof(protocol)))
		account(skb, ETHERNET_HEADER, protocol, o);
	return TC_NEXT;
}

/* For devices whose packets begin with the IP header. */
SEC("tc")
int device_packets(struct __sk_buff *skb)
{
	struct owner o = { .netns = device_netns };

	account(skb, 0, skb->protocol, o);
	return TC_NEXT;
}
