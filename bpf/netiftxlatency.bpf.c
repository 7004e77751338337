// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* netiftxlatency: how long a packet waits in the queueing discipline, and how
 * long the driver takes to accept it.
 *
 * The programs run three times for every packet sent. The first choice of hook
 * is therefore the one whose arguments can be read without a helper: none of
 * them may be NULL. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"
#include "headers/stamp.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { QDISC, NETDEV };

const volatile __u64 slow100_ns = 100000000;

DEFINE_COUNTERS();
/* Queueing disciplines hold a thousand packets, fq_codel ten thousand; and they
 * are full when it matters. */
#define BUCKETS 8192
DEFINE_STAMPS(queued, BUCKETS);

/* The driver's part begins and ends on one CPU, without another packet to the
 * same device between. A device on top of another hands its packet down while
 * its own part still runs, hence a few places per CPU. */
#define NESTED 16

struct started {
	__u64 time_ns;
	__u64 sock;
	__u64 ifindex;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NESTED);
	__type(key, __u32);
	__type(value, struct started);
} starts SEC(".maps");

/* A packet that the device cannot cut up leaves the queue in pieces that have
 * addresses of their own, maybe those of earlier packets. Its time of sending
 * (TCP) or its length tell it from them. */
static __always_inline __u64 identity_of(__u64 mstamp_ns, __u32 len)
{
	return mstamp_ns ^ (__u64)len << 48;
}

static __always_inline struct event *slow(const struct net_device *dev, __u32 slot, __u64 now,
					  __u64 since)
{
	__u32 netns = netns_of_dev(dev);
	struct event *e;

	count(netns, slot);
	e = event_reserve(EVENT_TXLAT_QDISC_100MS + slot, netns, now, sizeof(*e));
	if (!e)
		return NULL;
	e->latency_ns = now - since;
	event_set_dev(e, dev);
	return e;
}

/* A device without a queueing discipline takes the packet at once: there is no
 * waiting to be measured. That holds for all of its queues if the discipline
 * at the root is that of the first one itself, and not one that gives each
 * queue its own. */

static __always_inline bool queues_loaded(const struct net_device *dev)
{
	const struct Qdisc *q = dev->qdisc;

	return q->enqueue || q != dev->_tx->qdisc;
}

static __always_inline bool queues_read(const struct net_device *dev)
{
	const struct Qdisc *q = BPF_CORE_READ(dev, qdisc);

	return BPF_CORE_READ(q, enqueue) || q != BPF_CORE_READ(dev, _tx, qdisc);
}

static __always_inline int on_queue(__u64 key, __u64 identity)
{
	stamp_set(&queued, BUCKETS, key, identity, bpf_ktime_get_ns());
	return 0;
}

static __always_inline int on_start(const struct sk_buff *skb, const struct net_device *dev,
				    __u32 ifindex, const struct sock *sk, __u64 key,
				    __u64 identity)
{
	__u64 now = bpf_ktime_get_ns(), since = stamp_take(&queued, BUCKETS, key, identity);
	__u32 place = ifindex % NESTED;
	struct started *s = bpf_map_lookup_elem(&starts, &place);
	struct event *e;

	if (s) {
		s->ifindex = ifindex;
		s->sock = (__u64)sk;
		s->time_ns = now;
	}
	if (since && now - since >= slow100_ns) {
		e = slow(dev, QDISC, now, since);
		if (e) {
			tuple_from_skb(skb, &e->tuple);
			event_submit(e);
		}
	}
	return 0;
}

/* The packet is the driver's now, or freed. Whose it was, its socket tells; a
 * packet that was forwarded has none, and its event no addresses. */
static __always_inline int on_end(const struct net_device *dev, __u32 ifindex)
{
	__u32 place = ifindex % NESTED;
	struct started *s = bpf_map_lookup_elem(&starts, &place);
	const struct sock *sk;
	__u64 since, now;
	struct event *e;

	if (!s || s->ifindex != ifindex || !s->time_ns)
		return 0;
	since = s->time_ns;
	s->time_ns = 0;
	now = bpf_ktime_get_ns();
	if (now - since < slow100_ns)
		return 0;
	e = slow(dev, NETDEV, now, since);
	if (!e)
		return 0;
	sk = (const struct sock *)s->sock;
	if (sk)
		tuple_from_sock(sk, BPF_CORE_READ(sk, sk_protocol), &e->tuple);
	event_submit(e);
	return 0;
}

/* With type information. An address of the kernel's is no number there that
 * one could calculate with, but the distance of two is. The device is in it
 * since one on top of another hands on the same packet. */
static __always_inline __u64 key_loaded(const struct sk_buff *skb, const struct net_device *dev)
{
	return (__u64)skb - (__u64)dev;
}

SEC("tp_btf/net_dev_queue")
int btf_queue(__u64 *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx[0];
	const struct net_device *dev = skb->dev;

	if (!queues_loaded(dev))
		return 0;
	return on_queue(key_loaded(skb, dev),
			identity_of(skb->skb_mstamp_ns, skb->len));
}

SEC("tp_btf/net_dev_start_xmit")
int btf_start_xmit(__u64 *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx[0];
	const struct net_device *dev = (const struct net_device *)ctx[1];

	return on_start(skb, dev, dev->ifindex, skb->sk, key_loaded(skb, dev),
			identity_of(skb->skb_mstamp_ns, skb->len));
}

SEC("tp_btf/net_dev_xmit")
int btf_xmit(__u64 *ctx)
{
	const struct net_device *dev = (const struct net_device *)ctx[2];

	return on_end(dev, dev->ifindex);
}

/* Without. */
static __always_inline __u64 identity_read(const struct sk_buff *skb)
{
	return identity_of(BPF_CORE_READ(skb, skb_mstamp_ns), BPF_CORE_READ(skb, len));
}

SEC("raw_tp/net_dev_queue")
int raw_queue(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];

	if (!queues_read(BPF_CORE_READ(skb, dev)))
		return 0;
	return on_queue(ctx->args[0], identity_read(skb));
}

SEC("raw_tp/net_dev_start_xmit")
int raw_start_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct net_device *dev = (const struct net_device *)ctx->args[1];

	return on_start(skb, dev, BPF_CORE_READ(dev, ifindex), BPF_CORE_READ(skb, sk),
			ctx->args[0], identity_read(skb));
}

SEC("raw_tp/net_dev_xmit")
int raw_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	const struct net_device *dev = (const struct net_device *)ctx->args[2];

	return on_end(dev, BPF_CORE_READ(dev, ifindex));
}
