// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* netiftxlatency: how long a packet waits in the queueing discipline, and how
 * long the driver takes to accept it.
 *
 * The programs run three times for every packet sent. The first choice of hook
 * is therefore the one whose arguments can be read without a helper: none of
 * them may be NULL. */

#include "headers/kernel.h"
#include "headers/chain.h"
#include "headers/counter.h"
#include "headers/event.h"
#include "headers/histogram.h"
#include "headers/stamp.h"
#include "headers/cut.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { QDISC, NETDEV, SLOTS };

enum histogram_slot { HIST_QDISC, HIST_DRIVER };

GO_TYPES(enum slot slot; enum histogram_slot histogram_slot;);

const volatile __u64 slow100_ns = 100000000;

DEFINE_CHAIN(net_dev_queue);
DEFINE_COUNTERS();
DEFINE_HISTOGRAMS();
/* Queueing disciplines hold a thousand packets, fq_codel ten thousand, and the
 * measurement matters most when they are full. */
#define BUCKETS 8192
DEFINE_STAMPS(queued, BUCKETS);

/* The driver's part begins and ends on one CPU, with no other packet to the same
 * device in between. A stacked device passes its packet down while its own part is
 * still running, hence several slots per CPU. */
#define NESTED 16

struct started {
	__u64 time_ns;
	__u64 sock;
	__u32 ifindex;
	__u32 unused;
	/* to restore the stamp if the driver returns the packet */
	__u64 key;
	__u64 identity;
	__u64 queued_ns; /* 0 if unknown, or already counted */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NESTED);
	__type(key, __u32);
	__type(value, struct started);
} starts SEC(".maps");

/* A packet as the programs read it, with type information or without. */
struct queued_packet {
	const struct sk_buff *skb;
	const void *argument; /* where the packet's address is stored, to be read as a number */
	__u64 key;
	__u64 identity;
	__u64 device; /* a number that only this device has */
};

/* The kernel reuses addresses, also for segments made in the queue, which were
 * never queued themselves. The send time distinguishes packets; packets without one
 * (forwarded, datagrams) are distinguished by their length from the IP header on,
 * which a later VLAN tag does not change. */
static __always_inline __u64 identity_of(__u32 tail, __u32 data_len, __u16 network_header)
{
	return tail + data_len - network_header;
}

static __always_inline struct event *slow(const struct net_device *dev, __u32 slot, __u64 now,
					  __u64 since)
{
	struct owner o = owner_of_dev(dev);
	struct event *e;

	count(o, slot);
	e = event_reserve(EVENT_TXLAT_QDISC_100MS + slot, o, now, sizeof(*e));
	if (!e)
		return NULL;
	e->latency_ns = now - since;
	event_set_dev(e, dev);
	return e;
}

/* A device without a queueing discipline transmits at once, so no wait is measured.
 * All its queues are without one if the root qdisc is that of the first queue
 * itself, and not one that gives each queue its own. */

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

/* The lowest bit of a stamp marks a GSO packet, whose segments inherit the time. */
#define STAMP_GSO 1ull

static __always_inline __u64 number_of(const struct queued_packet *p)
{
	__u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), p->argument);
	return number;
}

static __always_inline int on_queue(const struct queued_packet *p, bool gso)
{
	__u64 now = bpf_ktime_get_ns() & ~STAMP_GSO;

	stamp_set(&queued, BUCKETS, p->key, p->identity, gso ? now | STAMP_GSO : now);
	if (gso)
		cut_note(number_of(p), p->device, now, CUT_ADD);
	return 0;
}

/* The GSO fields are behind the packet's data (struct skb_shared_info). */
static __always_inline bool is_gso(const struct sk_buff *skb)
{
	const struct skb_shared_info *shared = shared_info(skb);

	return BPF_CORE_READ(shared, gso_size);
}

/* Returns when the packet was queued, 0 if unknown. */
static __always_inline __u64 queued_since(const struct queued_packet *p, __u64 now)
{
	__u64 since = stamp_take(&queued, BUCKETS, p->key, p->identity), segment;

	if (!since)
		return cut_expected(p->device, now) ? cut_take(number_of(p), p->device) : 0;
	if (since & STAMP_GSO) {
		if (is_gso(p->skb)) {
			cut_note(number_of(p), p->device, now, CUT_REMOVE);
			return since;
		}
	} else if (now - since < slow100_ns || p->identity >> 32) {
		return since;
	}
	/* The stamp may belong to a packet that the qdisc has freed, while this packet
	 * is a segment at the same address; the segment's time is later. */
	if (cut_expected(p->device, now)) {
		segment = cut_take(number_of(p), p->device);
		if (segment > since)
			return segment;
	}
	return since;
}

/* `since` is the time at which the packet was queued, 0 if it was not. */
static __always_inline int on_start(const struct queued_packet *p, const struct net_device *dev,
				    __u32 ifindex, const struct sock *sk, __u64 now, __u64 since)
{
	__u32 place = ifindex % NESTED;
	struct started *s = bpf_map_lookup_elem(&starts, &place);
	bool waited = since && now > since && now - since >= slow100_ns;
	struct event *e;

	if (s) {
		s->ifindex = ifindex;
		s->sock = (__u64)sk;
		s->time_ns = now;
		s->queued_ns = 0;
		if (since && !waited) {
			s->key = p->key;
			s->identity = p->identity;
			s->queued_ns = since & ~STAMP_GSO;
		}
	}
	if (waited) {
		measured_of(HIST_QDISC, now - since, owner_of_dev(dev), ALONE);
		e = slow(dev, QDISC, now, since);
		if (e) {
			tuple_from_skb(p->skb, &e->tuple);
			event_submit(e);
		}
	}
	return 0;
}

/* The driver has accepted or freed the packet, so the addresses come from its
 * socket; a forwarded packet has none. */
#define NET_XMIT_MASK 0x0f

static __always_inline int on_end(const struct net_device *dev, __u32 ifindex, int result)
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
	if (s->queued_ns) {
		/* The driver did not accept the packet, which keeps waiting. */
		if (result >= NET_XMIT_MASK)
			stamp_set(&queued, BUCKETS, s->key, s->identity, s->queued_ns);
		else
			measured_of(HIST_QDISC, since > s->queued_ns ? since - s->queued_ns : 0,
				    owner_of_dev(dev), ALONE);
	}
	now = bpf_ktime_get_ns();
	measured_of(HIST_DRIVER, now - since, owner_of_dev(dev), ALONE);
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

/* Programs with type information. They may not do arithmetic on a kernel pointer,
 * but the difference of two pointers is a number. The key includes the device,
 * since stacked devices pass on the same packet. */
static __always_inline __u64 key_loaded(const struct sk_buff *skb, const struct net_device *dev)
{
	return (__u64)skb - (__u64)dev;
}

static __always_inline struct queued_packet packet_loaded(const __u64 *ctx, const struct sk_buff *skb,
							  const struct net_device *dev)
{
	struct queued_packet p = {
		.skb = skb,
		.argument = ctx,
		.key = key_loaded(skb, dev),
		.identity = skb->skb_mstamp_ns,
		.device = (__u64)dev->nd_net.net->ns.inum << 32 | dev->ifindex,
	};

	if (!p.identity)
		p.identity = identity_of(skb->tail, skb->data_len, skb->network_header);
	return p;
}

SEC("tp_btf/net_dev_queue")
int btf_queue(__u64 *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx[0];
	const struct net_device *dev = skb->dev;
	struct queued_packet p;

	if (queues_loaded(dev)) {
		p = packet_loaded(ctx, skb, dev);
		on_queue(&p, (skb->data_len ||
			      skb->len > ((const struct net_device___cut *)dev)->mtu + 32) &&
				     is_gso(skb));
	}
	chain_from(ctx, net_dev_queue, CHAIN_NETIFTXLATENCY + 1);
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int btf_start_xmit(__u64 *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx[0];
	const struct net_device *dev = (const struct net_device *)ctx[1];
	struct queued_packet p = {};
	__u64 now = bpf_ktime_get_ns(), since = 0;

	p.skb = skb;
	if (queues_loaded(dev)) {
		p = packet_loaded(ctx, skb, dev);
		since = queued_since(&p, now);
	}
	return on_start(&p, dev, dev->ifindex, skb->sk, now, since);
}

SEC("tp_btf/net_dev_xmit")
int btf_xmit(__u64 *ctx)
{
	const struct net_device *dev = (const struct net_device *)ctx[2];

	return on_end(dev, dev->ifindex, ctx[1]);
}

/* Programs without type information. */
static __always_inline struct queued_packet packet_read_raw(struct bpf_raw_tracepoint_args *ctx,
							    const struct net_device *dev)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	struct queued_packet p = {
		.skb = skb,
		.argument = ctx,
		.key = (__u64)skb,
		.identity = BPF_CORE_READ(skb, skb_mstamp_ns),
		.device = (__u64)dev,
	};

	if (!p.identity)
		p.identity = identity_of(BPF_CORE_READ(skb, tail), BPF_CORE_READ(skb, data_len),
					 BPF_CORE_READ(skb, network_header));
	return p;
}

SEC("raw_tp/net_dev_queue")
int raw_queue(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct net_device *dev = BPF_CORE_READ(skb, dev);
	struct queued_packet p;

	if (!queues_read(dev))
		return 0;
	p = packet_read_raw(ctx, dev);
	return on_queue(&p, (BPF_CORE_READ(skb, data_len) ||
			     BPF_CORE_READ(skb, len) >
				     BPF_CORE_READ((const struct net_device___cut *)dev, mtu) + 32) &&
				    is_gso(skb));
}

SEC("raw_tp/net_dev_start_xmit")
int raw_start_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct net_device *dev = (const struct net_device *)ctx->args[1];
	struct queued_packet p = packet_read_raw(ctx, dev);

	__u64 now = bpf_ktime_get_ns(), since = queued_since(&p, now);

	return on_start(&p, dev, BPF_CORE_READ(dev, ifindex), BPF_CORE_READ(skb, sk), now, since);
}

SEC("raw_tp/net_dev_xmit")
int raw_xmit(struct bpf_raw_tracepoint_args *ctx)
{
	const struct net_device *dev = (const struct net_device *)ctx->args[2];

	return on_end(dev, BPF_CORE_READ(dev, ifindex), ctx->args[1]);
}
