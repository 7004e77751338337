// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* tcpreset: TCP resets, sent and received.
 *
 * Sent: a tracepoint sees all of them from 6.10 on. Before, it leaves out a
 * reset that answers a packet without a full socket; the functions that send
 * those are then watched as well, for just these.
 *
 * Received: the tracepoint is in tcp_reset(), which only full sockets reach. A
 * RST that ends a request (SYN_RECV) or a socket in TIME_WAIT is seen where
 * TCP handles those, or where TCP frees the packet. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { NOSOCK, ACTIVE, PROCESS, RECEIVE, SLOTS };

/* Where the tracepoint has the reason; 0: it has none. */
const volatile __u32 reason_arg = 0;

/* The code of tcp_validate_incoming(), which hands a RST to tcp_reset(). */
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

/* Sockets that are looked up by their ports are on a chain. */
struct sock_common___chain {
	struct hlist_nulls_node___chain {
		void **pprev;
	} skc_nulls_node;
};

struct inet_timewait_sock {
	volatile unsigned char tw_substate;
};

#pragma clang attribute pop

/* Names with a suffix are this file's own. */
enum skb_drop_reason___tcp {
	SKB_DROP_REASON_NOT_SPECIFIED___tcp,
	SKB_DROP_REASON_TCP_LISTEN_OVERFLOW___tcp,
};

DEFINE_COUNTERS();

/* A connection that this end has closed and the peer has not waits in the
 * structure of TIME_WAIT, too: there the state is another field. */
static __always_inline __u8 state_of(const struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	if (state != TCP_TIME_WAIT)
		return state;
	return BPF_CORE_READ((const struct inet_timewait_sock *)sk, tw_substate);
}

/* The source of the tuple is this node's end, which is where a packet that is
 * answered was sent to. */
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
		/* Also with a socket: a listening one does not know the peer. */
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
 * closed it. No RST was received then: one is sent. Only the caller tells the
 * two apart, and only in these states does the latter happen. */
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

/* The caller is 0 where the stack has it. */
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

/* All resets that answer a packet pass tcp_v4_send_reset() and
 * tcp_v6_send_reset(). They return at once for a packet that is a reset
 * itself. */

/* What the tracepoint before 6.10 leaves out. */
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

/* A function that has not made its frame yet is not on the way that frame
 * pointers show, and so its caller is not either. */
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

/* A RST that ended a request or a socket in TIME_WAIT. The socket may be free
 * by now: its memory is of a type that stays a socket's until the programs
 * that may read it are done. */
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

/* TCP takes what it ends off its chain. What a RST did not end, it had not
 * the right sequence number for, or net.ipv4.tcp_rfc1337 forbade it. */
static __always_inline bool is_unchained(const struct sock *sk)
{
	return !BPF_CORE_READ((const struct sock_common___chain *)sk, skc_nulls_node.pprev);
}

static __always_inline int timewait_done(const struct sock *tw, const struct sk_buff *skb)
{
	return is_unchained(tw) ? reset_received_small(tw, skb, state_of(tw)) : 0;
}

/* `stolen` says that another CPU has taken the request off its chain, and made
 * a socket of it: that socket gets the packet next. */
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
 * argument is read by a helper: to the verifier of 5.10 a pointer to anything
 * but a structure is invalid. */
SEC("fexit/tcp_check_req")
int BPF_PROG(fex_request, struct sock *sk, struct sk_buff *skb, struct sock *req, __u8 fastopen)
{
	const bool *stolen = NULL;

	if (fastopen || !is_reset(skb))
		return 0;
	bpf_probe_read_kernel(&stolen, sizeof(stolen), &ctx[4]);
	return request_done(req, skb, stolen);
}

/* The call that a CPU is in: both functions run in a softirq. */
struct call {
	const struct sock *sk;
	const struct sk_buff *skb; /* NULL: no RST */
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
	/* Fast open: as above. The call is noted, for what was noted before
	 * is over. */
	return begin_call(req, fastopen ? NULL : skb, stolen);
}

SEC("kretprobe/tcp_check_req")
int krp_request(void *ctx)
{
	struct call *c = this_call();

	return c && c->skb && c->stolen ? request_done(c->sk, c->skb, c->stolen) : 0;
}

/* The packet as it is freed, with the socket that it was for: TCP gives no
 * reason for a RST that it has obeyed here. It gives one for any other since
 * it has the enumerator named here; to older kernels the program is invalid. */
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
