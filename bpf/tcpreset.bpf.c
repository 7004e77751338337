// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* tcpreset: TCP resets sent and received.
 *
 * Sent: since 6.10 a tracepoint sees all resets. Before, it omits a reset that
 * answers a packet without a full socket; for these, the functions that send resets
 * are hooked as well.
 *
 * Received: the tracepoint is in tcp_reset(), which only full sockets reach. A RST
 * that ends a request (SYN_RECV) or a socket in TIME_WAIT is detected in the
 * functions that handle those, or where TCP frees the packet. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { NOSOCK, ACTIVE, PROCESS, RECEIVE, SLOTS };

/* Index of the tracepoint's reason argument; 0 if it has none. */
const volatile __u32 reason_arg = 0;

/* Number of code ranges of tcp_validate_incoming(), which passes a RST to
 * tcp_reset(). */
enum size { PARTS = 2 };

struct part {
	__u64 start;
	__u64 end;
};

const volatile struct part validate[PARTS] = {};

GO_TYPES(enum slot slot; enum size size;);

#define FRAMES 8

enum { FIN_WAIT1 = 4, FIN_WAIT2 = 5, CLOSE_WAIT = 8, LAST_ACK = 9, CLOSING = 11 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* The link of a socket in its hash chain. */
struct sock_common___chain {
	struct hlist_nulls_node___chain {
		void **pprev;
	} skc_nulls_node;
};

struct inet_timewait_sock {
	volatile unsigned char tw_substate;
};

#pragma clang attribute pop

/* Types with a suffix are specific to this file. */
enum skb_drop_reason___tcp {
	SKB_DROP_REASON_NOT_SPECIFIED___tcp,
	SKB_DROP_REASON_TCP_LISTEN_OVERFLOW___tcp,
};

DEFINE_COUNTERS();

/* A connection in FIN_WAIT2 may use the structure of TIME_WAIT; its state is then
 * in another field. */
static __always_inline __u8 state_of(const struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (state != TCP_TIME_WAIT)
		return state;
	return BPF_CORE_READ((const struct inet_timewait_sock *)sk, tw_substate);
}

/* The source of the tuple is this node's end, which is the destination of the
 * answered packet. */
static __always_inline int reset_sent(const struct sock *sk, const struct sk_buff *skb,
				      __u32 reason)
{
	__u32 slot = !sk ? NOSOCK : !skb ? ACTIVE : PROCESS;
	struct owner o = sk ? owner_of_sock(sk) : owner_of_skb(skb);
	struct event *e;

	count(o, slot);
	e = event_reserve(EVENT_TCPRESET_NOSOCK + slot, o, bpf_ktime_get_ns(), sizeof(*e));
	if (!e)
		return 0;
	e->reason = reason;
	if (sk)
		e->tcp_state = state_of(sk);
	if (skb) {
		/* Prefer the packet even with a socket: a listening socket does not know
		 * the peer. */
		if (tuple_from_skb(skb, &e->tuple))
			tuple_swap(&e->tuple);
		event_set_dev(e, BPF_CORE_READ(skb, dev));
	} else {
		tuple_from_sock(sk, IPPROTO_TCP, &e->tuple);
	}
	event_submit(e);
	return 0;
}

/* tcp_reset() also ends a connection that gets data after its application has
 * closed it. In that case a RST is sent, and none was received. Only the caller
 * distinguishes the two, and the second happens only in these states. */
static __always_inline bool in_validate(__u64 address)
{
	for (int i = 0; i < PARTS; i++) {
		if (address > validate[i].start && address <= validate[i].end)
			return true;
	}
	return false;
}

static __always_inline bool data_after_close(void *ctx, __u64 caller, __u8 state)
{
	__u64 frames[FRAMES] = {};

	if (state != FIN_WAIT1 && state != FIN_WAIT2 && state != CLOSE_WAIT && state != LAST_ACK &&
	    state != CLOSING)
		return false;
	if (!validate[0].start || in_validate(caller))
		return false;
	if (bpf_get_stack(ctx, frames, sizeof(frames), 0) <= 0)
		return false;
	for (int i = 0; i < FRAMES; i++) {
		if (in_validate(frames[i]))
			return false;
	}
	return true;
}

/* If the caller is 0, it is looked up on the stack. */
static __always_inline int reset_received(void *ctx, const struct sock *sk, __u64 caller)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	struct owner o = owner_of_sock(sk);
	struct event *e;

	if (data_after_close(ctx, caller, state))
		return 0;
	count(o, RECEIVE);
	e = event_reserve(EVENT_TCPRESET_RECEIVE, o, bpf_ktime_get_ns(), sizeof(*e));
	if (!e)
		return 0;
	e->reason = REASON_NONE;
	e->tcp_state = state;
	tuple_from_sock(sk, IPPROTO_TCP, &e->tuple);
	event_submit(e);
	return 0;
}

SEC("raw_tp/tcp_send_reset")
int raw_tcp_send_reset(struct bpf_raw_tracepoint_args *ctx)
{
	return reset_sent((struct sock *)ctx->args[0], (struct sk_buff *)ctx->args[1],
			  reason_arg == 2 ? ctx->args[2] : REASON_NONE);
}

SEC("raw_tp/tcp_receive_reset")
int raw_tcp_receive_reset(struct bpf_raw_tracepoint_args *ctx)
{
	return reset_received(ctx, (struct sock *)ctx->args[0], 0);
}

SEC("tp_btf/tcp_receive_reset")
int btf_tcp_receive_reset(__u64 *ctx)
{
	return reset_received(ctx, (struct sock *)ctx[0], 0);
}

static __always_inline bool is_reset(const struct sk_buff *skb)
{
	const unsigned char *th =
		BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, transport_header);
	__u8 flags = 0;

	bpf_probe_read_kernel(&flags, sizeof(flags), th + 13);
	return flags & TCP_FLAG_RST;
}

/* All resets that answer a packet go through tcp_v4_send_reset() and
 * tcp_v6_send_reset(). Both return at once if the packet is itself a reset. */

/* Handles resets that the tracepoint before 6.10 omits. */
static __always_inline int reset_without_full_socket(const struct sock *sk,
						     const struct sk_buff *skb)
{
	__u8 state = sk ? BPF_CORE_READ(sk, __sk_common.skc_state) : 0;

	if (sk && state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV)
		return 0;
	return !is_reset(skb) ? reset_sent(sk, skb, REASON_NONE) : 0;
}

static __always_inline int reset_by_function(const struct sock *sk, const struct sk_buff *skb)
{
	return !is_reset(skb) ? reset_sent(sk, skb, REASON_NONE) : 0;
}

#define REPLY(version)                                                                             \
	SEC("fentry/tcp_v" #version "_send_reset")                                                 \
	int BPF_PROG(fen_rest_v##version, struct sock *sk, struct sk_buff *skb)                    \
	{                                                                                          \
		return reset_without_full_socket(sk, skb);                                         \
	}                                                                                          \
	SEC("kprobe/tcp_v" #version "_send_reset")                                                 \
	int BPF_KPROBE(kp_rest_v##version, struct sock *sk, struct sk_buff *skb)                   \
	{                                                                                          \
		return reset_without_full_socket(sk, skb);                                         \
	}                                                                                          \
	SEC("fentry/tcp_v" #version "_send_reset")                                                 \
	int BPF_PROG(fen_reset_v##version, struct sock *sk, struct sk_buff *skb)                   \
	{                                                                                          \
		return reset_by_function(sk, skb);                                                 \
	}                                                                                          \
	SEC("kprobe/tcp_v" #version "_send_reset")                                                 \
	int BPF_KPROBE(kp_reset_v##version, struct sock *sk, struct sk_buff *skb)                  \
	{                                                                                          \
		return reset_by_function(sk, skb);                                                 \
	}

REPLY(4)
REPLY(6)

SEC("fentry/tcp_send_active_reset")
int BPF_PROG(fen_active, struct sock *sk)
{
	return reset_sent(sk, NULL, REASON_NONE);
}

SEC("kprobe/tcp_send_active_reset")
int BPF_KPROBE(kp_active, struct sock *sk)
{
	return reset_sent(sk, NULL, REASON_NONE);
}

SEC("fentry/tcp_reset")
int BPF_PROG(fen_receive, struct sock *sk)
{
	return reset_received(ctx, sk, 0);
}

/* A function that has not set up its frame yet does not appear in a walk of frame
 * pointers, and neither does its caller. */
static __always_inline __u64 return_address(struct pt_regs *regs)
{
#ifdef __TARGET_ARCH_x86
	__u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), (void *)PT_REGS_SP(regs));
	return address;
#else
	return PT_REGS_RET(regs);
#endif
}

SEC("kprobe/tcp_reset")
int BPF_KPROBE(kp_receive, struct sock *sk)
{
	return reset_received(ctx, sk, return_address(ctx));
}

/* Handles a RST that ended a request or a socket in TIME_WAIT. The socket may
 * already be free; type-stable slab memory keeps it a socket until RCU readers are
 * done. */
static __always_inline int reset_received_small(const struct sock *sk, const struct sk_buff *skb,
						__u8 state)
{
	struct owner o = owner_of_sock(sk);
	struct event *e;

	count(o, RECEIVE);
	e = event_reserve(EVENT_TCPRESET_RECEIVE, o, bpf_ktime_get_ns(), sizeof(*e));
	if (!e)
		return 0;
	e->reason = REASON_NONE;
	e->tcp_state = state;
	if (tuple_from_skb(skb, &e->tuple))
		tuple_swap(&e->tuple);
	event_submit(e);
	return 0;
}

/* TCP unhashes a socket that it ends. If the socket is still hashed, the RST had a
 * wrong sequence number, or net.ipv4.tcp_rfc1337 ignored it. */
static __always_inline bool is_unchained(const struct sock *sk)
{
	return !BPF_CORE_READ((const struct sock_common___chain *)sk, skc_nulls_node.pprev);
}

static __always_inline int timewait_done(const struct sock *tw, const struct sk_buff *skb)
{
	return is_unchained(tw) ? reset_received_small(tw, skb, state_of(tw)) : 0;
}

/* `stolen` means that another CPU has unhashed the request and created a socket
 * from it, which gets the packet next. */
static __always_inline int request_done(const struct sock *req, const struct sk_buff *skb,
					const bool *stolen)
{
	bool is_stolen = false;

	bpf_probe_read_kernel(&is_stolen, sizeof(is_stolen), stolen);
	if (is_stolen || !is_unchained(req))
		return 0;
	return reset_received_small(req, skb, TCP_NEW_SYN_RECV);
}

SEC("fexit/tcp_timewait_state_process")
int BPF_PROG(fex_timewait, struct sock *tw, struct sk_buff *skb)
{
	return is_reset(skb) ? timewait_done(tw, skb) : 0;
}

/* With fast open there is a full socket, and tcp_reset() is called. The fifth
 * argument is read by a helper, because the verifier of 5.10 rejects pointers to
 * non-structures. */
SEC("fexit/tcp_check_req")
int BPF_PROG(fex_request, struct sock *sk, struct sk_buff *skb, struct sock *req, __u8 fastopen)
{
	const bool *stolen = NULL;

	if (fastopen || !is_reset(skb))
		return 0;
	bpf_probe_read_kernel(&stolen, sizeof(stolen), &ctx[4]);
	return request_done(req, skb, stolen);
}

/* The function call in progress on a CPU; both functions run in a softirq. */
struct call {
	const struct sock *sk;
	const struct sk_buff *skb; /* NULL: not a RST */
	const bool *stolen;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct call);
} calls SEC(".maps");

static __always_inline struct call *this_call(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&calls, &zero);
}

static __always_inline int begin_call(const struct sock *sk, const struct sk_buff *skb,
				      const bool *stolen)
{
	struct call *c = this_call();

	if (!c)
		return 0;
	c->sk = sk;
	c->skb = skb && is_reset(skb) ? skb : NULL;
	c->stolen = stolen;
	return 0;
}

SEC("kprobe/tcp_timewait_state_process")
int BPF_KPROBE(kp_timewait, struct sock *tw, struct sk_buff *skb)
{
	return begin_call(tw, skb, NULL);
}

SEC("kretprobe/tcp_timewait_state_process")
int krp_timewait(void *ctx)
{
	struct call *c = this_call();

	return c && c->skb && !c->stolen ? timewait_done(c->sk, c->skb) : 0;
}

SEC("kprobe/tcp_check_req")
int BPF_KPROBE(kp_request, struct sock *sk, struct sk_buff *skb, struct sock *req, __u8 fastopen,
	       bool *stolen)
{
	/* Fast open: as above. Note the call all the same, to replace an
	 * outdated note. */
	return begin_call(req, fastopen ? NULL : skb, stolen);
}

SEC("kretprobe/tcp_check_req")
int krp_request(void *ctx)
{
	struct call *c = this_call();

	return c && c->skb && c->stolen ? request_done(c->sk, c->skb, c->stolen) : 0;
}

/* Called with a freed packet and its socket. TCP gives no drop reason for a
 * RST that it has obeyed here. Kernels that have the enumerator named here
 * give a reason for every other RST. Older kernels lack the enumerator and
 * reject the program. */
static __always_inline int freed(const struct sk_buff *skb, __u32 reason, const struct sock *sk)
{
	__u8 state;
	__u16 family;

	if (reason != bpf_core_enum_value(enum skb_drop_reason___tcp,
					  SKB_DROP_REASON_NOT_SPECIFIED___tcp) ||
	    reason == bpf_core_enum_value(enum skb_drop_reason___tcp,
					  SKB_DROP_REASON_TCP_LISTEN_OVERFLOW___tcp) || !sk)
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state != TCP_LISTEN && state != TCP_TIME_WAIT)
		return 0;
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (!is_reset(skb))
		return 0;
	if (state == TCP_TIME_WAIT)
		return timewait_done(sk, skb);
	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	return reset_received_small(sk, skb, TCP_NEW_SYN_RECV);
}

SEC("raw_tp/kfree_skb")
int raw_freed(struct bpf_raw_tracepoint_args *ctx)
{
	return freed((struct sk_buff *)ctx->args[0], ctx->args[2], (struct sock *)ctx->args[3]);
}

SEC("tp_btf/kfree_skb")
int btf_freed(__u64 *ctx)
{
	return freed((struct sk_buff *)ctx[0], ctx[2], (struct sock *)ctx[3]);
}
