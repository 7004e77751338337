/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* When a packet passed a point: a table of fixed size, one slot per hash.
 *
 * Nothing is allocated for a packet and nothing needs cleaning after one: a
 * later packet takes the slot. Two that meet in a slot cost one measurement. */

#ifndef NODESKOOP_STAMP_H
#define NODESKOOP_STAMP_H

#include "kernel.h"

struct stamp {
	__u64 check; /* key, time and the packet's identity in one, see below */
	__u64 time_ns;
};

#define DEFINE_STAMPS(name)                                                                        \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(max_entries, 8192);                                                         \
		__type(key, __u32);                                                                \
		__type(value, struct stamp);                                                       \
	} name SEC(".maps")

/* One less than the number of slots, which is a power of two. */
const volatile __u32 stamp_mask = 8191;

static __always_inline __u32 stamp_slot(__u64 key)
{
	return key * 0x9E3779B97F4A7C15ull >> 40 & stamp_mask;
}

/* Two CPUs may write one slot at a time, and a pointer is soon the next
 * packet's. So a slot counts only if its words fit together, and fit the
 * identity: what tells this packet from another that had its address before,
 * zero if nothing does. */
static __always_inline __u64 stamp_check(__u64 key, __u64 identity, __u64 time_ns)
{
	return key ^ time_ns ^ (identity << 17 | identity >> 47);
}

static __always_inline void stamp_set(void *stamps, __u64 key, __u64 identity, __u64 now)
{
	__u32 slot = stamp_slot(key);
	struct stamp *s = bpf_map_lookup_elem(stamps, &slot);

	if (!s)
		return;
	s->check = stamp_check(key, identity, now);
	s->time_ns = now;
}

/* stamp_take gives when the packet passed and forgets it, or 0. */
static __always_inline __u64 stamp_take(void *stamps, __u64 key, __u64 identity)
{
	__u32 slot = stamp_slot(key);
	struct stamp *s = bpf_map_lookup_elem(stamps, &slot);
	__u64 time_ns;

	if (!s)
		return 0;
	time_ns = s->time_ns;
	if (!time_ns || s->check != stamp_check(key, identity, time_ns))
		return 0;
	s->time_ns = 0;
	return time_ns;
}

#endif
