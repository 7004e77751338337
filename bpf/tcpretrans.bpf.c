// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* tcpretrans: retransmitted TCP segments and SYN-ACKs. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { SEGMENTS, SYNACKS, CALLS, SLOTS };

/* Event.detail */
enum kind { KIND_SEGMENT, KIND_SYNACK };

GO_TYPES(enum slot slot; enum kind kind;);

/* Index of the argument with the error of a failed attempt, on newer kernels, which
 * report these too; 0 on kernels that report successful retransmissions only. */
const volatile __u32 error_arg = 0;
const volatile bool with_stack = true;

DEFINE_COUNTERS();

static __always_inline void fill(struct event *e, const struct sock *sk, __u32 kind)
{
	e->detail = kind;
	e->tcp_state = BPF_CORE_READ(sk, __sk_common.skc_state);
	/* A request is not a full socket. */
	tuple_from_common(&sk->__sk_common, IPPROTO_TCP, &e->tuple);
}

static __always_inline void tell(void *ctx, const struct sock *sk, struct owner o, __u32 kind)
{
	__u64 now = bpf_ktime_get_ns();

	if (with_stack) {
		struct event_stack *es =
			event_reserve(EVENT_TCPRETRANS, o, now, sizeof(struct event_stack));

		if (!es)
			return;
		fill(&es->event, sk, kind);
		event_set_stack(ctx, es);
		event_submit(es);
	} else {
		struct event *e = event_reserve(EVENT_TCPRETRANS, o, now, sizeof(struct event));

		if (!e)
			return;
		fill(e, sk, kind);
		event_submit(e);
	}
}

static __always_inline int retransmitted(void *ctx, const struct sock *sk,
					 const struct sk_buff *skb)
{
	const struct tcp_skb_cb *cb = (const struct tcp_skb_cb *)&skb->cb[0];
	struct owner o = owner_of_sock(sk);
	struct counter *c = counter_of(o);
	__u64 segments = BPF_CORE_READ(cb, tcp_gso_segs);

	if (c) {
		/* A GSO packet counts as its segments. Never add a constant zero: the
		 * compiler would emit an instruction that kernels before 5.12 do not have. */
		__sync_fetch_and_add(&c->slot[SEGMENTS], segments ? segments : 1);
		__sync_fetch_and_add(&c->slot[CALLS], 1);
	}
	tell(ctx, sk, o, KIND_SEGMENT);
	return 0;
}

static __always_inline int synack_retransmitted(void *ctx, const struct request_sock *req)
{
	/* A request socket begins with struct sock_common like every socket. */
	const struct sock *sk = (const struct sock *)req;
	struct owner o = owner_of_sock(sk);

	count(o, SYNACKS);
	tell(ctx, sk, o, KIND_SYNACK);
	return 0;
}

SEC("raw_tp/tcp_retransmit_skb")
int raw_tcp_retransmit_skb(struct bpf_raw_tracepoint_args *ctx)
{
	if (error_arg == 2 && (__s32)ctx->args[2])
		return 0;
	return retransmitted(ctx, (struct sock *)ctx->args[0], (struct sk_buff *)ctx->args[1]);
}

SEC("tp_btf/tcp_retransmit_skb")
int btf_tcp_retransmit_skb(__u64 *ctx)
{
	if (error_arg == 2 && (__s32)ctx[2])
		return 0;
	return retransmitted(ctx, (struct sock *)ctx[0], (struct sk_buff *)ctx[1]);
}

SEC("raw_tp/tcp_retransmit_synack")
int raw_tcp_retransmit_synack(struct bpf_raw_tracepoint_args *ctx)
{
	return synack_retransmitted(ctx, (struct request_sock *)ctx->args[1]);
}

SEC("tp_btf/tcp_retransmit_synack")
int btf_tcp_retransmit_synack(__u64 *ctx)
{
	return synack_retransmitted(ctx, (struct request_sock *)ctx[1]);
}
