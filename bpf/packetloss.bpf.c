// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* packetloss: packets that the kernel dropped, by namespace, reason and place.
 *
 * The counters hold the address of the place; what function that is, and so
 * which class of loss, is user space's to say: it has the symbols. */

#include "headers/kernel.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct drop_key {
	__u32 netns;
	__u32 reason;
	__u64 location;
};

/* What user space finds where the kernel gives no reasons (before 5.17), and
 * for what found the table full: that entry is made before attaching. */
#define REASON_NONE 0xffffffffu
#define REASON_OVERFLOW 0xfffffffeu

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct drop_key);
	__type(value, __u64);
} drops SEC(".maps");

/* Functions in which a closing socket empties its queues: no loss. Only for
 * kernels that do not say so by a reason. */
#define PURGES 8

struct purge {
	__u64 start;
	__u64 end;
};

const volatile struct purge purges[PURGES] = {};

/* Whether the tracepoint has the receiving socket, from the kernel's BTF. */
const volatile bool has_rx_sk = false;
const volatile bool with_stack = true;

static __always_inline bool is_purge(__u64 location)
{
	for (int i = 0; i < PURGES; i++) {
		if (location >= purges[i].start && location < purges[i].end)
			return true;
	}
	return false;
}

static __always_inline bool is_normal(__u64 location, __u32 reason)
{
	if (!bpf_core_type_exists(enum skb_drop_reason))
		return is_purge(location);
	if (reason == bpf_core_enum_value(enum skb_drop_reason, SKB_NOT_DROPPED_YET))
		return true;
	if (bpf_core_enum_value_exists(enum skb_drop_reason, SKB_CONSUMED) &&
	    reason == bpf_core_enum_value(enum skb_drop_reason, SKB_CONSUMED))
		return true;
	if (bpf_core_enum_value_exists(enum skb_drop_reason, SKB_DROP_REASON_QUEUE_PURGE))
		return reason ==
		       bpf_core_enum_value(enum skb_drop_reason, SKB_DROP_REASON_QUEUE_PURGE);
	return is_purge(location);
}

/* Messages of local sockets travel in the same structure and are freed by the
 * same functions, but are no packets. */
static __always_inline bool is_local_message(const struct sk_buff *skb)
{
	const struct sock *sk = BPF_CORE_READ(skb, sk);
	__u16 family;

	if (!sk)
		return false;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	return family == AF_UNIX || family == AF_NETLINK;
}

static __always_inline void count_drop(__u32 netns, __u32 reason, __u64 location)
{
	struct drop_key key = { .netns = netns, .reason = reason, .location = location };
	__u64 *n = bpf_map_lookup_elem(&drops, &key), zero = 0;

	if (!n) {
		bpf_map_update_elem(&drops, &key, &zero, BPF_NOEXIST);
		n = bpf_map_lookup_elem(&drops, &key);
	}
	if (!n) {
		key.netns = 0;
		key.reason = REASON_OVERFLOW;
		key.location = 0;
		n = bpf_map_lookup_elem(&drops, &key);
	}
	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline void fill(struct event *e, const struct sk_buff *skb, __u32 reason,
				 __u64 location)
{
	e->reason = reason;
	e->location = location;
	event_set_dev(e, BPF_CORE_READ(skb, dev));
	tuple_from_skb(skb, &e->tuple);
}

static __always_inline int packet_lost(void *ctx, const struct sk_buff *skb, __u64 location,
				       __u32 reason, const struct sock *rx_sk)
{
	__u32 netns;
	__u64 now;

	if (is_normal(location, reason) || is_local_message(skb))
		return 0;
	/* The socket first: what waited in its queue has its device pointer
	 * overwritten by the queue's links. */
	netns = netns_of_sock(rx_sk);
	if (!netns)
		netns = netns_of_skb(skb);
	count_drop(netns, reason, location);

	now = bpf_ktime_get_ns();
	if (with_stack) {
		struct event_stack *es =
			event_reserve(EVENT_PACKETLOSS, netns, now, sizeof(struct event_stack));

		if (!es)
			return 0;
		fill(&es->event, skb, reason, location);
		event_set_stack(ctx, es);
		event_submit(es);
	} else {
		struct event *e = event_reserve(EVENT_PACKETLOSS, netns, now, sizeof(struct event));

		if (!e)
			return 0;
		fill(e, skb, reason, location);
		event_submit(e);
	}
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
	return packet_lost(ctx, (struct sk_buff *)ctx->args[0], ctx->args[1], reason, rx_sk);
}

/* The receiving socket may be NULL, which newer verifiers know and older ones
 * do not; it is only ever read through a helper, so both accept. */
SEC("tp_btf/kfree_skb")
int btf_kfree_skb(__u64 *ctx)
{
	__u32 reason = REASON_NONE;
	struct sock *rx_sk = NULL;

	if (bpf_core_type_exists(enum skb_drop_reason))
		reason = ctx[2];
	if (has_rx_sk)
		rx_sk = (struct sock *)ctx[3];
	return packet_lost(ctx, (struct sk_buff *)ctx[0], ctx[1], reason, rx_sk);
}
