/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Events: records of single occurrences for user space.
 *
 * All probes share one ring. Before an event takes room in the ring, it must pass a
 * token bucket of its type and namespace, so that a flood of one kind leaves room
 * for others. Namespaces that user space follows have buckets of their own; all
 * others share buckets, see room.h. Each outcome is counted per CPU and type: seen
 * = written to the ring + ignored + suppressed + lost, at any time. */

#ifndef NODESKOOP_EVENT_H
#define NODESKOOP_EVENT_H

#include "event_types.h"
#include "kernel.h"
#include "room.h"
#include "tuple.h"

#define EVENT_POINTS 3
#define EVENT_STACK 20

struct event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 latency_ns;
	__u64 points_ns[EVENT_POINTS];
	__u64 location;
	struct tuple tuple;
	__u32 netns;
	__u32 reason;
	__u32 pid; /* thread group ID, in the initial PID namespace */
	__u32 cpu;
	__u32 detail; /* softirq vector, kind of retransmission, block operation */
	__u32 ifindex;
	__u16 type;
	__u8 tcp_state;
	__u8 stack_depth; /* number of addresses that follow, see struct event_stack */
	__u32 bytes; /* size of a block I/O */
	__u8 comm[16];
	__u8 name[32]; /* name of the device or the disk */
};

/* Reasons that no kernel uses. */
enum reason {
	REASON_NONE = 0xffffffff, /* the kernel gives no reasons */
	REASON_OVERFLOW = 0xfffffffe, /* found no room; set by user space */
};

/* For event types with a kernel stack. */
struct event_stack {
	struct event event;
	__u64 stack[EVENT_STACK];
};

/* Puts the types of the ring's records into the object's BTF, where a test compares
 * them with those of shared.bpf.c, from which Go's types are generated. */
struct event_stack *const event_layout = NULL;

struct event_limit {
	__u64 interval_ns; /* average time between two events; 0: the type is off */
	__u64 tolerance_ns; /* how far ahead of the average a burst may get */
};

struct event_account {
	__u64 seen;
	__u64 suppressed;
	__u64 lost;
	__u64 ignored;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, EVENT_TYPES);
	__type(key, __u32);
	__type(value, struct event_limit);
} event_limits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EVENT_TYPES);
	__type(key, enum event_type);
	__type(value, struct event_account);
} event_accounts SEC(".maps");

/* By type: when the bucket will be full again, and the number of suppressed events. */
struct event_bucket {
	__u64 full[EVENT_TYPES];
	__u64 held[EVENT_TYPES];
};

/* Keyed by namespace, or by room. Only user space creates entries; those of the
 * rooms exist before programs are attached. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct event_bucket);
} event_buckets SEC(".maps");

enum event_verdict { EVENT_HELD, EVENT_ALLOWED, EVENT_BUSY };

/* EVENT_BUSY means allowed, with more than half of the bucket used. */
static __always_inline enum event_verdict event_allowed(__u32 type, struct owner o,
							const struct event_limit *limit, __u64 now)
{
	struct event_bucket *b = bpf_map_lookup_elem(&event_buckets, &o.netns);
	__u64 *full;
	__u32 room;

	if (!b) {
		room = room_of(o.net);
		b = bpf_map_lookup_elem(&event_buckets, &room);
	}
	if (!b || type >= EVENT_TYPES)
		return EVENT_HELD; /* cannot happen: every room has an entry */
	full = &b->full[type];
	/* Racing CPUs let at most one extra event each pass; the accounts stay exact. */
	if (*full < now) {
		*full = now + limit->interval_ns;
		return EVENT_ALLOWED;
	}
	if (*full - now > limit->tolerance_ns) {
		/* A bucket emptied under an earlier, narrower limit must not stay closed
		 * longer than the current limit could close it. */
		if (*full - now > limit->tolerance_ns + limit->interval_ns)
			*full = now + limit->tolerance_ns + limit->interval_ns;
		__sync_fetch_and_add(&b->held[type], 1);
		return EVENT_HELD;
	}
	__sync_fetch_and_add(full, limit->interval_ns);
	return *full - now > limit->tolerance_ns / 2 ? EVENT_BUSY : EVENT_ALLOWED;
}

/* Returns the account of an event type, NULL if the type is off. */
static __always_inline struct event_account *event_account_of(__u32 type,
							      const struct event_limit **limit)
{
	*limit = bpf_map_lookup_elem(&event_limits, &type);
	if (!*limit || !(*limit)->interval_ns)
		return NULL;
	return bpf_map_lookup_elem(&event_accounts, &type);
}

/* event_ignore counts an occurrence that is never reported. It bypasses the token
 * buckets, so it takes no tokens from reported events. */
static __always_inline __attribute__((unused)) void event_ignore(__u32 type)
{
	const struct event_limit *limit;
	struct event_account *account = event_account_of(type, &limit);

	if (!account)
		return;
	__sync_fetch_and_add(&account->seen, 1);
	__sync_fetch_and_add(&account->ignored, 1);
}

/* event_reserve returns a zeroed event with type, namespace, time and CPU set, or
 * NULL if the type is off, its bucket is empty, or the ring is full. For namespaces
 * that have used more than half of their bucket, the ring counts as full when it is
 * half full, which leaves room for quiet namespaces. `size` is a constant: that of
 * struct event or struct event_stack. The caller fills and submits the event; no
 * step in between may fail. */
static __always_inline void *event_reserve(__u32 type, struct owner o, __u64 now, const __u64 size)
{
	const struct event_limit *limit;
	struct event_account *account = event_account_of(type, &limit);
	enum event_verdict verdict;
	struct event *e = NULL;

	if (!account)
		return NULL;
	__sync_fetch_and_add(&account->seen, 1);
	verdict = event_allowed(type, o, limit, now);
	if (verdict == EVENT_HELD) {
		__sync_fetch_and_add(&account->suppressed, 1);
		return NULL;
	}
	if (verdict == EVENT_ALLOWED ||
	    bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) <
		    bpf_ringbuf_query(&events, BPF_RB_RING_SIZE) / 2)
		e = bpf_ringbuf_reserve(&events, size, 0);
	if (!e) {
		__sync_fetch_and_add(&account->lost, 1);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time_ns = now;
	e->type = type;
	e->netns = o.netns;
	e->cpu = bpf_get_smp_processor_id();
	return e;
}

/* For node-wide events. */
static __always_inline __attribute__((unused)) void *event_reserve_host(__u32 type, __u64 now,
									const __u64 size)
{
	struct owner nobody = {};

	return event_reserve(type, nobody, now, size);
}

static __always_inline void event_set_process(struct event *e)
{
	e->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(e->comm, sizeof(e->comm));
}

static __always_inline void event_set_dev(struct event *e, const struct net_device *dev)
{
	if (!dev)
		return;
	e->ifindex = BPF_CORE_READ(dev, ifindex);
	BPF_CORE_READ_STR_INTO(&e->name, dev, name);
}

#define event_set_stack(ctx, es)                                                                   \
	do {                                                                                       \
		long bytes = bpf_get_stack(ctx, (es)->stack, sizeof((es)->stack), 0);              \
                                                                                                   \
		(es)->event.stack_depth = bytes > 0 ? bytes / sizeof((es)->stack[0]) : 0;          \
	} while (0)

#define event_submit(e) bpf_ringbuf_submit(e, 0)

#endif
