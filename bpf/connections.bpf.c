// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* connections: reads the kernel's table of TCP connections, which those of all
 * network namespaces share, for the probe tcpsummary. It runs only on request.
 *
 * sock_diag walks the same table (net/ipv4/inet_diag.c, inet_diag_dump_icsk), but
 * reports only one namespace, so each namespace costs a walk. It holds the lock of the
 * bucket that it reads. A BPF program cannot take that lock. It reads the bucket as
 * lookups do (Documentation/RCU/rculist_nulls.rst), and reads it again if the lock was
 * held or the bucket has changed. On arm64 a CPU may reorder these loads, so that a
 * connection whose socket is replaced in the same nanoseconds could be missed or counted
 * twice in one cycle. */

#include "headers/kernel.h"

/* More of the kernel's types, which only this program reads. The part of a name after
 * ___ is not the kernel's. */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct qspinlock {
	atomic_t val; /* 0: free */
};

struct raw_spinlock {
	struct qspinlock raw_lock;
};

struct spinlock {
	struct raw_spinlock rlock;
};

/* A real-time kernel's spinlock is a mutex. */
struct rt_mutex_base {
	struct task_struct *owner; /* NULL: free */
};

struct spinlock___rt {
	struct rt_mutex_base lock;
};

struct inet_ehash_bucket {
	void *chain;
};

struct inet_hashinfo {
	struct inet_ehash_bucket *ehash;
	struct spinlock *ehash_locks;
	unsigned int ehash_mask;
	unsigned int ehash_locks_mask;
	bool pernet; /* since 6.1: of one namespace */
};

struct inet_timewait_death_row {
	struct inet_hashinfo *hashinfo;
};

struct netns_ipv4 {
	struct inet_timewait_death_row tcp_death_row;
};

struct net___table {
	struct netns_ipv4 ipv4;
};

/* In some versions before 6.1 this was a pointer. */
struct netns_ipv4___pointer {
	struct inet_timewait_death_row *tcp_death_row;
};

struct net___pointer {
	struct netns_ipv4___pointer ipv4;
};

struct hlist_nulls_node {
	struct hlist_nulls_node *next;
};

struct sock_common___table {
	unsigned int skc_hash;
	struct hlist_nulls_node skc_nulls_node;
	unsigned char skc_state;
	possible_net_t skc_net;
};

struct inet_timewait_sock {
	unsigned char tw_substate;
};

struct tcp_sock___queues {
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 write_seq;
	__u32 snd_una;
};

#pragma clang attribute pop

enum { TCP_SYN_RECV = 3 };

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum {
	BUCKETS_PER_READ = 512,
	BUCKETS_PER_RUN = 4096,
	CONNECTIONS_PER_RUN = 1024,
	/* Each socket is a step, and so are the begin and the end of its bucket.
	 * Preemption is disabled during a run, so a run is short. */
	STEPS_PER_RUN = 1024,
};

/* A connection as sock_diag would tell it. */
struct connection {
	__u32 netns;
	__u32 state;
	__u32 rx;
	__u32 tx;
};

/* The state of a run, which the next run continues. */
struct table_run {
	__u32 used; /* number of buckets in "buckets" */
	__u32 at; /* the one to read */
	__u32 found; /* number of entries of "connections" from complete buckets */
	__u32 seen; /* and with those of the bucket under way */
	__u32 too_long; /* a bucket has more connections than fit into a run */
	__u32 mask; /* number of the table's last bucket */
};

volatile struct table_run progress;
struct connection connections[CONNECTIONS_PER_RUN];

/* Numbers of buckets that are not empty. */
static __u32 buckets[BUCKETS_PER_RUN];
static unsigned long heads[BUCKETS_PER_READ];
static char common[128]; /* of a socket, as far as its fields are needed */
/* The parts of the table. */
static const void *volatile chains, *volatile locks;
static volatile __u32 locks_mask;
static volatile unsigned long head; /* of the bucket under way */
static volatile unsigned long node; /* the next socket; 0: none */

static __always_inline struct inet_hashinfo *table_of(const void *net)
{
	const struct net___table *embedded = net;
	const struct net___pointer *pointer = net;

	if (bpf_core_field_exists(embedded->ipv4.tcp_death_row.hashinfo))
		return BPF_CORE_READ(embedded, ipv4.tcp_death_row.hashinfo);
	if (bpf_core_field_exists(pointer->ipv4.tcp_death_row))
		return BPF_CORE_READ(pointer, ipv4.tcp_death_row, hashinfo);
	return NULL;
}

/* Returns 1 if the calling thread's network namespace has its connections in the table
 * that is read, 0 if it has a table of its own (net.ipv4.tcp_child_ehash_entries), and
 * 2 if the program does not understand this kernel's table. */
SEC("raw_tp")
int shares_table(void *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct inet_hashinfo *of = table_of(BPF_CORE_READ(task, nsproxy, net_ns));

	if (!of)
		return 2;
	if (bpf_core_field_exists(of->pernet) && BPF_CORE_READ(of, pernet))
		return 0;
	/* All others have the same, which is made at boot and never changes. */
	progress.mask = BPF_CORE_READ(of, ehash_mask);
	if (progress.mask < BUCKETS_PER_READ - 1 || (progress.mask & (progress.mask + 1)) ||
	    bpf_core_type_size(struct inet_ehash_bucket) != sizeof(heads[0]))
		return 2;
	chains = BPF_CORE_READ(of, ehash);
	locks = BPF_CORE_READ(of, ehash_locks);
	locks_mask = BPF_CORE_READ(of, ehash_locks_mask);
	return 1;
}

/* Returns whether the lock is held that protects the bucket. */
static __always_inline bool locked(__u32 bucket)
{
	const void *lock = locks + (bucket & locks_mask) * (__u64)bpf_core_type_size(struct spinlock);
	const struct spinlock *spin = lock;
	const struct spinlock___rt *mutex = lock;

	if (bpf_core_field_exists(spin->rlock.raw_lock.val.counter))
		return BPF_CORE_READ(spin, rlock.raw_lock.val.counter) != 0;
	if (bpf_core_field_exists(mutex->lock.owner))
		return BPF_CORE_READ(mutex, lock.owner) != NULL;
	return false; /* a kernel for one CPU has no locks */
}

static __always_inline unsigned long head_of(__u32 bucket)
{
	unsigned long first = 0;

	bpf_probe_read_kernel(&first, sizeof(first), chains + bucket * sizeof(first));
	return first;
}

/* A field of "common", which has been read with all others. */
#define COMMON(type, field) (*(type *)(common + bpf_core_field_offset(struct sock_common___table, field)))

/* Adds a socket to "connections", and sets the next node. Returns false if the socket
 * cannot be read or is not in the bucket any more. */
static __always_inline bool add(const struct sock *sk, __u32 bucket)
{
	const struct sock_common___table *sock = (const void *)&sk->__sk_common;
	const struct tcp_sock___queues *tcp = (const void *)sk;
	struct connection *c;
	__u32 n = progress.seen;

	if (n >= CONNECTIONS_PER_RUN || bpf_probe_read_kernel(common, sizeof(common), sock))
		return false;
	c = &connections[n & (CONNECTIONS_PER_RUN - 1)];
	c->netns = BPF_CORE_READ(COMMON(const struct net *, skc_net), ns.inum);
	c->state = COMMON(__u8, skc_state);
	c->rx = 0;
	c->tx = 0;
	if (c->state == TCP_TIME_WAIT) {
		/* Another structure, also for FIN_WAIT2 without a process. */
		c->state = BPF_CORE_READ((const struct inet_timewait_sock *)sk, tw_substate);
	} else if (c->state == TCP_NEW_SYN_RECV) {
		c->state = TCP_SYN_RECV; /* a request, also another structure */
	} else {
		__s32 unread = BPF_CORE_READ(tcp, rcv_nxt) - BPF_CORE_READ(tcp, copied_seq);

		c->rx = unread > 0 ? unread : 0;
		c->tx = BPF_CORE_READ(tcp, write_seq) - BPF_CORE_READ(tcp, snd_una);
	}
	/* The kernel may have freed the socket and made another one of it. */
	if ((BPF_CORE_READ(sock, skc_hash) & progress.mask) != bucket)
		return false;
	progress.seen = n + 1;
	node = COMMON(unsigned long, skc_nulls_node);
	return true;
}

/* Does one step. Returns 1 if nothing is left to do in this run. */
VERIFIED_ONCE int step(void)
{
	__u32 at = progress.at, bucket;
	unsigned long now = node;

	if (at >= progress.used || at >= BUCKETS_PER_RUN)
		return 1;
	bucket = buckets[at & (BUCKETS_PER_RUN - 1)];
	if (!now) {
		progress.seen = progress.found;
		/* Whoever holds the lock may have inserted a socket and not yet removed
		 * the one that it replaces, or the reverse. */
		if (!locked(bucket))
			node = head = head_of(bucket);
		return 0;
	}
	if (now & 1) {
		node = 0;
		/* The end has the bucket's number, so a walk that went astray is noticed.
		 * New sockets come in front or in place of others. */
		if (now >> 1 == bucket && head_of(bucket) == head && !locked(bucket)) {
			progress.found = progress.seen;
			progress.at = at + 1;
		}
		return 0;
	}
	if (progress.seen >= CONNECTIONS_PER_RUN) {
		progress.too_long = progress.found == 0;
		return 1;
	}
	{
		const struct sock *sk = (const void *)now - bpf_core_field_offset(struct sock, __sk_common) -
					bpf_core_field_offset(struct sock_common___table, skc_nulls_node);

		if (!add(sk, bucket))
			node = 0;
	}
	return 0;
}

/* Appends those buckets of a part of the table that are not empty to "buckets". Returns
 * -1 if they cannot be read. */
VERIFIED_ONCE int scan(__u32 from)
{
	__u32 used = progress.used;

	if (bpf_probe_read_kernel(heads, sizeof(heads), chains + from * (__u64)sizeof(heads[0])))
		return -1;
	/* Without branches, of which the verifier would follow each. */
	for (__u32 i = 0; i < BUCKETS_PER_READ; i++) {
		buckets[used & (BUCKETS_PER_RUN - 1)] = from + i;
		used += ~heads[i] & 1; /* an empty chain is only its end, an odd number */
	}
	progress.used = used;
	return 0;
}

/* Begins with the buckets whose first has the number "first". Returns -1 if they cannot be
 * read. */
static __always_inline int begin(__u32 first)
{
	progress.used = 0;
	progress.at = 0;
	progress.too_long = 0;
	for (__u32 part = 0; part < BUCKETS_PER_RUN && first + part <= progress.mask; part += BUCKETS_PER_READ) {
		if (scan(first + part))
			return -1;
	}
	return 0;
}

/* Reads connections: with the argument 0, further ones of the buckets of the last run;
 * with N, those of the buckets from N - 1 on. */
SEC("raw_tp")
int read_table(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 first = ctx->args[0];

	if (first && begin(first - 1))
		return -1;
	progress.found = 0;
	node = 0;
	for (__u32 i = 0; i < STEPS_PER_RUN; i++) {
		if (step())
			break;
	}
	return 0;
}
