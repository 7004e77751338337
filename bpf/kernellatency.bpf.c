// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* kernellatency: time of packets between driver and socket.
 *
 * With function hooks, every IPv4 and IPv6 packet is measured, with its stages.
 * Without them, tracepoints measure only received TCP data and datagrams, and
 * sent TCP. */

#include "headers/kernel.h"
#include "headers/chain.h"
#include "headers/counter.h"
#include "headers/event.h"
#include "headers/histogram.h"
#include "headers/stamp.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { RX, RX100, TX, TX100, SLOTS };

/* Stages: a received packet has the first two, a sent packet the others. */
enum point { POINT_IP, POINT_LOCAL_IN, POINT_ROUTE = 0, POINT_LOCAL_OUT, POINT_POSTROUTING };

enum histogram_slot { HIST_RX, HIST_TX };

GO_TYPES(enum slot slot; enum point point; enum histogram_slot histogram_slot;);

const volatile __u64 slow_ns = 10000000;
const volatile __u64 slow100_ns = 100000000;
const volatile __u64 event_ns = 100000000;

DEFINE_CHAIN(net_dev_queue);
DEFINE_CHAIN(sk_data_ready);
DEFINE_COUNTERS();
DEFINE_HISTOGRAMS();
/* Few packets are in the stack at the same time, except those held by a filter in
 * user space. */
#define BUCKETS 2048
DEFINE_STAMPS(received, BUCKETS);
DEFINE_STAMPS(delivered, BUCKETS);
DEFINE_STAMPS(sent, BUCKETS);
DEFINE_STAMPS(local_out, BUCKETS);
DEFINE_STAMPS(output, BUCKETS);

/* The points of an event; 0: not seen. */
struct points {
	__u64 at[EVENT_POINTS];
};

static __always_inline void slow(const struct sk_buff *skb, const struct net_device *dev,
				 struct owner o, __u32 slot, __u64 now, __u64 latency,
				 const struct points *p)
{
	struct event *e;

	count(o, slot);
	if (latency >= slow100_ns)
		count(o, slot + 1);
	if (latency < event_ns)
		return;
	e = event_reserve(slot == RX ? EVENT_RXKERNEL_SLOW : EVENT_TXKERNEL_SLOW, o, now,
			  sizeof(*e));
	if (!e)
		return;
	e->latency_ns = latency;
	if (p)
		__builtin_memcpy(e->points_ns, p->at, sizeof(e->points_ns));
	event_set_dev(e, dev);
	tuple_from_skb(skb, &e->tuple);
	event_submit(e);
}

/* RX starts at netif_receive_skb: after GRO, on the RPS target CPU. */
SEC("raw_tp/netif_receive_skb")
int raw_receive(struct bpf_raw_tracepoint_args *ctx)
{
	stamp_set(&received, BUCKETS, ctx->args[0], 0, bpf_ktime_get_ns());
	return 0;
}

/* By tracepoints: the packet has the same address when TCP starts to process it,
 * and when it has become the last one in a datagram socket's queue. */

static __always_inline int reached_socket(const struct sk_buff *skb, const struct sock *sk)
{
	__u64 since = stamp_take(&received, BUCKETS, (__u64)skb, 0), now, latency;

	if (!since)
		return 0;
	now = bpf_ktime_get_ns();
	latency = now - since;
	measured_of(HIST_RX, latency, owner_of_sock(sk), INTERRUPTED);
	if (latency >= slow_ns)
		slow(skb, NULL, owner_of_sock(sk), RX, now, latency, NULL);
	return 0;
}

SEC("raw_tp/tcp_probe")
int raw_tcp_probe(struct bpf_raw_tracepoint_args *ctx)
{
	return reached_socket((const struct sk_buff *)ctx->args[1],
			      (const struct sock *)ctx->args[0]);
}

/* Also runs for TCP sockets, which it skips. The address of the packet is read
 * as a number, as the table needs it. */
SEC("tp_btf/sk_data_ready")
int btf_data_ready(__u64 *ctx)
{
	const struct sock *sk = (const struct sock *)ctx[0];
	__u16 family = sk->__sk_common.skc_family;

	if (sk->sk_protocol != IPPROTO_TCP && (family == AF_INET || family == AF_INET6))
		reached_socket(BPF_CORE_READ(sk, sk_receive_queue.prev), sk);
	chain_from(ctx, sk_data_ready, CHAIN_KERNELLATENCY + 1);
	return 0;
}

SEC("raw_tp/sk_data_ready")
int raw_data_ready(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const struct sock *)ctx->args[0];
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	if ((family != AF_INET && family != AF_INET6) ||
	    BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP)
		return 0;
	return reached_socket(BPF_CORE_READ(sk, sk_receive_queue.prev), sk);
}

/* TCP writes its send time into each packet, by the clock that these programs
 * read. */

/* Fields of a leaving packet and of its socket that decide whether it
 * counts. */
struct leaving {
	__u64 since;
	const struct net_device *dev;
	const struct net_device *first; /* the output device of the socket's route */
	const unsigned char *th; /* start of the TCP header */
	__u32 header; /* offset of the TCP header in the packet */
	__u32 len;
	__u16 protocol;
	__u8 state;
};

static __always_inline struct leaving leaving_read(const struct sk_buff *skb, const struct sock *sk,
						   __u64 since)
{
	const unsigned char *th = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, transport_header);
	struct leaving l = {
		.since = since,
		.dev = BPF_CORE_READ(skb, dev),
		.first = BPF_CORE_READ(sk, sk_dst_cache, dev),
		.th = th,
		.header = th - BPF_CORE_READ(skb, data),
		.len = BPF_CORE_READ(skb, len),
		.protocol = BPF_CORE_READ(sk, sk_protocol),
		.state = BPF_CORE_READ(sk, __sk_common.skc_state),
	};

	return l;
}

/* Resets and SYN-ACKs carry other sockets, and their time fields mean
 * something else. */
static __always_inline bool sends_data(const struct leaving *l)
{
	return l->protocol == IPPROTO_TCP && l->state != TCP_TIME_WAIT && l->state != TCP_CLOSE &&
	       l->state < TCP_LISTEN + 2 && l->state != TCP_LISTEN;
}

#define TCP_HEADER_MAX 60

/* Until about Linux 6.13, a bare ACK sent by a reading process carries the time of
 * the previous packet, so bare ACKs are skipped. A packet longer than any header has
 * data; for these the header need not be read. */
static __always_inline bool is_bare_ack(const struct leaving *l)
{
	__u8 place[2]; /* length of the header, flags */

	if (l->len > l->header + TCP_HEADER_MAX ||
	    bpf_probe_read_kernel(place, sizeof(place), l->th + 12))
		return false;
	return !(place[1] & (TCP_FLAG_FIN | TCP_FLAG_SYN | TCP_FLAG_RST)) &&
	       l->len <= l->header + (place[0] >> 4) * 4;
}

/* The measurement ends where the packet is passed to the neighbour layer, as with
 * function hooks. If the neighbour's address is not known yet, that is before the
 * packet reaches the device. */

struct neighbour {
	struct sk_buff_head arp_queue;
} __attribute__((preserve_access_index));

/* Packets that were already measured when they began to wait for a neighbour. */
DEFINE_STAMPS(unresolved, BUCKETS);

/* Tasks that are sending a neighbour's queue, with their nesting depth. Entries
 * live for microseconds. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} resolving SEC(".maps");

/* Number of those tasks, so that other tasks skip the lookup. A task that
 * finds no room is never subtracted, so the lookups continue. */
__u32 resolving_tasks;

/* Whether a packet's latency is counted. The send time of a paced packet may
 * lie in the future. */
static __always_inline bool is_measured(__u64 since, __u64 now)
{
	return since && since <= now &&
	       (now - since >= slow_ns || keep_histograms != HISTOGRAMS_OFF);
}

static __always_inline int left_stack(const struct sk_buff *skb, const struct sock *sk,
				      const struct leaving *l, __u64 now, bool neighbour)
{
	__u64 latency = now - l->since;

	/* Devices above another one, and devices on the way out of the pod, also see
	 * the packet. Only the socket's own device is the end of the stack. */
	if ((l->first && l->first != l->dev) || !sends_data(l) || is_bare_ack(l))
		return 0;
	if (!neighbour && resolving_tasks) {
		__u64 task = bpf_get_current_task();

		if (bpf_map_lookup_elem(&resolving, &task))
			return 0;
	}
	measured_of(HIST_TX, latency, owner_of_sock(sk), INTERRUPTED);
	if (latency >= slow_ns)
		slow(skb, l->dev, owner_of_sock(sk), TX, now, latency, NULL);
	return 0;
}

static __always_inline int left_stack_read(const struct sk_buff *skb, const struct sock *sk,
					   __u64 since, bool neighbour)
{
	__u64 now = bpf_ktime_get_ns();
	struct leaving l;

	if (!sk || !is_measured(since, now))
		return 0;
	l = leaving_read(skb, sk, since);
	return left_stack(skb, sk, &l, now, neighbour);
}

static __always_inline int left_stack_loaded(const struct sk_buff *skb)
{
	const struct sock *sk = skb->sk;
	__u64 since = skb->skb_mstamp_ns, now;
	struct leaving l = {};

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	now = bpf_ktime_get_ns();
	if (!is_measured(since, now))
		return 0;
	l.since = since;
	l.dev = skb->dev;
	l.first = sk->sk_dst_cache->dev;
	l.th = skb->head + skb->transport_header;
	l.header = skb->head + skb->transport_header - skb->data;
	l.len = skb->len;
	l.protocol = IPPROTO_TCP;
	l.state = sk->__sk_common.skc_state;
	return left_stack(skb, sk, &l, now, false);
}

SEC("tp_btf/net_dev_queue")
int btf_queue(__u64 *ctx)
{
	left_stack_loaded((const struct sk_buff *)ctx[0]);
	chain_from(ctx, net_dev_queue, CHAIN_KERNELLATENCY + 1);
	return 0;
}

SEC("raw_tp/net_dev_queue")
int raw_queue(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];

	return left_stack_read(skb, BPF_CORE_READ(skb, sk), BPF_CORE_READ(skb, skb_mstamp_ns),
			       false);
}

/* neigh_event_send_done(neighbour, waits): a waiting packet is the last of the
 * neighbour's queue, unless the queue has been sent meanwhile. */
SEC("raw_tp/neigh_event_send_done")
int raw_neigh_send(struct bpf_raw_tracepoint_args *ctx)
{
	const struct neighbour *n = (const struct neighbour *)ctx->args[0];
	const struct sk_buff *skb;
	__u64 since, known;

	if (!(__u32)ctx->args[1])
		return 0;
	skb = BPF_CORE_READ(n, arp_queue.prev);
	if (!skb || (const void *)skb == (const void *)&n->arp_queue)
		return 0;
	since = BPF_CORE_READ(skb, skb_mstamp_ns);
	if (!since)
		return 0;
	known = stamp_take(&unresolved, BUCKETS, (__u64)skb, since);
	stamp_set(&unresolved, BUCKETS, (__u64)skb, since, bpf_ktime_get_ns());
	return known ? 0 : left_stack_read(skb, BPF_CORE_READ(skb, sk), since, true);
}

/* Between these two tracepoints a neighbour's queue is sent. */
SEC("raw_tp/neigh_update")
int raw_neigh_update(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 task = bpf_get_current_task();
	__u32 *depth = bpf_map_lookup_elem(&resolving, &task), first = 1;

	if (depth)
		++*depth;
	else if (!bpf_map_update_elem(&resolving, &task, &first, BPF_ANY))
		__sync_fetch_and_add(&resolving_tasks, 1);
	return 0;
}

SEC("raw_tp/neigh_update_done")
int raw_neigh_done(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 task = bpf_get_current_task();
	__u32 *depth = bpf_map_lookup_elem(&resolving, &task);

	if (depth && *depth > 1)
		--*depth;
	else if (depth && !bpf_map_delete_elem(&resolving, &task))
		__sync_fetch_and_add(&resolving_tasks, -1);
	return 0;
}

/* Receiving, with function hooks. */

static __always_inline int rx_delivered(const struct sk_buff *skb)
{
	stamp_set(&delivered, BUCKETS, (__u64)skb, 0, bpf_ktime_get_ns());
	return 0;
}

static __always_inline int rx_done(const struct sk_buff *skb)
{
	__u64 since = stamp_take(&received, BUCKETS, (__u64)skb, 0);
	__u64 between = stamp_take(&delivered, BUCKETS, (__u64)skb, 0), now, latency;
	const struct net_device *dev;
	struct points p = {};

	if (!since)
		return 0;
	now = bpf_ktime_get_ns();
	latency = now - since;
	measured_of(HIST_RX, latency, owner_of_skb(skb), ALONE);
	if (latency < slow_ns)
		return 0;
	if (between > since) {
		p.at[POINT_IP] = between - since;
		p.at[POINT_LOCAL_IN] = now - between;
	}
	dev = BPF_CORE_READ(skb, dev);
	slow(skb, dev, owner_of_skb(skb), RX, now, latency, &p);
	return 0;
}

/* Sending, with function hooks. A packet dropped on the way leaves its stamps
 * behind. The socket distinguishes them from those of the next packet at the same
 * address, such as a forwarded one. */

static __always_inline int tx_at(void *stamps, const struct sk_buff *skb)
{
	stamp_set(stamps, BUCKETS, (__u64)skb, (__u64)BPF_CORE_READ(skb, sk), bpf_ktime_get_ns());
	return 0;
}

static __always_inline struct owner owner_of_sent(const struct sk_buff *skb, __u64 sk)
{
	struct owner o = owner_of_sock((const struct sock *)sk);

	return o.netns ? o : owner_of_skb(skb);
}

static __always_inline int tx_done(const struct sk_buff *skb)
{
	__u64 key = (__u64)skb, sk = (__u64)BPF_CORE_READ(skb, sk);
	__u64 start = stamp_take(&sent, BUCKETS, key, sk), out = stamp_take(&local_out, BUCKETS, key, sk);
	__u64 through = stamp_take(&output, BUCKETS, key, sk), since = start ? start : out, now, latency;
	const struct net_device *dev;
	struct points p = {};

	if (!since)
		return 0;
	now = bpf_ktime_get_ns();
	latency = now - since;
	measured_of(HIST_TX, latency, owner_of_sent(skb, sk), INTERRUPTED);
	if (latency < slow_ns)
		return 0;
	if (start && out > start)
		p.at[POINT_ROUTE] = out - start;
	if (through > since) {
		p.at[POINT_LOCAL_OUT] = through - (out > since ? out : since);
		p.at[POINT_POSTROUTING] = now - through;
	}
	dev = BPF_CORE_READ(skb, dev);
	slow(skb, dev, owner_of_sent(skb, sk), TX, now, latency, &p);
	return 0;
}

/* Returns an argument as a number. With type information it would be a pointer, on
 * which the verifier forbids arithmetic; read from the context's memory it is a
 * number. */
static __always_inline struct sk_buff *argument(const __u64 *at)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), at);
	return (struct sk_buff *)value;
}

#define SKB_1(name, function, expr)                                                                \
	SEC("fentry/" #function)                                                                   \
	int fen_##name(__u64 *ctx)                                                                 \
	{                                                                                          \
		struct sk_buff *skb = argument(&ctx[0]);                                           \
                                                                                                   \
		return expr;                                                                       \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(kp_##name, struct sk_buff *skb)                                             \
	{                                                                                          \
		return expr;                                                                       \
	}

#define SKB_2(name, function, expr)                                                                \
	SEC("fentry/" #function)                                                                   \
	int fen_##name(__u64 *ctx)                                                                 \
	{                                                                                          \
		struct sk_buff *skb = argument(&ctx[1]);                                           \
                                                                                                   \
		return expr;                                                                       \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(kp_##name, void *first, struct sk_buff *skb)                                \
	{                                                                                          \
		return expr;                                                                       \
	}

#define SKB_3(name, function, expr)                                                                \
	SEC("fentry/" #function)                                                                   \
	int fen_##name(__u64 *ctx)                                                                 \
	{                                                                                          \
		struct sk_buff *skb = argument(&ctx[2]);                                           \
                                                                                                   \
		return expr;                                                                       \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(kp_##name, void *first, void *second, struct sk_buff *skb)                  \
	{                                                                                          \
		return expr;                                                                       \
	}

SKB_1(deliver4, ip_local_deliver, rx_delivered(skb))
SKB_1(deliver6, ip6_input, rx_delivered(skb))
SKB_2(protocol4, ip_protocol_deliver_rcu, rx_done(skb))
SKB_2(protocol6, ip6_protocol_deliver_rcu, rx_done(skb))

SKB_2(xmit4, __ip_queue_xmit, tx_at(&sent, skb))
SKB_2(xmit6, inet6_csk_xmit, tx_at(&sent, skb))
SKB_3(out4, __ip_local_out, tx_at(&local_out, skb))
SKB_3(out6, __ip6_local_out, tx_at(&local_out, skb))
SKB_3(output4, ip_output, tx_at(&output, skb))
SKB_3(output6, ip6_output, tx_at(&output, skb))
SKB_3(finish4, ip_finish_output2, tx_done(skb))
SKB_3(finish6, ip6_finish_output2, tx_done(skb))
