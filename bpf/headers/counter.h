/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Counters by network namespace, one copy per CPU.
 *
 * A program of the packet path can be interrupted by itself (a drop in a
 * softirq during a drop in process context), so additions are atomic even
 * though no other CPU touches the copy. */

#ifndef NODESKOOP_COUNTER_H
#define NODESKOOP_COUNTER_H

#include "kernel.h"

/* The namespace that takes what belongs to no known one, and what found the
 * table full: the loader makes its entry before anything is attached, so that
 * no occurrence goes uncounted. */
#define NETNS_NONE 0

#define COUNTER_SLOTS 4

/* One size for all probes, so that one reader serves them all. */
struct counter {
	__u64 slot[COUNTER_SLOTS];
};

#define DEFINE_COUNTERS()                                                                          \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_HASH);                                            \
		__uint(max_entries, 1024);                                                         \
		__type(key, __u32);                                                                \
		__type(value, struct counter);                                                     \
	} counters SEC(".maps");                                                                   \
                                                                                                   \
	static __always_inline __attribute__((unused)) struct counter *counter_of(__u32 netns)                             \
	{                                                                                          \
		struct counter *c = bpf_map_lookup_elem(&counters, &netns), zero = {};             \
		__u32 none = NETNS_NONE;                                                           \
                                                                                                   \
		if (c)                                                                             \
			return c;                                                                  \
		bpf_map_update_elem(&counters, &netns, &zero, BPF_NOEXIST);                        \
		c = bpf_map_lookup_elem(&counters, &netns);                                        \
		return c ? c : bpf_map_lookup_elem(&counters, &none);                              \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) void count(__u32 netns, __u32 slot)                                 \
	{                                                                                          \
		struct counter *c = counter_of(netns);                                             \
                                                                                                   \
		if (c && slot < COUNTER_SLOTS)                                                       \
			__sync_fetch_and_add(&c->slot[slot], 1);                                   \
	}

/* For what concerns the whole node: one entry, no lookup of a namespace. */
#define DEFINE_HOST_COUNTERS()                                                                     \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__type(value, struct counter);                                                     \
	} counters SEC(".maps");                                                                   \
                                                                                                   \
	static __always_inline __attribute__((unused)) struct counter *counter_of_host(void)                               \
	{                                                                                          \
		__u32 zero = 0;                                                                    \
                                                                                                   \
		return bpf_map_lookup_elem(&counters, &zero);                                      \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) void count(__u32 netns, __u32 slot)                                 \
	{                                                                                          \
		struct counter *c = counter_of_host();                                             \
                                                                                                   \
		(void)netns;                                                                       \
		if (c && slot < COUNTER_SLOTS)                                                       \
			__sync_fetch_and_add(&c->slot[slot], 1);                                   \
	}

#endif
