/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Counters by network namespace, one copy per CPU.
 *
 * A program of the packet path can be interrupted by itself (a drop in a
 * softirq during a drop in process context), so additions are atomic even
 * though no other CPU touches the copy. */

#ifndef NODESKOOP_COUNTER_H
#define NODESKOOP_COUNTER_H

#include "kernel.h"
#include "room.h"

/* The pseudo-namespace for unattributed occurrences and those without room. The
 * loader creates its entry before programs are attached, so that every occurrence
 * is counted. */
#define NETNS_NONE 0

#define COUNTER_SLOTS 5

/* One size for all probes, so that they share one reader. */
struct counter {
	__u64 slot[COUNTER_SLOTS];
	/* On the CPU that created the entry the room that it occupies, else 0; in the
	 * entry of NETNS_NONE the number of occurrences without room. */
	__u64 mark;
};

#define DEFINE_COUNTERS()                                                                          \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_HASH);                                            \
		__uint(max_entries, 1024);                                                         \
		__type(key, __u64);                                                                \
		__type(value, struct counter);                                                     \
	} counters SEC(".maps");                                                                   \
                                                                                                   \
	DEFINE_SHARES(counter_shares, ROOMS);                                                      \
                                                                                                   \
	static __always_inline __attribute__((unused)) struct counter *counter_of(struct owner o)  \
	{                                                                                          \
		__u64 id = netns_id(o), none = NETNS_NONE;                                         \
		struct counter *c = bpf_map_lookup_elem(&counters, &id), fresh = {};               \
                                                                                                   \
		if (c)                                                                             \
			return c;                                                                  \
		fresh.mark = take_room(&counter_shares, o);                                        \
		if (fresh.mark != NO_ROOM) {                                                       \
			bpf_map_update_elem(&counters, &id, &fresh, BPF_NOEXIST);                  \
			c = bpf_map_lookup_elem(&counters, &id);                                   \
			if (c)                                                                     \
				return c;                                                          \
		}                                                                                  \
		c = bpf_map_lookup_elem(&counters, &none);                                         \
		if (c)                                                                             \
			__sync_fetch_and_add(&c->mark, 1);                                         \
		return c;                                                                          \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) void count(struct owner o, __u32 slot)      \
	{                                                                                          \
		struct counter *c = counter_of(o);                                                 \
                                                                                                   \
		if (c && slot < COUNTER_SLOTS)                                                     \
			__sync_fetch_and_add(&c->slot[slot], 1);                                   \
	}

/* For node-wide probes: one entry, no lookup of a namespace. */
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
	static __always_inline __attribute__((unused)) void count_host(__u32 slot)               \
	{                                                                                          \
		struct counter *c = counter_of_host();                                             \
                                                                                                   \
		if (c && slot < COUNTER_SLOTS)                                                       \
			__sync_fetch_and_add(&c->slot[slot], 1);                                   \
	}

#endif
