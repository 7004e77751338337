// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* tcpreset: TCP resets, sent and received.
 *
 * A tracepoint sees all of them from 6.10 on. Before, it leaves out a reset
 * that answers a packet without a full socket; the functions that send those
 * are then watched as well, for just these. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { NOSOCK, ACTIVE, PROCESS, RECEIVE };

#define REASON_NONE 0xffffffffu

/* Where the tracepoint has the reason; 0: it has none. */
const volatile __u32 reason_arg = 0;

DEFINE_COUNTERS();

/* The source of the tuple is this node's end, which is where a packet that is
 * answered was sent to. */
static __always_inline int reset_sent(const struct sock *sk, const struct sk_buff *skb,
				      __u32 reason)
{
	__u32 slot = !sk ? NOSOCK : !skb ? ACTIVE : PROCESS;
	__u32 netns = sk ? netns_of_sock(sk) : netns_of_skb(skb);
	struct event *e;

	count(netns, slot);
	e = event_reserve(EVENT_TCPRESET_NOSOCK + slot, netns, bpf_ktime_get_ns(), sizeof(*e));
	if (!e)
		return 0;
	e->reason = reason;
	if (sk)
		e->tcp_state = BPF_CORE_READ(sk, __sk_common.skc_state);
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

static __always_inline int reset_received(const struct sock *sk)
{
	__u32 netns = netns_of_sock(sk);
	struct event *e;

	count(netns, RECEIVE);
	e = event_reserve(EVENT_TCPRESET_RECEIVE, netns, bpf_ktime_get_ns(), sizeof(*e));
	if (!e)
		return 0;
	e->reason = REASON_NONE;
	e->tcp_state = BPF_CORE_READ(sk, __sk_common.skc_state);
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
	return reset_received((struct sock *)ctx->args[0]);
}

SEC("tp_btf/tcp_receive_reset")
int btf_tcp_receive_reset(__u64 *ctx)
{
	return reset_received((struct sock *)ctx[0]);
}

/* All resets that answer a packet pass these two functions. They return at
 * once for a packet that is a reset itself. */

static __always_inline bool answers(const struct sk_buff *skb)
{
	const unsigned char *th =
		BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, transport_header);
	__u8 flags = 0;

	bpf_probe_read_kernel(&flags, sizeof(flags), th + 13);
	return !(flags & TCP_FLAG_RST);
}

/* What the tracepoint before 6.10 leaves out. */
static __always_inline int reset_without_full_socket(const struct sock *sk,
						     const struct sk_buff *skb)
{
	__u8 state = sk ? BPF_CORE_READ(sk, __sk_common.skc_state) : 0;

	if (sk && state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV)
		return 0;
	return answers(skb) ? reset_sent(sk, skb, REASON_NONE) : 0;
}

static __always_inline int reset_by_function(const struct sock *sk, const struct sk_buff *skb)
{
	return answers(skb) ? reset_sent(sk, skb, REASON_NONE) : 0;
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
	return reset_received(sk);
}

SEC("kprobe/tcp_reset")
int BPF_KPROBE(kp_receive, struct sock *sk)
{
	return reset_received(sk);
}
