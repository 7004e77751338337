// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* net_softirq: delay and run time of the network softirqs, per CPU. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"
#include "headers/histogram.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { SCHED, SCHED100, EXCUTE, EXCUTE100, SLOTS };

const volatile __u64 slow_ns = 10000000;
const volatile __u64 slow100_ns = 100000000;

enum vector { NET_TX_SOFTIRQ = 2, NET_RX_SOFTIRQ };

#define VECTORS 2

/* One for each vector and stage, as numbered by histogram_of(). */
enum histogram_slot { HIST_TX_SCHED, HIST_TX_EXCUTE, HIST_RX_SCHED, HIST_RX_EXCUTE };

GO_TYPES(enum slot slot; enum vector vector; enum histogram_slot histogram_slot;);

struct softirq {
	__u64 raised_ns[VECTORS];
	__u64 entered_ns[VECTORS];
};

/* A per-CPU array, because a softirq runs on the CPU that raised it, so no other
 * CPU uses its stamps. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct softirq);
} softirqs SEC(".maps");

DEFINE_HOST_COUNTERS();
DEFINE_NODE_HISTOGRAMS();

static __always_inline struct softirq *softirq_of_cpu(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&softirqs, &zero);
}

static __always_inline void tell(__u32 type, __u32 vector, __u64 now, __u64 latency)
{
	struct event *e = event_reserve_host(type, now, sizeof(*e));

	if (!e)
		return;
	e->latency_ns = latency;
	e->detail = vector;
	event_set_process(e);
	event_submit(e);
}

static __always_inline __u32 histogram_of(__u32 slot, __u32 vector)
{
	return (vector & 1) << 1 | (slot == EXCUTE);
}

/* One occurrence is one event, of the more severe of its two types. */
static __always_inline void measured(__u32 slot, __u32 type, __u32 vector, __u64 now, __u64 latency)
{
	measured_of_node(histogram_of(slot, vector), latency, ALONE);
	if (latency < slow_ns)
		return;
	count_host(slot);
	if (latency >= slow100_ns) {
		count_host(slot + 1);
		type++;
	}
	tell(type, vector, now, latency);
}

static __always_inline bool is_net(__u32 vector)
{
	return vector == NET_TX_SOFTIRQ || vector == NET_RX_SOFTIRQ;
}

static __always_inline int raised(__u32 vector)
{
	struct softirq *s;

	if (!is_net(vector))
		return 0;
	s = softirq_of_cpu();
	/* If a softirq is raised again before it runs, the first raise counts. */
	if (s && !s->raised_ns[vector & 1])
		s->raised_ns[vector & 1] = bpf_ktime_get_ns();
	return 0;
}

static __always_inline int entered(__u32 vector)
{
	struct softirq *s;
	__u64 now, since;

	if (!is_net(vector))
		return 0;
	s = softirq_of_cpu();
	if (!s)
		return 0;
	now = bpf_ktime_get_ns();
	since = s->raised_ns[vector & 1];
	s->raised_ns[vector & 1] = 0;
	s->entered_ns[vector & 1] = now;
	if (since)
		measured(SCHED, EVENT_NETSOFTIRQ_SCHED_SLOW, vector, now, now - since);
	return 0;
}

static __always_inline int left(__u32 vector)
{
	struct softirq *s;
	__u64 now, since;

	if (!is_net(vector))
		return 0;
	s = softirq_of_cpu();
	if (!s)
		return 0;
	since = s->entered_ns[vector & 1];
	if (!since)
		return 0;
	s->entered_ns[vector & 1] = 0;
	now = bpf_ktime_get_ns();
	measured(EXCUTE, EVENT_NETSOFTIRQ_EXCUTE_SLOW, vector, now, now - since);
	return 0;
}

#define SOFTIRQ(point, handler)                                                                    \
	SEC("raw_tp/softirq_" #point)                                                              \
	int raw_##point(struct bpf_raw_tracepoint_args *ctx)                                       \
	{                                                                                          \
		return handler(ctx->args[0]);                                                      \
	}                                                                                          \
	SEC("tp_btf/softirq_" #point)                                                              \
	int btf_##point(__u64 *ctx)                                                                \
	{                                                                                          \
		return handler(ctx[0]);                                                            \
	}

SOFTIRQ(raise, raised)
SOFTIRQ(entry, entered)
SOFTIRQ(exit, left)
