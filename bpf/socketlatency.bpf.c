// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* socketlatency: how long received data waits for the application, and how
 * long written data waits to be sent.
 *
 * The clock of a read runs from the first unread byte and stops only when
 * bytes have really been taken: a poll, a timeout, a peek or a read that
 * returns nothing changes nothing. A datagram that is written does not wait in
 * its socket, so writing is about TCP alone. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { READ, READ100, WRITE, WRITE100 };

const volatile __u64 slow_ns = 1000000;
const volatile __u64 slow100_ns = 100000000;
const volatile __u64 event_ns = 100000000;

DEFINE_COUNTERS();

struct waiting {
	__u64 read_since_ns; /* 0: nothing is unread */
	__u64 write_since_ns; /* 0: nothing is unsent */
	__u32 copied_seq; /* how far the application had read then */
	__u32 write_seq; /* the first byte that is unsent */
	__u64 identity; /* of the socket, where the map does not go with it */
	char comm[16]; /* of the writer */
	__u32 pid;
};

/* Goes when its socket does: programs with type information can use it. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct waiting);
} sockets SEC(".maps");

/* For the others. A closed socket's entry is found again by the next socket
 * at its address, which is why it carries an identity. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct waiting);
} sockets_by_address SEC(".maps");

static __always_inline __u64 identity_of(const struct sock *sk)
{
	__u64 ports = (__u64)BPF_CORE_READ(sk, __sk_common.skc_num) << 16 |
		      BPF_CORE_READ(sk, __sk_common.skc_dport);

	return ports << 32 | BPF_CORE_READ(sk, __sk_common.skc_daddr);
}

static __always_inline struct waiting *find(const struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct waiting *w = bpf_map_lookup_elem(&sockets_by_address, &key);

	return w && w->identity == identity_of(sk) ? w : NULL;
}

static __always_inline struct waiting *find_or_make(const struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct waiting fresh = { .identity = identity_of(sk) };
	struct waiting *w = bpf_map_lookup_elem(&sockets_by_address, &key);

	if (w && w->identity == fresh.identity)
		return w;
	bpf_map_update_elem(&sockets_by_address, &key, &fresh, BPF_ANY);
	return bpf_map_lookup_elem(&sockets_by_address, &key);
}

static __always_inline struct waiting *stored(struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, sk, NULL, 0);
}

static __always_inline struct waiting *stored_or_made(struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
}

static __always_inline void measured(const struct sock *sk, __u8 protocol, __u32 slot, __u64 now,
				     __u64 latency, const struct waiting *writer)
{
	__u32 netns;
	struct event *e;

	if (latency < slow_ns)
		return;
	netns = netns_of_sock(sk);
	count(netns, slot);
	if (latency >= slow100_ns)
		count(netns, slot + 1);
	if (latency < event_ns)
		return;
	e = event_reserve(slot == READ ? EVENT_SOCKETLAT_READSLOW : EVENT_SOCKETLAT_SENDSLOW, netns,
			  now, sizeof(*e));
	if (!e)
		return;
	e->latency_ns = latency;
	e->tcp_state = protocol == IPPROTO_TCP ? BPF_CORE_READ(sk, __sk_common.skc_state) : 0;
	tuple_from_sock(sk, protocol, &e->tuple);
	if (writer) {
		/* Whoever lets it go out at last is a bystander. */
		e->pid = writer->pid;
		__builtin_memcpy(e->comm, writer->comm, sizeof(e->comm));
	} else {
		event_set_process(e);
	}
	event_submit(e);
}

/* The protocol if the probe watches the socket, else 0. With type information
 * it is read without helpers, which these programs run too often for. */
static __always_inline __u8 protocol_watched(__u16 family, __u16 protocol, __u8 state)
{
	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (protocol == IPPROTO_TCP)
		return state == TCP_LISTEN ? 0 : IPPROTO_TCP;
	return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE ? protocol : 0;
}

static __always_inline __u8 protocol_read(const struct sock *sk)
{
	return protocol_watched(BPF_CORE_READ(sk, __sk_common.skc_family),
				BPF_CORE_READ(sk, sk_protocol),
				BPF_CORE_READ(sk, __sk_common.skc_state));
}

static __always_inline __u8 protocol_loaded(const struct sock *sk)
{
	return protocol_watched(sk->__sk_common.skc_family, sk->sk_protocol,
				sk->__sk_common.skc_state);
}

/* What the programs with type information need of a connection: the same as
 * the others, loaded, and TCP's own reading of the clock. TCP reads it when it
 * begins with a segment that came and when it begins to send, which are the
 * moments that count here. */
struct connection {
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 write_seq;
	__u64 clock_ns;
};

static __always_inline bool connection_load(struct sock *sk, struct connection *c)
{
	const struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return false;
	c->rcv_nxt = tp->rcv_nxt;
	c->copied_seq = tp->copied_seq;
	c->write_seq = tp->write_seq;
	c->clock_ns = bpf_core_field_exists(tp->tcp_clock_cache) ? tp->tcp_clock_cache :
								   bpf_ktime_get_ns();
	return true;
}

static __always_inline __u32 copied_seq_of(const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, copied_seq);
}

static __always_inline __u32 rcv_nxt_of(const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, rcv_nxt);
}

static __always_inline __u32 datagrams_unread(const struct sock *sk)
{
	/* A reader moves the whole queue to one of its own first. */
	return BPF_CORE_READ(sk, sk_receive_queue.qlen) +
	       BPF_CORE_READ((const struct udp_sock *)sk, reader_queue.qlen);
}

static __always_inline __u32 datagrams_unread_loaded(const struct sock *sk)
{
	return sk->sk_receive_queue.qlen +
	       BPF_CORE_READ((const struct udp_sock *)sk, reader_queue.qlen);
}

static __always_inline void ready_tcp(struct waiting *w, __u32 copied_seq, __u64 since_ns)
{
	if (!w || w->read_since_ns)
		return;
	w->copied_seq = copied_seq;
	w->read_since_ns = since_ns ? since_ns : bpf_ktime_get_ns();
}

static __always_inline void ready_datagram(struct waiting *w, __u32 unread)
{
	/* The only one unread is the one that just came, whatever an earlier
	 * stamp says: a reader on another CPU may have been faster than the
	 * news of what it read. */
	if (w && (!w->read_since_ns || unread == 1))
		w->read_since_ns = bpf_ktime_get_ns();
}

static __always_inline int ready_loaded(struct sock *sk)
{
	__u8 protocol = protocol_loaded(sk);
	struct connection c;
	__u32 unread;

	if (protocol == IPPROTO_TCP) {
		if (connection_load(sk, &c) && c.rcv_nxt != c.copied_seq)
			ready_tcp(stored_or_made(sk), c.copied_seq, c.clock_ns);
	} else if (protocol) {
		unread = datagrams_unread_loaded(sk);
		if (unread)
			ready_datagram(stored_or_made(sk), unread);
	}
	return 0;
}

static __always_inline int ready_read(const struct sock *sk)
{
	__u8 protocol = protocol_read(sk);
	__u32 unread, copied;

	if (protocol == IPPROTO_TCP) {
		copied = copied_seq_of(sk);
		if (rcv_nxt_of(sk) != copied)
			ready_tcp(find_or_make(sk), copied, 0);
	} else if (protocol) {
		unread = datagrams_unread(sk);
		if (unread)
			ready_datagram(find_or_make(sk), unread);
	}
	return 0;
}

/* TCP's reading of the clock may be the moment before ours. */
static __always_inline __u64 elapsed(__u64 since, __u64 now)
{
	return now > since ? now - since : 0;
}

/* What remains unread starts to wait now: when it came is not known. */
static __always_inline int read_tcp(const struct sock *sk, struct waiting *w, __u32 rcv_nxt,
				    __u32 copied)
{
	__u64 now, since = w->read_since_ns;

	if (copied == w->copied_seq)
		return 0; /* a peek */
	now = bpf_ktime_get_ns();
	w->copied_seq = copied;
	w->read_since_ns = rcv_nxt != copied ? now : 0;
	measured(sk, IPPROTO_TCP, READ, now, elapsed(since, now), NULL);
	return 0;
}

static __always_inline int read_datagram(const struct sock *sk, __u8 protocol, struct waiting *w,
					 __u32 unread)
{
	__u64 now = bpf_ktime_get_ns(), since = w->read_since_ns;

	w->read_since_ns = unread ? now : 0;
	measured(sk, protocol, READ, now, elapsed(since, now), NULL);
	return 0;
}

/* A datagram may be empty. */
static __always_inline bool taken(int result, int flags)
{
	return result >= 0 && !(flags & MSG_PEEK);
}

static __always_inline int received_loaded(struct sock *sk)
{
	__u8 protocol = protocol_loaded(sk);
	struct waiting *w;

	if (!protocol || protocol == IPPROTO_TCP)
		return 0;
	w = stored(sk);
	if (!w || !w->read_since_ns)
		return 0;
	return read_datagram(sk, protocol, w,
			     sk->sk_receive_queue.qlen || datagrams_unread_loaded(sk));
}

static __always_inline int received_read(const struct sock *sk)
{
	__u8 protocol = protocol_read(sk);
	struct waiting *w;

	if (!protocol || protocol == IPPROTO_TCP)
		return 0;
	w = find(sk);
	if (!w || !w->read_since_ns)
		return 0;
	return read_datagram(sk, protocol, w, datagrams_unread(sk));
}

/* Reading */

SEC("tp_btf/sk_data_ready")
int btf_ready(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];

	return ready_loaded(sk);
}

SEC("raw_tp/sk_data_ready")
int raw_ready(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];

	return ready_read(sk);
}

SEC("fentry/sock_def_readable")
int BPF_PROG(fen_ready, struct sock *sk)
{
	return ready_loaded(sk);
}

SEC("kprobe/sock_def_readable")
int BPF_KPROBE(kp_ready, struct sock *sk)
{
	return ready_read(sk);
}

/* Before 6.3, without function hooks: TCP gets a segment, before it is queued. */
SEC("raw_tp/tcp_probe")
int raw_segment(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const struct sock *)ctx->args[0];
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[1];
	const struct tcp_skb_cb *cb = (const struct tcp_skb_cb *)&skb->cb[0];

	/* Nothing becomes unread by what has come before: a segment without
	 * data, or one that is sent again. */
	if ((__s32)(BPF_CORE_READ(cb, end_seq) - rcv_nxt_of(sk)) <= 0)
		return 0;
	ready_tcp(find_or_make(sk), copied_seq_of(sk), 0);
	return 0;
}

/* TCP has copied bytes to the application, in the middle of its call: one
 * that waits for more does not make these wait. */
SEC("tp_btf/tcp_rcv_space_adjust")
int btf_read_tcp(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct waiting *w = stored(sk);
	struct connection c;

	if (!w || !w->read_since_ns || !connection_load(sk, &c))
		return 0;
	return read_tcp(sk, w, c.rcv_nxt, c.copied_seq);
}

SEC("raw_tp/tcp_rcv_space_adjust")
int raw_read_tcp(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	struct waiting *w = find(sk);

	if (!w || !w->read_since_ns)
		return 0;
	return read_tcp(sk, w, rcv_nxt_of(sk), copied_seq_of(sk));
}

SEC("tp_btf/sock_recv_length")
int btf_received(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];

	return taken((int)ctx[1], (int)ctx[2]) ? received_loaded(sk) : 0;
}

SEC("raw_tp/sock_recv_length")
int raw_received(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];

	return taken((int)ctx->args[1], (int)ctx->args[2]) ? received_read(sk) : 0;
}

/* The length is negative for a peek. */
SEC("fentry/skb_consume_udp")
int BPF_PROG(fen_consume, struct sock *sk, struct sk_buff *skb, int len)
{
	return taken(len, 0) ? received_loaded(sk) : 0;
}

SEC("kprobe/skb_consume_udp")
int BPF_KPROBE(kp_consume, struct sock *sk, struct sk_buff *skb, int len)
{
	return taken(len, 0) ? received_read(sk) : 0;
}

/* Writing */

/* An earlier write that put nothing into the queue does not count. */
static __always_inline bool writes_first(const struct waiting *w, __u32 write_seq)
{
	return !w->write_since_ns || w->write_seq == write_seq;
}

static __always_inline int written_loaded(struct sock *sk)
{
	struct waiting *w = stored_or_made(sk);
	struct task_struct *task;
	struct connection c;

	if (!w || !connection_load(sk, &c) || !writes_first(w, c.write_seq))
		return 0;
	task = bpf_get_current_task_btf();
	w->write_seq = c.write_seq;
	w->pid = task->tgid;
	((__u64 *)w->comm)[0] = ((const __u64 *)task->comm)[0];
	((__u64 *)w->comm)[1] = ((const __u64 *)task->comm)[1];
	w->write_since_ns = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int written_read(const struct sock *sk)
{
	struct waiting *w = find_or_make(sk);
	__u32 write_seq = BPF_CORE_READ((const struct tcp_sock *)sk, write_seq);

	if (!w || !writes_first(w, write_seq))
		return 0;
	w->write_seq = write_seq;
	w->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(w->comm, sizeof(w->comm));
	w->write_since_ns = bpf_ktime_get_ns();
	return 0;
}

/* A segment of new data, up to end_seq, leaves TCP. What is written behind it
 * starts to wait now. */
static __always_inline int went_out(const struct sock *sk, struct waiting *w, __u32 end_seq,
				    __u32 write_seq, __u64 now)
{
	__u64 since = w->write_since_ns;

	w->write_seq = end_seq;
	w->write_since_ns = (__s32)(write_seq - end_seq) > 0 ? now : 0;
	measured(sk, IPPROTO_TCP, WRITE, now, elapsed(since, now), w);
	return 0;
}

/* Whether a segment is the first to carry what is written and not sent. */
static __always_inline bool is_new(const struct waiting *w, __u32 end_seq)
{
	return (__s32)(end_seq - w->write_seq) > 0;
}

/* At the device, TCP's own notes in the packet are overwritten: its header
 * tells, of which this is the beginning. */
struct tcp_header {
	__be16 source, dest;
	__be32 seq, ack;
	__u8 offset;
};

/* Where the data of a segment ends, or false if it has none: it is an
 * acknowledgement or a window probe. */
static __always_inline bool data_end(const struct tcp_header *tcp, __u32 header, __u32 len,
				     __u32 *end_seq)
{
	header += (tcp->offset >> 4) * 4;
	if (len <= header)
		return false;
	*end_seq = bpf_ntohl(tcp->seq) + len - header;
	return true;
}

SEC("tp_btf/tcp_sendmsg_locked")
int btf_write(__u64 *ctx)
{
	return written_loaded((struct sock *)ctx[0]);
}

SEC("raw_tp/tcp_sendmsg_locked")
int raw_write(struct bpf_raw_tracepoint_args *ctx)
{
	return written_read((const struct sock *)ctx->args[0]);
}

SEC("fentry/tcp_sendmsg_locked")
int BPF_PROG(fen_write, struct sock *sk)
{
	return written_loaded(sk);
}

SEC("kprobe/tcp_sendmsg_locked")
int BPF_KPROBE(kp_write, struct sock *sk)
{
	return written_read(sk);
}

SEC("tp_btf/net_dev_queue")
int btf_queue(__u64 *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx[0];
	struct sock *sk = skb->sk;
	/* A packet's socket may not be loaded from as a connection. */
	const struct tcp_sock *tp = (const struct tcp_sock *)sk;
	struct tcp_header tcp;
	struct waiting *w;
	__u32 end_seq;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	w = stored(sk);
	if (!w || !w->write_since_ns ||
	    bpf_probe_read_kernel(&tcp, sizeof(tcp), skb->head + skb->transport_header) ||
	    !data_end(&tcp, skb->head + skb->transport_header - skb->data, skb->len, &end_seq) ||
	    !is_new(w, end_seq))
		return 0;
	return went_out(sk, w, end_seq, BPF_CORE_READ(tp, write_seq),
			bpf_core_field_exists(tp->tcp_clock_cache) ?
				BPF_CORE_READ(tp, tcp_clock_cache) :
				bpf_ktime_get_ns());
}

SEC("raw_tp/net_dev_queue")
int raw_queue(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct sock *sk = BPF_CORE_READ(skb, sk);
	const unsigned char *th;
	struct tcp_header tcp;
	struct waiting *w;
	__u32 end_seq;

	if (!sk)
		return 0;
	w = find(sk);
	if (!w || !w->write_since_ns)
		return 0;
	th = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, transport_header);
	if (bpf_probe_read_kernel(&tcp, sizeof(tcp), th) ||
	    !data_end(&tcp, th - BPF_CORE_READ(skb, data), BPF_CORE_READ(skb, len), &end_seq) ||
	    !is_new(w, end_seq))
		return 0;
	return went_out(sk, w, end_seq, BPF_CORE_READ((const struct tcp_sock *)sk, write_seq),
			bpf_ktime_get_ns());
}

SEC("fentry/__tcp_transmit_skb")
int BPF_PROG(fen_transmit, struct sock *sk, struct sk_buff *skb)
{
	const struct tcp_skb_cb *cb = (const struct tcp_skb_cb *)&skb->cb[0];
	struct waiting *w = stored(sk);
	struct connection c;
	__u32 end_seq;

	if (!w || !w->write_since_ns)
		return 0;
	end_seq = BPF_CORE_READ(cb, end_seq);
	if (end_seq == BPF_CORE_READ(cb, seq) || !is_new(w, end_seq) || !connection_load(sk, &c))
		return 0;
	return went_out(sk, w, end_seq, c.write_seq, c.clock_ns);
}

SEC("kprobe/__tcp_transmit_skb")
int BPF_KPROBE(kp_transmit, struct sock *sk, struct sk_buff *skb)
{
	const struct tcp_skb_cb *cb = (const struct tcp_skb_cb *)&skb->cb[0];
	struct waiting *w = find(sk);
	__u32 end_seq;

	if (!w || !w->write_since_ns)
		return 0;
	end_seq = BPF_CORE_READ(cb, end_seq);
	if (end_seq == BPF_CORE_READ(cb, seq) || !is_new(w, end_seq))
		return 0;
	return went_out(sk, w, end_seq, BPF_CORE_READ((const struct tcp_sock *)sk, write_seq),
			bpf_ktime_get_ns());
}
