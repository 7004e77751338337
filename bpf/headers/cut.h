/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Times at which the bytes of GSO packets were queued, for the segments that a
 * queueing discipline (tbf, cake, taprio, netem) or the path to the driver makes of
 * them.
 *
 * A segment is a new skb, so its address is no key. Segments are matched by:
 *
 * - the send time, which TCP writes into each packet and segments inherit (a
 *   burst). Packets of one burst are queued at the same moment;
 * - else, for forwarded TCP, the sequence numbers of the flow (a range);
 * - else, for UDP, the memory of the payload, which segments share (a range).
 *
 * Entries are in buckets of four as in stamp.h. A segment leaves the entry in
 * place, since the other segments need it too. The entry is removed with the last
 * segment, or with the GSO packet itself if that is sent whole. If a qdisc drops
 * the packet, its entry stays until it is the oldest of its bucket. */

#ifndef NODESKOOP_CUT_H
#define NODESKOOP_CUT_H

#include "stamp.h"
#include "tuple.h"

#define CUT_BUCKETS 8192
#define CUT_WAYS 4

struct cut {
	__u32 tag;
	__u32 start; /* first byte of a range; 0 for a burst */
	__u32 length; /* bytes of a range, or remaining segments of a burst */
	__u32 unused;
	__u64 time_ns; /* 0: free */
};

struct cut_bucket {
	struct cut way[CUT_WAYS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CUT_BUCKETS);
	__type(key, __u32);
	__type(value, struct cut_bucket);
} cuts SEC(".maps");

/* When a device last queued a GSO packet: segments are looked up only for some time
 * after. */
#define CUT_DEVICES 256
#define CUT_DEVICE_NS (600ull * 1000000000)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CUT_DEVICES);
	__type(key, __u32);
	__type(value, __u64);
} cut_devices SEC(".maps");

/* Part of a packet's data. The names of the fields differ between kernels, their
 * offsets do not. */
struct fragment {
	__u64 page;
	__u32 length;
	__u32 offset;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct skb_shared_info {
	__u8 nr_frags;
	unsigned short gso_size;
	unsigned short gso_segs;
	struct fragment frags[17];
};

struct sk_buff___cut {
	unsigned int end;
};

struct net_device___cut {
	unsigned int mtu;
};

#pragma clang attribute pop

/* Number of fragments noted per packet: the default of MAX_SKB_FRAGS. */
#define CUT_FRAGMENTS 17

enum cut_operation { CUT_ADD, CUT_REMOVE };

static __always_inline __u64 *cut_device(__u64 device)
{
	__u32 slot = stamp_mix(device) >> 40 & (CUT_DEVICES - 1);

	return bpf_map_lookup_elem(&cut_devices, &slot);
}

static __always_inline bool cut_expected(__u64 device, __u64 now)
{
	__u64 *last = cut_device(device);

	/* Another CPU may have written a later time. */
	return last && *last && *last + CUT_DEVICE_NS > now;
}

static __always_inline struct cut_bucket *cut_bucket(__u64 mixed)
{
	__u32 slot = mixed >> 51 & (CUT_BUCKETS - 1);

	return bpf_map_lookup_elem(&cuts, &slot);
}

static __always_inline __u32 cut_tag(__u64 mixed)
{
	return mixed >> 16;
}

/* Returns the entry that a new one replaces. */
static __always_inline struct cut *cut_oldest(struct cut_bucket *b)
{
	struct cut *oldest = &b->way[0];

#pragma unroll
	for (int i = 1; i < CUT_WAYS; i++)
		if (b->way[i].time_ns < oldest->time_ns)
			oldest = &b->way[i];
	return oldest;
}

/* Bursts */

static __always_inline __u64 burst_of(__u64 mstamp_ns, __u64 device)
{
	return stamp_mix(mstamp_ns ^ stamp_mix(device));
}

static __always_inline struct cut *burst_find(struct cut_bucket *b, __u32 tag)
{
#pragma unroll
	for (int i = 0; i < CUT_WAYS; i++) {
		struct cut *w = &b->way[i];

		if (w->time_ns && w->tag == tag && !w->start)
			return w;
	}
	return NULL;
}

static __always_inline void burst_add(__u64 mixed, __u32 segments, __u64 now)
{
	struct cut_bucket *b = cut_bucket(mixed);
	struct cut *w;

	if (!b)
		return;
	w = burst_find(b, cut_tag(mixed));
	if (w) {
		w->length += segments;
	} else {
		w = cut_oldest(b);
		w->tag = cut_tag(mixed);
		w->start = 0;
		w->length = segments;
	}
	w->time_ns = now;
}

static __always_inline __u64 burst_take(__u64 mixed, __u32 segments)
{
	struct cut_bucket *b = cut_bucket(mixed);
	struct cut *w = b ? burst_find(b, cut_tag(mixed)) : NULL;
	__u64 time_ns;

	if (!w)
		return 0;
	time_ns = w->time_ns;
	if (w->length > segments)
		w->length -= segments;
	else
		w->time_ns = 0;
	return time_ns;
}

/* The number space is divided into blocks at least as long as the range, so a range
 * touches at most two blocks, and few ranges of one size share a block. A lookup
 * tries each block size. */

#define RANGE_SHIFT_MIN 9
#define RANGE_SHIFT_MAX 20

static __always_inline __u64 range_block(__u64 key, __u32 shift, __u32 at)
{
	return stamp_mix(key ^ ((__u64)(at >> shift) << 5 | shift));
}

static __always_inline __u32 range_shift(__u32 length)
{
	__u32 shift = RANGE_SHIFT_MIN;

#pragma unroll
	for (int s = RANGE_SHIFT_MIN; s < RANGE_SHIFT_MAX; s++)
		if (length > 1u << s)
			shift = s + 1;
	return shift;
}

static __always_inline void range_set(__u64 mixed, __u32 start, __u32 length, __u64 time_ns)
{
	struct cut_bucket *b = cut_bucket(mixed);
	struct cut *w;

	if (!b)
		return;
	w = cut_oldest(b);
#pragma unroll
	for (int i = 0; i < CUT_WAYS; i++) {
		struct cut *same = &b->way[i];

		if (same->time_ns && same->tag == cut_tag(mixed) && same->start == start &&
		    same->length == length)
			w = same;
	}
	if (!time_ns) {
		/* Remove only a matching entry. */
		if (w->tag == cut_tag(mixed) && w->start == start && w->length == length)
			w->time_ns = 0;
		return;
	}
	w->tag = cut_tag(mixed);
	w->start = start;
	w->length = length;
	w->time_ns = time_ns;
}

/* The functions below that are not inlined are global, so the verifier checks them
 * once instead of at each call. Global functions take numbers only. */

/* A time of zero removes the range. */
__noinline int range_put(__u64 key, __u32 start, __u32 length, __u64 time_ns)
{
	__u32 shift = range_shift(length);
	__u64 first = range_block(key, shift, start);
	__u64 last = range_block(key, shift, start + length - 1);

	range_set(first, start, length, time_ns);
	if (last != first)
		range_set(last, start, length, time_ns);
	return 0;
}

/* Returns the time of the newest range that contains the byte `at`, and removes the
 * entries of ranges that end with these bytes. */
__noinline __u64 range_take(__u64 key, __u32 at, __u32 length)
{
	__u64 newest = 0;

	for (__u32 shift = RANGE_SHIFT_MIN; shift <= RANGE_SHIFT_MAX; shift++) {
		__u64 mixed = range_block(key, shift, at);
		struct cut_bucket *b = cut_bucket(mixed);

		if (!b)
			continue;
#pragma unroll
		for (int i = 0; i < CUT_WAYS; i++) {
			struct cut *w = &b->way[i];
			__u64 time_ns = w->time_ns;
			__u32 into = at - w->start;

			if (w->tag != cut_tag(mixed) || into >= w->length || !time_ns)
				continue;
			if (time_ns > newest)
				newest = time_ns;
			if (into + length >= w->length ||
			    (at & ((1u << shift) - 1)) + length >= 1u << shift)
				w->time_ns = 0;
		}
	}
	return newest;
}

/* A property of a packet, besides the send time, that its segments inherit. */
struct extent {
	__u64 key;
	__u32 start;
	__u32 length;
	bool known;
};

static __always_inline __u64 cut_mix(__u64 key, __u64 value)
{
	key = stamp_mix(key ^ value);
	return key ^ key >> 32;
}

/* Sets the extent to the sequence numbers of a TCP packet; `length` is that of its
 * data. */
static __always_inline void extent_of_tcp(const struct sk_buff *skb, __u64 device,
					  struct extent *x)
{
	unsigned char *head = BPF_CORE_READ(skb, head);
	struct packet p = {
		.head = head,
		.end = BPF_CORE_READ(skb, tail),
	};
	__u32 skipped, total = BPF_CORE_READ(skb, len);
	__u64 data = (__u64)BPF_CORE_READ(skb, data);
	struct headers h = {};
	struct tuple t;
	__be32 tcp[3];
	const __u64 *words = (const __u64 *)&t;

	if (!tuple_parse(&p, BPF_CORE_READ(skb, network_header), 0, &t, &h) ||
	    t.protocol != IPPROTO_TCP || !h.first ||
	    packet_read(&p, h.l4 + 4, tcp, sizeof(tcp)))
		return;
	skipped = h.l4 + (bpf_ntohl(tcp[2]) >> 28) * 4 - (__u32)(data - (__u64)head);
	if (total <= skipped)
		return;
	x->key = device;
	for (int i = 0; i < sizeof(t) / sizeof(*words); i++)
		x->key = cut_mix(x->key, words[i]);
	x->start = bpf_ntohl(tcp[0]);
	x->length = total - skipped;
	x->known = true;
}

/* Sets the extent to the memory of a fragment, as a number that is contiguous for
 * contiguous memory: struct page has 64 bytes for each page of 4,096. */
static __always_inline void extent_of_fragment(const struct fragment *f, __u64 device,
					       struct extent *x)
{
	__u64 at = (f->page << 6) + f->offset;

	x->key = cut_mix(device, at >> 32);
	x->start = at;
	x->length = f->length;
	x->known = f->length;
}

static __always_inline const void *shared_info(const struct sk_buff *skb)
{
	return BPF_CORE_READ(skb, head) + BPF_CORE_READ((const struct sk_buff___cut *)skb, end);
}

static __always_inline long fragment_read(const void *shared, __u32 i, struct fragment *f)
{
	return bpf_probe_read_kernel(
		f, sizeof(*f),
		shared + bpf_core_field_offset(struct skb_shared_info, frags) + i * sizeof(*f));
}

/* cut_note notes that a GSO packet was queued, or that it has left unsegmented. */
__noinline int cut_note(__u64 packet, __u64 device, __u64 now, __u32 operation)
{
	const struct sk_buff *skb = (const struct sk_buff *)packet;
	__u64 mstamp_ns = BPF_CORE_READ(skb, skb_mstamp_ns), *last;
	const struct skb_shared_info *shared = shared_info(skb);
	struct extent x = {};
	struct fragment f;
	__u32 fragments;

	if (operation == CUT_ADD) {
		last = cut_device(device);
		if (last && *last + 1000000000 < now)
			*last = now;
	}
	if (mstamp_ns) {
		__u32 segments = BPF_CORE_READ(shared, gso_segs);

		/* Packets from virtual machines may lack a segment count. */
		if (operation == CUT_ADD)
			burst_add(burst_of(mstamp_ns, device), segments ? segments : 0xffff, now);
		else
			burst_take(burst_of(mstamp_ns, device), segments ? segments : 0xffff);
		return 0;
	}
	if (operation == CUT_REMOVE)
		now = 0;
	extent_of_tcp(skb, device, &x);
	if (x.known) {
		range_put(x.key, x.start, x.length, now);
		return 0;
	}
	fragments = BPF_CORE_READ(shared, nr_frags);
	for (__u32 i = 0; i < CUT_FRAGMENTS; i++) {
		if (i >= fragments || fragment_read(shared, i, &f))
			break;
		extent_of_fragment(&f, device, &x);
		if (x.known)
			range_put(x.key, x.start, x.length, now);
	}
	return 0;
}

/* cut_take returns when the segment's original packet was queued, or 0. */
__noinline __u64 cut_take(__u64 packet, __u64 device)
{
	const struct sk_buff *skb = (const struct sk_buff *)packet;
	__u64 mstamp_ns = BPF_CORE_READ(skb, skb_mstamp_ns);
	const struct skb_shared_info *shared;
	struct extent x = {};
	struct fragment f;

	shared = shared_info(skb);
	if (mstamp_ns) {
		/* The segment may still be a GSO packet for the device to segment. */
		__u32 segments = BPF_CORE_READ(shared, gso_segs);

		return burst_take(burst_of(mstamp_ns, device), segments ? segments : 1);
	}
	extent_of_tcp(skb, device, &x);
	if (!x.known) {
		if (!BPF_CORE_READ(shared, nr_frags) || fragment_read(shared, 0, &f))
			return 0;
		extent_of_fragment(&f, device, &x);
	}
	return x.known ? range_take(x.key, x.start, x.length) : 0;
}

#endif
