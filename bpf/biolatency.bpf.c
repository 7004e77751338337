// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* biolatency: latency of block I/O.
 *
 * All I/O is counted. Events cover I/O that a process waits for: reads, synchronous
 * writes and flushes. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"
#include "headers/histogram.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { SLOW, SLOW100, SLOTS };

/* Numbers of enum req_op that are the same on all kernels. BACKGROUND marks I/O
 * that no process waits for. */
enum operation {
	READ = 0,
	WRITE = 1,
	FLUSH = 2,
	DISCARD = 3,
	SECURE_ERASE = 5,
	WRITE_ZEROES = 9,
	OPERATION = 0xff,
	BACKGROUND = 0x100,
};

/* The points of an event. */
enum point { QUEUE, DEVICE };


const volatile __u64 slow_ns = 10000000;
const volatile __u64 slow100_ns = 100000000;

/* Older tracepoints pass the queue before the request. */
const volatile bool queue_first = false;

/* Also send events for I/O that no process waits for. */
const volatile bool tell_background = false;

/* This process, whose own I/O causes no event, by its PID in the initial PID
 * namespace; 0: no process. */
const volatile __u32 own_pid = 0;

DEFINE_HOST_COUNTERS();

/* Whether a process waits for an I/O. File reads carry REQ_RAHEAD whether or not
 * a process waits for the first page (page_cache_sync_ra(),
 * page_cache_async_ra()). Completion tells the two cases apart. */
enum wait { NOBODY, SOMEBODY, READER };

/* The histograms of a disk by operation. Operations without a number of their own
 * count as OTHER. */
enum { OTHER = 4, OPERATIONS };

struct operation_histograms {
	struct histogram of[OPERATIONS];
};

/* Disks are numbered in the order of their first I/O, and counted by number. 0 stands
 * for the disks that find no room. */
#define DISKS 128

struct disk_name {
	char name[32]; /* as gendisk's disk_name */
};

GO_TYPES(enum slot slot; enum operation operation; enum point point; enum wait wait;
	 struct disk_name disk_name; struct operation_histograms disk_histograms;);

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DISKS);
	__type(key, __u32);
	__type(value, struct operation_histograms);
} disk_histograms SEC(".maps");

/* A disk's name is reused only when its disk is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DISKS);
	__type(key, struct disk_name);
	__type(value, __u32);
} disk_numbers SEC(".maps");

/* The free disk numbers. User space fills the list. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, DISKS);
	__type(value, __u32);
} free_numbers SEC(".maps");

/* The numbers of disks by their diskseq, which the kernel never reuses: looking one up
 * by name takes longer than all else at the end of an I/O. An entry is one word, so
 * that no reader sees half of it: the diskseq, and in its last byte the number. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DISKS);
	__type(key, __u32);
	__type(value, __u64);
} recent_disks SEC(".maps");

struct issued {
	__u64 time_ns;
	__u64 issue_ns; /* when the driver last took it; 0: not known */
	__u64 task; /* the task that started the I/O (struct task_struct), possibly gone */
	__u32 pid;
	__u32 tid;
	__u32 flags; /* at the start */
	__u32 bytes;
	__u8 operation;
	__u8 wait; /* enum wait */
	__u8 own;
	__u8 unused[5];
	__u8 comm[16];
};

/* When the request was allocated, by the clock of bpf_ktime_get_ns(); 0 if neither
 * statistics nor a scheduler need it. A merged request has the earlier of the two
 * times. */
struct request___times {
	__u64 start_time_ns;
} __attribute__((preserve_access_index));

/* A device has a fixed number of request structures, which it reuses, so the map
 * stays small. A request may end without block_rq_complete, when it is merged in
 * the scheduler's queue or freed before it was issued. Its entry is then outdated
 * when the structure is reused. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct issued);
} requests SEC(".maps");

#define REQ_FLAG(bit) (1u << bpf_core_enum_value(enum req_flag_bits, bit))

/* The two clocks may differ by nanoseconds, and an entry that is stale by less
 * than a millisecond does no harm. */
static __always_inline bool is_stale(const struct request *rq, const struct issued *i)
{
	return i->time_ns + 1000000 < BPF_CORE_READ((const struct request___times *)rq, start_time_ns);
}

static __always_inline enum wait who_waits(__u8 operation, __u32 flags)
{
	switch (operation) {
	case READ:
		return flags & REQ_FLAG(__REQ_RAHEAD) ? READER : SOMEBODY;
	case WRITE:
		return flags & (REQ_FLAG(__REQ_SYNC) | REQ_FLAG(__REQ_FUA) | REQ_FLAG(__REQ_PREFLUSH)) ? SOMEBODY : NOBODY;
	case FLUSH:
		return SOMEBODY;
	}
	return NOBODY; /* discards, zeroing, zones, the driver's own commands */
}

/* Call when nothing can be merged into the request any more: the operation is
 * final then. */
static __always_inline void note_issue(const struct request *rq, struct issued *i, __u64 now)
{
	__u32 flags = BPF_CORE_READ(rq, cmd_flags);

	i->bytes = BPF_CORE_READ(rq, __data_len);
	/* blk_insert_flush() removes these flags and sends flushes before or after the
	 * request. Their time is neither the queue's nor this request's in the device. */
	if (!(i->flags & ~flags & (REQ_FLAG(__REQ_PREFLUSH) | REQ_FLAG(__REQ_FUA))))
		i->issue_ns = now;
}

/* `issue` means that the request goes to the device at once. */
static __always_inline int started(const struct request *rq, bool issue)
{
	struct issued i = { .time_ns = bpf_ktime_get_ns() };
	__u64 key = (__u64)rq, id = bpf_get_current_pid_tgid();

	i.pid = id >> 32;
	i.tid = id;
	i.task = bpf_get_current_task();
	i.own = own_pid && i.pid == own_pid;
	bpf_get_current_comm(i.comm, sizeof(i.comm));
	i.flags = BPF_CORE_READ(rq, cmd_flags);
	i.operation = i.flags & OPERATION;
	/* A requested flush is a write of zero bytes (blkdev_issue_flush()). */
	if (i.operation == WRITE && i.flags & REQ_FLAG(__REQ_PREFLUSH) && !BPF_CORE_READ(rq, __data_len))
		i.operation = FLUSH;
	i.wait = who_waits(i.operation, i.flags);
	if (issue)
		note_issue(rq, &i, i.time_ns);
	bpf_map_update_elem(&requests, &key, &i, BPF_ANY);
	return 0;
}

static __always_inline const struct gendisk *disk_of(const struct request *rq)
{
	const struct request___disk *old = (const struct request___disk *)rq;

	if (bpf_core_field_exists(old->rq_disk))
		return BPF_CORE_READ(old, rq_disk);
	return BPF_CORE_READ(rq, q, disk);
}

/* The number of a disk by its name; a disk without one gets the next that is free. */
static __noinline __u32 number_by_name(const struct gendisk *disk)
{
	struct disk_name key = {};
	__u32 *known, number;

	bpf_core_read(&key.name, sizeof(key.name), &disk->disk_name);
	known = bpf_map_lookup_elem(&disk_numbers, &key);
	if (known)
		return *known;
	if (bpf_map_pop_elem(&free_numbers, &number))
		return 0;
	if (!bpf_map_update_elem(&disk_numbers, &key, &number, BPF_NOEXIST))
		return number;
	/* Another CPU has numbered the disk meanwhile. */
	bpf_map_push_elem(&free_numbers, &number, BPF_ANY);
	known = bpf_map_lookup_elem(&disk_numbers, &key);
	return known ? *known : 0;
}

static __always_inline __u32 number_of_disk(const struct gendisk *disk)
{
	__u64 *recent = NULL, seq = 0;
	__u32 number, at;

	if (bpf_core_field_exists(disk->diskseq)) {
		seq = BPF_CORE_READ(disk, diskseq);
		at = seq % DISKS;
		recent = bpf_map_lookup_elem(&recent_disks, &at);
		if (recent && *recent >> 8 == seq)
			return *recent & 0xff;
	}
	number = number_by_name(disk);
	if (recent && number)
		*(volatile __u64 *)recent = seq << 8 | number;
	return number;
}

static __always_inline void measured_of_disk(const struct request *rq, __u8 operation, __u64 ns)
{
	const struct gendisk *disk = disk_of(rq);
	__u32 number = disk ? number_of_disk(disk) : 0, of = operation > DISCARD ? OTHER : operation;
	struct operation_histograms *h = bpf_map_lookup_elem(&disk_histograms, &number);

	if (h)
		histogram_add(&h->of[of], ns, INTERRUPTED);
}

/* Call before the request's pages are unlocked, which wakes the reader. The
 * task may have ended and its structure may be reused. */
static __always_inline void look_for_reader(struct issued *i)
{
	const struct task_struct *task = (const struct task_struct *)i->task;

	if (i->wait == READER && BPF_CORE_READ(task, pid) == i->tid &&
	    BPF_CORE_READ_BITFIELD_PROBED(task, in_iowait))
		i->wait = SOMEBODY;
}

static __always_inline void tell(const struct request *rq, const struct issued *i, __u32 type, __u64 now)
{
	const struct gendisk *disk;
	struct event *e;

	if (i->own || (i->wait != SOMEBODY && !tell_background)) {
		event_ignore(type);
		return;
	}
	e = event_reserve_host(type, now, sizeof(*e));
	if (!e)
		return;
	e->latency_ns = now - i->time_ns;
	if (i->issue_ns) {
		e->points_ns[QUEUE] = i->issue_ns - i->time_ns;
		e->points_ns[DEVICE] = now - i->issue_ns;
	}
	e->detail = i->operation;
	if (i->wait != SOMEBODY)
		e->detail |= BACKGROUND;
	e->bytes = i->bytes;
	e->pid = i->pid;
	__builtin_memcpy(e->comm, i->comm, sizeof(e->comm));
	disk = disk_of(rq);
	if (disk)
		BPF_CORE_READ_STR_INTO(&e->name, disk, disk_name);
	event_submit(e);
}

/* `reading` means that the request's pages are still locked. */
static __always_inline int done(const struct request *rq, bool reading)
{
	__u64 key = (__u64)rq, now, latency;
	struct issued *i = bpf_map_lookup_elem(&requests, &key);

	if (!i)
		return 0;
	now = bpf_ktime_get_ns();
	latency = now - i->time_ns;
	if (keep_histograms != HISTOGRAMS_OFF)
		measured_of_disk(rq, i->operation, latency);
	if (latency >= slow_ns) {
		count_host(SLOW);
		if (latency >= slow100_ns)
			count_host(SLOW100);
		if (reading)
			look_for_reader(i);
		tell(rq, i, latency >= slow100_ns ? EVENT_BIOLAT_100MS : EVENT_BIOLAT_10MS, now);
	}
	bpf_map_delete_elem(&requests, &key);
	return 0;
}

SEC("raw_tp/block_io_start")
int raw_io_start(struct bpf_raw_tracepoint_args *ctx)
{
	return started((const struct request *)ctx->args[0], false);
}

static __always_inline const struct request *issued_request(struct bpf_raw_tracepoint_args *ctx)
{
	return (const struct request *)(queue_first ? ctx->args[1] : ctx->args[0]);
}

SEC("raw_tp/block_rq_issue")
int raw_io_issue(struct bpf_raw_tracepoint_args *ctx)
{
	const struct request *rq = issued_request(ctx);
	__u64 key = (__u64)rq;
	struct issued *i = bpf_map_lookup_elem(&requests, &key);

	if (i)
		note_issue(rq, i, bpf_ktime_get_ns());
	return 0;
}

/* block_io_done fires after the readers have been woken. */
SEC("raw_tp/block_rq_complete")
int raw_io_complete(struct bpf_raw_tracepoint_args *ctx)
{
	const struct request *rq = (const struct request *)ctx->args[0];
	__u64 key = (__u64)rq;
	struct issued *i;

	if (!(BPF_CORE_READ(rq, cmd_flags) & REQ_FLAG(__REQ_RAHEAD)))
		return 0;
	i = bpf_map_lookup_elem(&requests, &key);
	if (i && bpf_ktime_get_ns() - i->time_ns >= slow_ns)
		look_for_reader(i);
	return 0;
}

SEC("raw_tp/block_io_done")
int raw_io_done(struct bpf_raw_tracepoint_args *ctx)
{
	return done((const struct request *)ctx->args[0], false);
}

SEC("raw_tp/block_rq_insert")
int raw_rq_insert(struct bpf_raw_tracepoint_args *ctx)
{
	return started(issued_request(ctx), false);
}

/* Only requests that bypass a scheduler's queue start here. */
SEC("raw_tp/block_rq_issue")
int raw_rq_issue(struct bpf_raw_tracepoint_args *ctx)
{
	const struct request *rq = issued_request(ctx);
	__u64 key = (__u64)rq;
	struct issued *before = bpf_map_lookup_elem(&requests, &key);

	if (!before || is_stale(rq, before))
		return started(rq, true);
	note_issue(rq, before, bpf_ktime_get_ns());
	return 0;
}

SEC("raw_tp/block_rq_complete")
int raw_rq_complete(struct bpf_raw_tracepoint_args *ctx)
{
	return done((const struct request *)ctx->args[0], true);
}
