// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* biolatency: how long block devices take, and for whom. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { SLOW, SLOW100, SLOTS };

GO_TYPES(enum slot slot;);

const volatile __u64 slow_ns = 10000000;
const volatile __u64 slow100_ns = 100000000;

/* Where the older tracepoints have the request: behind its queue, on kernels
 * that still pass one. */
const volatile bool queue_first = false;

DEFINE_HOST_COUNTERS();

struct issued {
	__u64 time_ns;
	__u32 pid;
	__u8 comm[16];
};

/* When the request was allocated, by the clock of bpf_ktime_get_ns(); 0 where
 * neither statistics nor a scheduler want to know. A request that another was
 * merged into has the earlier time of the two. */
struct request___times {
	__u64 start_time_ns;
} __attribute__((preserve_access_index));

/* A device has a fixed number of requests, whose structures it uses again and
 * again, so the map stays small. A request may end without block_rq_complete:
 * it is merged into another in the scheduler's queue, or given back before it
 * was issued. Its entry is that of an earlier use of the structure then. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct issued);
} requests SEC(".maps");

/* The two clocks may differ by nanoseconds, and an entry that is stale by less
 * than a millisecond does no harm. */
static __always_inline bool is_stale(const struct request *rq, const struct issued *i)
{
	return i->time_ns + 1000000 < BPF_CORE_READ((const struct request___times *)rq, start_time_ns);
}

/* `again`: the request may have been seen earlier on its way. */
static __always_inline int started(const struct request *rq, bool again)
{
	struct issued i = { .time_ns = bpf_ktime_get_ns() };
	__u64 key = (__u64)rq;
	struct issued *before;

	if (again) {
		before = bpf_map_lookup_elem(&requests, &key);
		if (before && is_stale(rq, before))
			again = false;
	}
	i.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(i.comm, sizeof(i.comm));
	bpf_map_update_elem(&requests, &key, &i, again ? BPF_NOEXIST : BPF_ANY);
	return 0;
}

static __always_inline const struct gendisk *disk_of(const struct request *rq)
{
	const struct request___disk *old = (const struct request___disk *)rq;

	if (bpf_core_field_exists(old->rq_disk))
		return BPF_CORE_READ(old, rq_disk);
	return BPF_CORE_READ(rq, q, disk);
}

static __always_inline int done(const struct request *rq)
{
	__u64 key = (__u64)rq, now, latency;
	struct issued *i = bpf_map_lookup_elem(&requests, &key);
	const struct gendisk *disk;
	__u32 type = EVENT_BIOLAT_10MS;
	struct event *e;

	if (!i)
		return 0;
	now = bpf_ktime_get_ns();
	latency = now - i->time_ns;
	if (latency >= slow_ns) {
		count_host(SLOW);
		if (latency >= slow100_ns) {
			count_host(SLOW100);
			type = EVENT_BIOLAT_100MS;
		}
		e = event_reserve_host(type, now, sizeof(*e));
		if (e) {
			e->latency_ns = latency;
			e->detail = BPF_CORE_READ(rq, cmd_flags) & 0xff;
			e->pid = i->pid;
			__builtin_memcpy(e->comm, i->comm, sizeof(e->comm));
			disk = disk_of(rq);
			if (disk)
				BPF_CORE_READ_STR_INTO(&e->name, disk, disk_name);
			event_submit(e);
		}
	}
	bpf_map_delete_elem(&requests, &key);
	return 0;
}

SEC("raw_tp/block_io_start")
int raw_io_start(struct bpf_raw_tracepoint_args *ctx)
{
	return started((const struct request *)ctx->args[0], false);
}

SEC("raw_tp/block_io_done")
int raw_io_done(struct bpf_raw_tracepoint_args *ctx)
{
	return done((const struct request *)ctx->args[0]);
}

SEC("raw_tp/block_rq_insert")
int raw_rq_insert(struct bpf_raw_tracepoint_args *ctx)
{
	return started((const struct request *)(queue_first ? ctx->args[1] : ctx->args[0]), false);
}

/* Only what took no detour through a scheduler's queue begins here. */
SEC("raw_tp/block_rq_issue")
int raw_rq_issue(struct bpf_raw_tracepoint_args *ctx)
{
	return started((const struct request *)(queue_first ? ctx->args[1] : ctx->args[0]), true);
}

SEC("raw_tp/block_rq_complete")
int raw_rq_complete(struct bpf_raw_tracepoint_args *ctx)
{
	return done((const struct request *)ctx->args[0]);
}
