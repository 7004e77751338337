/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Times at which packets passed a point, in a table of fixed size with buckets of
 * four.
 *
 * No memory is allocated per packet, and no cleanup is needed. A packet takes the
 * entry that its address had before, else a free one of its bucket, else the oldest
 * one. A long-waiting packet thus keeps its entry while thousands of others pass. A
 * measurement is lost only if four more packets wait at the same time in the same
 * bucket: of n waiting packets in b buckets a share of about (n / b)^4 / 120. */

#ifndef NODESKOOP_STAMP_H
#define NODESKOOP_STAMP_H

#include "kernel.h"

#define STAMP_WAYS 4

struct stamp {
	__u32 key;
	__u32 identity;
	__u64 time_ns; /* 0: free */
};

/* One cache line, so that searching the whole bucket costs as much as reading its
 * first entry. */
struct stamp_bucket {
	struct stamp way[STAMP_WAYS];
};

/* The number of buckets is a power of two, at most 2^13. */
#define DEFINE_STAMPS(name, buckets)                                                               \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(max_entries, buckets);                                                      \
		__type(key, __u32);                                                                \
		__type(value, struct stamp_bucket);                                                \
	} name SEC(".maps")

/* The bucket and the tag of an entry use different bits of the key. */
static __always_inline __u64 stamp_mix(__u64 x)
{
	return x * 0x9E3779B97F4A7C15ull;
}

/* stamp_set notes that a packet passes now. The key is the packet's address. The
 * identity distinguishes it from an earlier packet at the same address; zero if
 * nothing does.
 *
 * If two CPUs write one entry at the same time, it gets the key of one and the time
 * of the other, which are practically the same. */
static __always_inline void stamp_set(void *stamps, __u32 buckets, __u64 key, __u64 identity,
				      __u64 now)
{
	__u64 mixed = stamp_mix(key);
	__u32 slot = mixed >> 51 & (buckets - 1), kept = mixed >> 16;
	struct stamp_bucket *b = bpf_map_lookup_elem(stamps, &slot);
	struct stamp *s;

	if (!b)
		return;
	s = &b->way[0];
#pragma unroll
	for (int i = 0; i < STAMP_WAYS; i++) {
		struct stamp *w = &b->way[i];

		if (w->key == kept) {
			s = w;
			break;
		}
		if (w->time_ns < s->time_ns)
			s = w;
	}
	s->key = kept;
	s->identity = stamp_mix(identity) >> 32;
	s->time_ns = now;
}

/* stamp_take returns the time at which the packet passed and removes it, or 0. */
static __always_inline __u64 stamp_take(void *stamps, __u32 buckets, __u64 key, __u64 identity)
{
	__u64 mixed = stamp_mix(key), time_ns;
	__u32 slot = mixed >> 51 & (buckets - 1), kept = mixed >> 16;
	struct stamp_bucket *b = bpf_map_lookup_elem(stamps, &slot);

	if (!b)
		return 0;
#pragma unroll
	for (int i = 0; i < STAMP_WAYS; i++) {
		struct stamp *w = &b->way[i];

		if (w->key != kept)
			continue;
		if (w->identity != (__u32)(stamp_mix(identity) >> 32))
			return 0;
		time_ns = w->time_ns;
		w->time_ns = 0;
		return time_ns;
	}
	return 0;
}

#endif
