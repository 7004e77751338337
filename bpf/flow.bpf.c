// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* flow: what the sockets of this node send, per connection.
 *
 * One program at the root of the cgroups sees the packets of all sockets in
 * all network namespaces, once each, and none that is only forwarded. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/tuple.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { BYTES, PACKETS, MADE, FAILED };

struct flow_key {
	struct tuple tuple;
	__u32 netns;
};

struct flow {
	__u64 bytes;
	__u64 packets;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

/* The totals go on when the map evicts a flow: what is missing in the flows
 * is what it evicted. */
DEFINE_HOST_COUNTERS();

/* The context shows a socket that may be looked at only through a few fields.
 * Its address, read from memory, is a plain number, which may be looked at
 * through the kernel's type information. */
static __always_inline __u32 netns_of_context(struct __sk_buff *skb)
{
	__u64 shown = skb->sk, address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), &shown);
	return netns_of_sock((const struct sock *)address);
}

/* One packet for the device to cut up is counted as what it is cut into, each
 * with headers of its own. */
static __always_inline __u64 headers_length(struct __sk_buff *skb, const struct tuple *t,
					    const struct headers *h)
{
	__u8 offset = 0;

	if (t->protocol == IPPROTO_TCP) {
		bpf_skb_load_bytes(skb, h->l4 + 12, &offset, sizeof(offset));
		return h->l4 - h->l3 + (offset >> 4) * 4;
	}
	return h->l4 - h->l3 + 8;
}

SEC("cgroup_skb/egress")
int cgroup_egress(struct __sk_buff *skb)
{
	struct packet p = { .context = skb };
	struct headers h = {};
	struct flow_key key = {};
	struct flow *f, zero = {};
	struct counter *c = counter_of_host();
	__u64 bytes = skb->len, packets = 1;
	__u32 segments = skb->gso_segs;

	if (!c || !tuple_parse(&p, 0, skb->protocol, &key.tuple, &h))
		return 1;
	if (segments > 1) {
		packets = segments;
		bytes += (segments - 1) * headers_length(skb, &key.tuple, &h);
	}
	key.netns = netns_of_context(skb);
	__sync_fetch_and_add(&c->slot[BYTES], bytes);
	__sync_fetch_and_add(&c->slot[PACKETS], packets);

	f = bpf_map_lookup_elem(&flows, &key);
	if (!f) {
		if (!bpf_map_update_elem(&flows, &key, &zero, BPF_NOEXIST))
			__sync_fetch_and_add(&c->slot[MADE], 1);
		f = bpf_map_lookup_elem(&flows, &key);
	}
	if (f) {
		__sync_fetch_and_add(&f->bytes, bytes);
		__sync_fetch_and_add(&f->packets, packets);
	} else {
		__sync_fetch_and_add(&c->slot[FAILED], packets);
	}
	return 1;
}
