/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Latency histograms with bounds that grow by a factor of about three, one
 * copy per CPU.
 *
 * By default there is one set for the node, which needs no owner lookup. On
 * request there is one for each namespace that user space follows. User space
 * creates these, so the programs allocate nothing. Latencies of other
 * namespaces count for NETNS_NONE. */

#ifndef NODESKOOP_HISTOGRAM_H
#define NODESKOOP_HISTOGRAM_H

#include "kernel.h"
#include "counter.h"

/* Upper bounds in microseconds. A latency equal to a bound counts as above it,
 * as with the thresholds of the counters. */
enum histogram_bound {
	HISTOGRAM_BOUND_0 = 10,
	HISTOGRAM_BOUND_1 = 30,
	HISTOGRAM_BOUND_2 = 100,
	HISTOGRAM_BOUND_3 = 300,
	HISTOGRAM_BOUND_4 = 1000,
	HISTOGRAM_BOUND_5 = 3000,
	HISTOGRAM_BOUND_6 = 10000,
	HISTOGRAM_BOUND_7 = 30000,
	HISTOGRAM_BOUND_8 = 100000,
	HISTOGRAM_BOUND_9 = 300000,
	HISTOGRAM_BOUND_10 = 1000000,
	HISTOGRAM_BOUND_11 = 10000000,
};

#define HISTOGRAM_BOUND(n) (HISTOGRAM_BOUND_##n * 1000ull)
#define HISTOGRAM_BUCKETS 13
/* Maximum number of histograms per namespace; one size for all probes. */
#define HISTOGRAMS 4

struct histogram {
	__u64 bucket[HISTOGRAM_BUCKETS];
	__u64 sum_ns;
};

struct histograms {
	struct histogram of[HISTOGRAMS];
};

enum histograms_by {
	HISTOGRAMS_OFF,
	HISTOGRAMS_NODE,
	HISTOGRAMS_PODS,
};

const volatile __u32 keep_histograms = HISTOGRAMS_NODE;

/* Most latencies are in the first few buckets, which take two comparisons. Compare
 * half the latency, in a form that the compiler does not see through: the verifier
 * tracks the range of a compared value, and would verify the rest of the program
 * once per bucket. */
static __always_inline __u32 histogram_bucket(__u64 ns)
{
#define BELOW(n) (ns < HISTOGRAM_BOUND(n) / 2)
	asm volatile("%0 >>= 1" : "+r"(ns));
	if (BELOW(2))
		return BELOW(0) ? 0 : BELOW(1) ? 1 : 2;
	if (BELOW(6)) {
		if (BELOW(4))
			return BELOW(3) ? 3 : 4;
		return BELOW(5) ? 5 : 6;
	}
	if (BELOW(9)) {
		if (BELOW(8))
			return BELOW(7) ? 7 : 8;
		return 9;
	}
	return BELOW(10) ? 10 : BELOW(11) ? 11 : 12;
#undef BELOW
}

/* Whether an update may be interrupted by another update of the same histogram
 * on the same CPU. Where softirqs are disabled it cannot, which saves two
 * atomic additions, the largest part of the cost. */
enum interrupted { ALONE, INTERRUPTED };

static __always_inline void histogram_add(struct histogram *h, __u64 ns, enum interrupted how)
{
	__u32 at = histogram_bucket(ns);

	if (at >= HISTOGRAM_BUCKETS)
		return;
	if (how == INTERRUPTED) {
		__sync_fetch_and_add(&h->bucket[at], 1);
		__sync_fetch_and_add(&h->sum_ns, ns);
	} else {
		h->bucket[at]++;
		h->sum_ns += ns;
	}
}

#define DEFINE_NODE_HISTOGRAMS()                                                                   \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__type(value, struct histograms);                                                  \
	} histograms SEC(".maps");                                                                 \
                                                                                                   \
	static __always_inline __attribute__((unused)) struct histograms *histograms_of_node(void) \
	{                                                                                          \
		__u32 zero = 0;                                                                    \
                                                                                                   \
		return bpf_map_lookup_elem(&histograms, &zero);                                    \
	}

#define DEFINE_HISTOGRAMS()                                                                        \
	DEFINE_NODE_HISTOGRAMS()                                                                   \
                                                                                                   \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_HASH);                                            \
		__uint(max_entries, 1);                                                            \
		__type(key, __u64);                                                                \
		__type(value, struct histograms);                                                  \
	} netns_histograms SEC(".maps");                                                           \
                                                                                                   \
	static __always_inline __attribute__((unused)) struct histograms *                         \
	histograms_of_netns(__u64 id)                                                              \
	{                                                                                          \
		struct histograms *h = bpf_map_lookup_elem(&netns_histograms, &id);                \
		__u64 none = NETNS_NONE;                                                           \
                                                                                                   \
		return h ? h : bpf_map_lookup_elem(&netns_histograms, &none);                      \
	}

/* measured_of_node counts a latency in a histogram of the node. */
#define measured_of_node(which, ns, how)                                                               \
	do {                                                                                       \
		if (keep_histograms != HISTOGRAMS_OFF) {                                             \
			struct histograms *of_node = histograms_of_node();                         \
                                                                                                   \
			if (of_node)                                                               \
				histogram_add(&of_node->of[which], ns, how);                       \
		}                                                                                  \
	} while (0)

/* measured_of counts a latency in a histogram of the node, or of the owner.
 * The owner is only looked up in the second case. */
#define measured_of(which, ns, owner, how)                                                         \
	do {                                                                                       \
		if (keep_histograms == HISTOGRAMS_PODS) {                                            \
			struct histograms *of_netns = histograms_of_netns(netns_id(owner));        \
                                                                                                   \
			if (of_netns)                                                              \
				histogram_add(&of_netns->of[which], ns, how);                       \
		} else {                                                                           \
			measured_of_node(which, ns, how);                                          \
		}                                                                                  \
	} while (0)

#endif
