// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* socketlatency: how long received data wait for the application, and how long
 * written data wait to be sent.
 *
 * The wait of a read is that of the oldest byte, or of the datagram, that it
 * took: from the moment when the socket was told of the data until they were
 * taken. A poll, a timeout, a peek, a read of the error queue and a read that
 * returns nothing take nothing. One call that takes data in several pieces is
 * one read.
 *
 * The wait of a write is that of its last byte: from the call until TCP gives
 * that byte to the IP layer. It includes the time for which the call blocks.
 * A datagram does not wait in its socket, so writes are TCP's alone.
 *
 * Each socket keeps marks: up to which byte, or datagram, the data had come (or
 * had been written) at which time. See struct queue for what they cost in
 * accuracy. */

#include "headers/kernel.h"
#include "headers/chain.h"
#include "headers/counter.h"
#include "headers/event.h"
#include "headers/histogram.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { READ, READ100, WRITE, WRITE100, SLOTS };

/* A read counts when it takes data, with the wait of these data; see
 * read_measured(). */
enum histogram_slot { HIST_READ, HIST_WRITE };

GO_TYPES(enum slot slot; enum histogram_slot histogram_slot;);

enum { MSG_DONTWAIT = 0x40, MSG_ERRQUEUE = 0x2000 };

const volatile __u64 slow_ns = 1000000;
const volatile __u64 slow100_ns = 100000000;
const volatile __u64 event_ns = 100000000;

DEFINE_CHAIN(net_dev_queue);
DEFINE_CHAIN(sk_data_ready);
DEFINE_COUNTERS();
DEFINE_HISTOGRAMS();

/* Fields that only this probe reads. The loader ignores what follows ___. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct tcp_sock___mptcp {
	bool is_mptcp;
};

struct sk_buff___list {
	struct sk_buff *next;
};

struct iov_iter {
	__u8 iter_type;
	unsigned long iov_offset;
	unsigned long count;
};

struct msghdr {
	struct iov_iter msg_iter;
	unsigned int msg_flags;
};

enum iter_type { ITER_UBUF };

#pragma clang attribute pop

/* Times are kept as ticks of 4,096 ns, which fit 32 bits for 4.8 hours. */
#define TICK_SHIFT 12

static __always_inline __u32 ticks_of(__u64 ns)
{
	return ns >> TICK_SHIFT;
}

/* TCP's clock reading may be slightly older than ours. */
static __always_inline __u64 elapsed_ns(__u32 since, __u32 now)
{
	__u32 ticks = now - since;

	return ticks > 0xffff0000u ? 0 : (__u64)ticks << TICK_SHIFT;
}

#define MARKS 16
#define WRITERS 4
#define GONE_READS 8

/* Consecutive arrivals (or writes) kept as one mark: their number, and the times of
 * the first and the last. They count as equally large and evenly spread, so no time
 * is wrong by more than last - first. */
struct mark {
	__u32 end; /* position behind them */
	__u32 first;
	__u32 last;
	__u32 many; /* how many << 2 | which of the writers */
};

/* Data that have come and were not taken, oldest first. Positions are TCP sequence
 * numbers, or numbers of datagrams.
 *
 * Data that come within a sixteenth of the threshold `slow` (62 us) after the first
 * data of the last mark join that mark. If all marks are in use, the two neighbours
 * that lose least by it are merged: the time that they would span is compared with
 * the age of their data plus an eighth of the age of the oldest data. Old data are
 * thus kept more coarsely than new data, and marks never run out.
 *
 * A mark of one arrival is exact. Any other mark is off by at most its span, which
 * is less than a quarter of the wait in a queue of constant delay. Since arrivals
 * in a mark count as evenly spread, random arrivals are off by 5 % of the wait, in
 * either direction. A queue that is emptied at once is off by a few percent of the
 * age of its oldest data.
 *
 * A TCP socket's queues change under its lock. Several CPUs may add to and take
 * from a datagram socket's queue at the same time: one end adds at the head, the
 * other takes at the tail, and a mark is complete before the head includes it. Two
 * CPUs that add at the same time may lose a mark. Two that take at the same time
 * may swap their datagrams, and the last datagram of the queue may not be measured. */
struct queue {
	__u32 head; /* index of the next mark; & MARKS - 1 gives its place */
	__u32 tail;
	__u32 base; /* where the oldest mark's data begin */
	__u32 best; /* used by queue_squeeze */
	struct mark mark[MARKS];
};

struct writer {
	__u64 comm[2];
	__u64 pid;
};

struct waiting {
	__u64 identity; /* of the socket; set if the map outlives the socket */
	__u64 socket_number; /* used by as_number */
	__u64 writers_number;
	__u64 call_ns; /* wait of the oldest data that the current call has taken; 0 if none */
	__u32 call_task; /* task of that call */
	__u32 call_at; /* time at which that call last took data */
	__u32 taken; /* position up to which the application has read */
	__u32 arrived; /* datagrams so far */
	__u32 gone; /* datagrams dequeued without a known read */
	__u32 gone_reads; /* number of reads since then */
	__u32 write_begin; /* position at which the last write began */
	__u32 sent; /* position up to which TCP has sent */
	__u32 sent_at;
	__u32 writer; /* index of the last writer */
	struct queue in;
	struct queue out;
	struct writer writers[WRITERS];
};

/* Socket storage is freed with its socket; it needs programs with type information. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct waiting);
} sockets SEC(".maps");

/* For programs without type information. The next socket at a closed socket's
 * address finds the same entry, so entries carry an identity. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct waiting);
} sockets_by_address SEC(".maps");

/* Too large for the stack. */
const struct waiting nothing = {};

/* Number of call ends to inspect. It is not 0 while a call that took long-waiting
 * data may still be running; at 0 no lookup is needed. If a call sleeps during that
 * many other calls, its end is missed, and the task's next read from the socket
 * counts as the same call. */
__u32 calls_open;

#define CALLS_OPEN 1024

static __always_inline __u64 identity_of(const struct sock *sk)
{
	__u64 ports = (__u64)BPF_CORE_READ(sk, __sk_common.skc_num) << 16 |
		      BPF_CORE_READ(sk, __sk_common.skc_dport);

	return ports << 32 | BPF_CORE_READ(sk, __sk_common.skc_daddr);
}

static __always_inline struct waiting *find(const struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct waiting *w = bpf_map_lookup_elem(&sockets_by_address, &key);

	return w && w->identity == identity_of(sk) ? w : NULL;
}

/* MPTCP moves the data of its TCP connections to its own socket, where they wait
 * for the application, and sends without a write on the connection. Nothing can be
 * measured here, so such connections have no entry. */
static __always_inline bool is_mptcp(const struct sock *sk)
{
	const struct tcp_sock___mptcp *tp = (const void *)sk;

	return bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ(tp, is_mptcp);
}

static __always_inline struct waiting *find_or_make(const struct sock *sk, __u8 protocol)
{
	__u64 key = (__u64)sk, identity = identity_of(sk);
	struct waiting *w = bpf_map_lookup_elem(&sockets_by_address, &key);

	if (w && w->identity == identity)
		return w;
	if (protocol == IPPROTO_TCP && is_mptcp(sk))
		return NULL;
	bpf_map_update_elem(&sockets_by_address, &key, &nothing, BPF_ANY);
	w = bpf_map_lookup_elem(&sockets_by_address, &key);
	if (w)
		w->identity = identity;
	return w;
}

static __always_inline struct waiting *stored(struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, sk, NULL, 0);
}

static __always_inline struct waiting *stored_or_made(struct sock *sk, __u8 protocol)
{
	struct waiting *w = stored(sk);

	if (w || (protocol == IPPROTO_TCP && is_mptcp(sk)))
		return w;
	return bpf_sk_storage_get(&sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
}

/* as_number returns a pointer as a number, which a VERIFIED_ONCE function may get. To the
 * verifier, what is read back from a map is a number. */
static __always_inline __u64 as_number(volatile __u64 *memory, const void *pointer)
{
	*memory = (__u64)pointer;
	return *memory;
}

/* Whether one position is behind another. */
static __always_inline bool after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

/* Queues */

static __always_inline struct mark *mark_at(struct queue *q, __u32 i)
{
	return &q->mark[i & (MARKS - 1)];
}

static __always_inline bool queue_empty(const struct queue *q)
{
	return !after(q->head, q->tail);
}

static __always_inline __u32 many_of(const struct mark *m)
{
	return m->many >> 2;
}

/* queue_squeeze makes room in a full queue and returns the new head. It never
 * changes the oldest mark, which the other end may be using. */
static __noinline __u32 queue_squeeze(struct queue *q, __u32 now)
{
	__u64 best_span = 1ull << 31, best_age = 1;
	volatile __u32 *choice;
	__u32 tail, best, many;
	struct mark *m, *next;

	if (!q)
		return 0;
	tail = q->tail;
	/* Stored in memory, so that the verifier treats it as an arbitrary number;
	 * otherwise it would check the rest for each value. Another CPU that squeezes
	 * may overwrite the choice, which is harmless. */
	choice = &q->best;
	*choice = MARKS - 2;
	for (__u32 i = 1; i < MARKS - 1; i++) {
		__u32 span, age;

		m = mark_at(q, tail + i);
		next = mark_at(q, tail + i + 1);
		span = next->last - m->first;
		age = now - next->last + (now - mark_at(q, tail)->first) / 8 + 1;
		if (span * best_age < best_span * age) {
			best_span = span;
			best_age = age;
			*choice = i;
		}
	}
	best = *choice;
	m = mark_at(q, tail + best);
	next = mark_at(q, tail + best + 1);
	many = many_of(m) + many_of(next);
	m->many = (many < 1u << 30 ? many : many_of(m)) << 2 | (m->many & 3);
	m->last = next->last;
	m->end = next->end;
	for (__u32 i = 2; i < MARKS - 1; i++) {
		if (i > best)
			*mark_at(q, tail + i) = *mark_at(q, tail + i + 1);
	}
	return tail + MARKS - 1;
}

/* queue_add records that the data up to `end` came now. If the queue was empty,
 * they begin at `begin`. */
static __always_inline void queue_add(struct queue *q, __u32 begin, __u32 end, __u32 now,
				      __u32 writer)
{
	__u32 head = q->head;
	struct mark *m;

	if (!after(head, q->tail)) {
		q->base = begin;
		q->tail = head;
	} else {
		m = mark_at(q, head - 1);
		if (now - m->first < slow_ns >> (TICK_SHIFT + 4) && (m->many & 3) == writer) {
			m->end = end;
			m->last = now;
			m->many += 1 << 2;
			return;
		}
		if (head - q->tail >= MARKS)
			head = queue_squeeze(q, now);
	}
	m = mark_at(q, head);
	m->end = end;
	m->first = now;
	m->last = now;
	m->many = 1 << 2 | writer;
	barrier();
	q->head = head + 1;
}

static __always_inline void queue_clear(struct queue *q)
{
	q->tail = q->head;
}

/* queue_restart makes an empty queue start over in the same memory. Its two ends
 * must not run concurrently. */
static __always_inline void queue_restart(struct queue *q)
{
	q->head = 0;
	q->tail = 0;
}

/* mark_time returns the time at which the data at a position in the mark came, if the
 * mark's data begin at `base`. */
static __always_inline __u32 mark_time(const struct mark *m, __u32 base, __u32 position)
{
	__u32 many = many_of(m), offset = position - base, len = m->end - base;

	if (many < 2 || offset >= len)
		return m->first;
	return m->first + (__u64)(m->last - m->first) * ((__u64)offset * many / len) / (many - 1);
}

/* The wait if no mark covers the data. */
#define UNKNOWN_WAIT ~0ull

/* queue_take returns how long the data at position `from`, the oldest of those
 * taken, have waited. It removes the marks up to position `to`. */
static __always_inline __u64 queue_take(struct queue *q, __u32 from, __u32 to, __u32 now)
{
	__u32 tail = q->tail, head = q->head, base = q->base;
	__u64 wait = UNKNOWN_WAIT;

	for (int i = 0; i < MARKS && after(head, tail); i++) {
		const struct mark *m = mark_at(q, tail);

		if (wait == UNKNOWN_WAIT && after(m->end, from))
			wait = elapsed_ns(mark_time(m, base, from), now);
		if (after(m->end, to))
			break;
		base = m->end;
		tail++;
	}
	if (tail != q->tail) {
		q->base = base;
		q->tail = tail;
	}
	return wait;
}

/* Reports */

static __always_inline void count_many(struct owner o, __u32 slot, __u32 n)
{
	struct counter *c = n ? counter_of(o) : NULL;

	if (c && slot < COUNTER_SLOTS)
		__sync_fetch_and_add(&c->slot[slot], n);
}

/* report sends an event about the socket `number`. `writer` is the address of a struct
 * writer, or 0. */
VERIFIED_ONCE int report(__u64 number, __u32 protocol_slot, __u64 now, __u64 wait, __u64 writer)
{
	__u32 slot = protocol_slot & 0xff, protocol = protocol_slot >> 8;
	const struct sock *sk = (const struct sock *)number;
	struct writer by = {};
	struct event *e;

	e = event_reserve(slot == READ ? EVENT_SOCKETLAT_READSLOW : EVENT_SOCKETLAT_SENDSLOW,
			  owner_of_sock(sk), now, sizeof(*e));
	if (!e)
		return 0;
	e->latency_ns = wait;
	e->tcp_state = protocol == IPPROTO_TCP ? BPF_CORE_READ(sk, __sk_common.skc_state) : 0;
	tuple_from_sock(sk, protocol, &e->tuple);
	if (writer) {
		/* The task that triggers the transmission (often ACK
		 * processing) is not the writer. */
		bpf_probe_read_kernel(&by, sizeof(by), (const void *)writer);
		e->pid = by.pid;
		__builtin_memcpy(e->comm, by.comm, sizeof(e->comm));
	} else {
		event_set_process(e);
	}
	event_submit(e);
	return 0;
}

/* read_measured counts a read of the socket `number` whose data waited for `wait` ns. `before` is the
 * wait already counted for the same call, 0 if that was not slow. A wait that
 * is not slow counts in the histogram once per piece that a call takes,
 * because only slow pieces are assigned to calls. */
VERIFIED_ONCE int read_measured(__u64 number, __u32 protocol, __u64 now, __u64 before, __u64 wait)
{
	const struct sock *sk = (const struct sock *)number;
	struct owner o;

	if (wait == UNKNOWN_WAIT)
		return 0;
	if (before < slow_ns)
		measured_of(HIST_READ, wait, owner_of_sock(sk), INTERRUPTED);
	if (wait < slow_ns)
		return 0;
	o = owner_of_sock(sk);
	if (before < slow_ns)
		count_many(o, READ, 1);
	if (wait < slow100_ns && wait < event_ns)
		return 0;
	if (before < slow100_ns && wait >= slow100_ns)
		count_many(o, READ100, 1);
	if (before < event_ns && wait >= event_ns)
		report(number, protocol << 8 | READ, now, wait, 0);
	return 0;
}

/* Returns the protocol if the probe watches the socket, else 0. A raw socket may have
 * the protocol of TCP or UDP too, but neither its ports nor its queues. Programs with
 * type information run too often for helper calls, so they read it directly. */
static __always_inline __u8 protocol_watched(__u16 family, __u16 type, __u16 protocol, __u8 state)
{
	if (family != AF_INET && family != AF_INET6)
		return 0;
	if (protocol == IPPROTO_TCP)
		return type != SOCK_STREAM || state == TCP_LISTEN ? 0 : IPPROTO_TCP;
	if (type != SOCK_DGRAM)
		return 0;
	return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE ? protocol : 0;
}

static __always_inline __u8 protocol_read(const struct sock *sk)
{
	return protocol_watched(BPF_CORE_READ(sk, __sk_common.skc_family),
				BPF_CORE_READ(sk, sk_type), BPF_CORE_READ(sk, sk_protocol),
				BPF_CORE_READ(sk, __sk_common.skc_state));
}

static __always_inline __u8 protocol_loaded(const struct sock *sk)
{
	return protocol_watched(sk->__sk_common.skc_family, sk->sk_type, sk->sk_protocol,
				sk->__sk_common.skc_state);
}

/* Fields of a connection, loaded directly by programs with type information, with
 * TCP's own clock reading. TCP reads the clock when it starts to process a received
 * segment and when it starts to send, the moments that matter here. */
struct connection {
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 write_seq;
	__u64 clock_ns;
};

static __always_inline bool connection_load(struct sock *sk, struct connection *c)
{
	const struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);

	if (!tp)
		return false;
	c->rcv_nxt = tp->rcv_nxt;
	c->copied_seq = tp->copied_seq;
	c->write_seq = tp->write_seq;
	c->clock_ns = bpf_core_field_exists(tp->tcp_clock_cache) ? tp->tcp_clock_cache :
								   bpf_ktime_get_ns();
	return true;
}

static __always_inline __u32 copied_seq_of(const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, copied_seq);
}

static __always_inline __u32 rcv_nxt_of(const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, rcv_nxt);
}

static __always_inline __u32 snd_nxt_of(const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, snd_nxt);
}

/* A reader first moves the whole queue to its own. To count no datagram twice, a
 * CPU that adds inspects the reader's queue first; to miss none, a CPU that takes
 * inspects it last. */
static __always_inline __u32 datagrams_unread(const struct sock *sk)
{
	__u32 n = BPF_CORE_READ((const struct udp_sock *)sk, reader_queue.qlen);

	return n + BPF_CORE_READ(sk, sk_receive_queue.qlen);
}

static __always_inline __u32 datagrams_left(const struct sock *sk)
{
	__u32 n = BPF_CORE_READ(sk, sk_receive_queue.qlen);

	return n + BPF_CORE_READ((const struct udp_sock *)sk, reader_queue.qlen);
}

static __always_inline __u32 datagrams_unread_loaded(const struct sock *sk)
{
	__u32 n = BPF_CORE_READ((const struct udp_sock *)sk, reader_queue.qlen);

	return n + sk->sk_receive_queue.qlen;
}

static __always_inline __u32 datagrams_left_loaded(const struct sock *sk)
{
	__u32 n = sk->sk_receive_queue.qlen;

	return n + BPF_CORE_READ((const struct udp_sock *)sk, reader_queue.qlen);
}

/* Data that came: the positions at which they begin and end, and the time. */
struct arrival {
	__u32 begin, end;
	__u64 now;
};

/* The connection has received data up to rcv_nxt, of which the application has read
 * up to copied. Returns whether a mark must be added. */
static __always_inline bool ready_tcp(struct waiting *w, __u32 rcv_nxt, __u32 copied)
{
	struct queue *q = &w->in;
	__u32 end;

	if (queue_empty(q)) {
		w->taken = copied;
		queue_restart(q);
	} else {
		end = mark_at(q, q->head - 1)->end;
		if (end == rcv_nxt)
			return false; /* repeated notification */
		/* The data were read on a path that no program here sees, or the marks belong
		 * to an earlier connection. */
		if (!after(end, copied) || after(end, rcv_nxt))
			queue_clear(q);
		if (after(copied, w->taken) || queue_empty(q))
			w->taken = copied;
	}
	return true;
}

/* A datagram arrived, which another CPU may already have read. Returns whether a mark must
 * be added. */
static __always_inline bool ready_datagram(struct waiting *w, __u32 unread, struct arrival *a)
{
	struct queue *q = &w->in;
	__u32 arrived;

	/* Datagrams that came before the first observed one are unread too. */
	__sync_fetch_and_add(&w->arrived, w->arrived || w->taken || !unread ? 1 : unread);
	arrived = w->arrived;
	if (unread <= 1) {
		/* Only the new datagram is unread, so all marks are outdated. */
		queue_clear(q);
		if (!unread)
			w->taken = arrived;
		else if (!after(arrived, w->taken))
			w->taken = arrived - 1;
	}
	if (!after(arrived, w->taken))
		return false;
	a->begin = arrived - 1;
	a->end = arrived;
	a->now = bpf_ktime_get_ns();
	return true;
}

static __always_inline int ready_loaded(struct sock *sk)
{
	__u8 protocol = protocol_loaded(sk);
	struct waiting *w = NULL;
	struct arrival a = {};
	struct connection c;

	if (protocol == IPPROTO_TCP) {
		if (connection_load(sk, &c) && c.rcv_nxt != c.copied_seq)
			w = stored_or_made(sk, protocol);
		if (!w || !ready_tcp(w, c.rcv_nxt, c.copied_seq))
			return 0;
		a.begin = c.copied_seq;
		a.end = c.rcv_nxt;
		a.now = c.clock_ns;
	} else {
		if (protocol)
			w = stored_or_made(sk, protocol);
		if (!w || !ready_datagram(w, datagrams_unread_loaded(sk), &a))
			return 0;
	}
	queue_add(&w->in, a.begin, a.end, ticks_of(a.now), 0);
	return 0;
}

static __always_inline int ready_read(const struct sock *sk)
{
	__u8 protocol = protocol_read(sk);
	struct waiting *w = NULL;
	struct arrival a = {};

	if (protocol == IPPROTO_TCP) {
		a.begin = copied_seq_of(sk);
		a.end = rcv_nxt_of(sk);
		if (a.end != a.begin)
			w = find_or_make(sk, protocol);
		if (!w || !ready_tcp(w, a.end, a.begin))
			return 0;
		a.now = bpf_ktime_get_ns();
	} else {
		if (protocol)
			w = find_or_make(sk, protocol);
		if (!w || !ready_datagram(w, datagrams_unread(sk), &a))
			return 0;
	}
	queue_add(&w->in, a.begin, a.end, ticks_of(a.now), 0);
	return 0;
}

/* The bytes up to `copied` have been taken. Returns how long the oldest of them had
 * waited. */
static __always_inline __u64 read_tcp(struct waiting *w, __u32 copied, __u64 now)
{
	__u32 from = w->taken;

	if (copied == from)
		return UNKNOWN_WAIT; /* a peek */
	w->taken = copied;
	return queue_take(&w->in, from, copied, ticks_of(now));
}

/* Whether a call will take no more data: it left part of a segment, or it does not
 * take whole segments (splice, sendfile). Otherwise the segment that it has just
 * copied completely is still first in the queue, and the next may follow. */
static __always_inline bool call_is_over(const struct sock *sk, __u32 copied)
{
	const struct sk_buff *first = BPF_CORE_READ(sk, sk_receive_queue.next);
	const struct tcp_skb_cb *cb = (const struct tcp_skb_cb *)&first->cb[0];

	return (const void *)first == (const void *)&sk->sk_receive_queue ||
	       BPF_CORE_READ(cb, end_seq) != copied;
}

/* A call took a piece of data that had waited for `wait` ns. */
static __always_inline int piece_measured(const struct sock *sk, struct waiting *w, __u32 copied,
					  __u64 now, __u64 wait)
{
	__u32 task = bpf_get_current_pid_tgid();
	__u64 before = w->call_task == task ? w->call_ns : 0;

	if (wait > before)
		read_measured(as_number(&w->socket_number, sk), IPPROTO_TCP, now, before, wait);
	else
		wait = before;
	w->call_task = task;
	w->call_ns = call_is_over(sk, copied) ? 0 : wait;
	if (w->call_ns)
		calls_open = CALLS_OPEN;
	return 0;
}

/* Most pieces have not waited long. For them, one comparison is cheaper than a
 * search for the bucket. */
static __always_inline int piece_taken(const struct sock *sk, struct waiting *w, __u32 copied,
				       __u64 now, __u64 wait)
{
	if (wait == UNKNOWN_WAIT)
		return 0;
	if (wait >= slow_ns)
		return piece_measured(sk, w, copied, now, wait);
	if (!w->call_ns || w->call_task != (__u32)bpf_get_current_pid_tgid())
		read_measured(as_number(&w->socket_number, sk), IPPROTO_TCP, now, 0, wait);
	return 0;
}

static __always_inline int call_ends(struct waiting *w)
{
	if (w->call_ns && w->call_task == (__u32)bpf_get_current_pid_tgid())
		w->call_ns = 0;
	return 0;
}

/* One datagram was taken. */
static __always_inline int read_datagram(const struct sock *sk, __u8 protocol, struct waiting *w,
					 bool loaded)
{
	__u32 taken = w->taken + 1, gone = w->arrived - taken, skip = 0;
	__u64 now, wait;

	if (gone)
		gone -= loaded ? datagrams_left_loaded(sk) : datagrams_left(sk);

	/* Other datagrams were dequeued too. Either other threads are about to report
	 * their reads, or the datagrams were discarded because of a wrong checksum. In
	 * the latter case they are still missing some reads later. */
	if (!after(gone, 0)) {
		w->gone_reads = 0;
	} else {
		if (!w->gone_reads || gone < w->gone)
			w->gone = gone;
		if (++w->gone_reads >= GONE_READS) {
			skip = w->gone;
			w->gone_reads = 0;
		}
	}
	/* Another thread may have reported a read meanwhile, which must not be
	 * overwritten. */
	__sync_fetch_and_add(&w->taken, 1 + skip);
	taken += skip;
	if (queue_empty(&w->in))
		return 0;
	now = bpf_ktime_get_ns();
	wait = queue_take(&w->in, taken - 1, taken, ticks_of(now));
	read_measured(as_number(&w->socket_number, sk), protocol, now, 0, wait);
	return 0;
}

/* A datagram may be empty. Reads of the error queue do not count. */
static __always_inline bool taken(int result, int flags)
{
	return result >= 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE));
}

static __always_inline int received_loaded(struct sock *sk)
{
	__u8 protocol = protocol_loaded(sk);
	struct waiting *w;

	if (!protocol || (protocol == IPPROTO_TCP && !calls_open))
		return 0;
	if (protocol == IPPROTO_TCP)
		calls_open--;
	w = stored(sk);
	if (!w)
		return 0;
	if (protocol == IPPROTO_TCP) {
		return call_ends(w);
	}
	return read_datagram(sk, protocol, w, true);
}

static __always_inline int received_read(const struct sock *sk)
{
	__u8 protocol = protocol_read(sk);
	struct waiting *w;

	if (!protocol || (protocol == IPPROTO_TCP && !calls_open))
		return 0;
	if (protocol == IPPROTO_TCP)
		calls_open--;
	w = find(sk);
	if (!w)
		return 0;
	if (protocol == IPPROTO_TCP) {
		return call_ends(w);
	}
	return read_datagram(sk, protocol, w, false);
}

/* Reading */

SEC("tp_btf/sk_data_ready")
int btf_ready(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];

	ready_loaded(sk);
	chain_from(ctx, sk_data_ready, CHAIN_SOCKETLATENCY + 1);
	return 0;
}

SEC("raw_tp/sk_data_ready")
int raw_ready(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];

	return ready_read(sk);
}

SEC("fentry/sock_def_readable")
int BPF_PROG(fen_ready, struct sock *sk)
{
	return ready_loaded(sk);
}

SEC("kprobe/sock_def_readable")
int BPF_KPROBE(kp_ready, struct sock *sk)
{
	return ready_read(sk);
}

/* Before 6.3, without function hooks: runs when TCP receives a segment, before
 * it is queued. An out-of-order segment becomes readable later, together with
 * the missing one, and has no mark until the next segment comes. */
SEC("raw_tp/tcp_probe")
int raw_segment(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const struct sock *)ctx->args[0];
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[1];
	const struct tcp_skb_cb *cb = (const struct tcp_skb_cb *)&skb->cb[0];
	__u32 rcv_nxt = rcv_nxt_of(sk), end_seq = BPF_CORE_READ(cb, end_seq), copied;
	struct waiting *w;
	struct mark *m;

	/* Segments without data, and retransmissions, make no data readable. */
	if (!after(end_seq, rcv_nxt) || after(BPF_CORE_READ(cb, seq), rcv_nxt))
		return 0;
	w = find_or_make(sk, IPPROTO_TCP);
	if (!w)
		return 0;
	if (!queue_empty(&w->in)) {
		/* TCP discarded the last segment. */
		m = mark_at(&w->in, w->in.head - 1);
		if (after(m->end, rcv_nxt))
			m->end = rcv_nxt;
	}
	copied = copied_seq_of(sk);
	if (ready_tcp(w, end_seq, copied))
		queue_add(&w->in, copied, end_seq, ticks_of(bpf_ktime_get_ns()), 0);
	return 0;
}

/* TCP has copied bytes to the application, in the middle of its call. If the call
 * then waits for more data, the wait does not add to that of these bytes. */
SEC("tp_btf/tcp_rcv_space_adjust")
int btf_read_tcp(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct waiting *w = stored(sk);
	struct connection c;
	__u64 now, wait;

	if (!w || queue_empty(&w->in) || !connection_load(sk, &c))
		return 0;
	now = bpf_ktime_get_ns();
	wait = read_tcp(w, c.copied_seq, now);
	return piece_taken(sk, w, c.copied_seq, now, wait);
}

SEC("raw_tp/tcp_rcv_space_adjust")
int raw_read_tcp(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	struct waiting *w = find(sk);
	__u64 now, wait;
	__u32 copied;

	if (!w || queue_empty(&w->in))
		return 0;
	copied = copied_seq_of(sk);
	now = bpf_ktime_get_ns();
	wait = read_tcp(w, copied, now);
	return piece_taken(sk, w, copied, now, wait);
}

/* The end of a call is not visible here. If a call took a whole segment and another
 * segment exists, data taken within a millisecond count as taken by the same call. */
SEC("raw_tp/tcp_rcv_space_adjust")
int raw_read_pieces(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];
	struct waiting *w = find(sk);
	__u64 now, wait;
	__u32 copied;

	if (!w || queue_empty(&w->in))
		return 0;
	copied = copied_seq_of(sk);
	now = bpf_ktime_get_ns();
	wait = read_tcp(w, copied, now);
	if (wait == UNKNOWN_WAIT || wait < slow_ns)
		return piece_taken(sk, w, copied, now, wait);
	if (ticks_of(now) - w->call_at > 1000000 >> TICK_SHIFT)
		call_ends(w);
	w->call_at = ticks_of(now);
	piece_measured(sk, w, copied, now, wait);
	if (BPF_CORE_READ(sk, sk_receive_queue.qlen) <= 1)
		call_ends(w); /* no further data in this call */
	return 0;
}

/* TCP has copied this many bytes to the application in the current call, which is
 * ending or about to sleep. After a sleep the number includes bytes from before. */
static __always_inline int cleaned_up(const struct sock *sk, struct waiting *w, __u32 copied_seq,
				      int copied)
{
	__u32 from;
	__u64 now, wait, before;

	if (!w || copied <= 0)
		return 0;
	from = w->taken;
	if (from == copied_seq)
		return 0;
	now = bpf_ktime_get_ns();
	wait = read_tcp(w, copied_seq, now);
	before = (__u32)copied > copied_seq - from ? w->call_ns : 0;
	if (wait == UNKNOWN_WAIT || wait < before) {
		w->call_ns = before;
		return 0;
	}
	w->call_ns = wait;
	read_measured(as_number(&w->socket_number, sk), IPPROTO_TCP, now, before, wait);
	return 0;
}

SEC("fentry/tcp_cleanup_rbuf")
int BPF_PROG(fen_cleanup, struct sock *sk, int copied)
{
	struct waiting *w = stored(sk);
	struct connection c;

	if (!w || !connection_load(sk, &c))
		return 0;
	return cleaned_up(sk, w, c.copied_seq, copied);
}

SEC("kprobe/tcp_cleanup_rbuf")
int BPF_KPROBE(kp_cleanup, struct sock *sk, int copied)
{
	return cleaned_up(sk, find(sk), copied_seq_of(sk), copied);
}

SEC("tp_btf/sock_recv_length")
int btf_received(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];

	return taken((int)ctx[1], (int)ctx[2]) ? received_loaded(sk) : 0;
}

SEC("raw_tp/sock_recv_length")
int raw_received(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sk = (struct sock *)ctx->args[0];

	return taken((int)ctx->args[1], (int)ctx->args[2]) ? received_read(sk) : 0;
}

/* The length is negative for a peek, unless the datagram is empty. A datagram that
 * was only peeked at is still in the queue. */
static __always_inline bool consumed(const struct sk_buff *skb, int len)
{
	const struct sk_buff___list *on = (const void *)skb;

	return len >= 0 && !BPF_CORE_READ(on, next);
}

SEC("fentry/skb_consume_udp")
int BPF_PROG(fen_consume, struct sock *sk, struct sk_buff *skb, int len)
{
	return consumed(skb, len) ? received_loaded(sk) : 0;
}

SEC("kprobe/skb_consume_udp")
int BPF_KPROBE(kp_consume, struct sock *sk, struct sk_buff *skb, int len)
{
	return consumed(skb, len) ? received_read(sk) : 0;
}

/* Writing */

/* Returns the account of an event type, NULL if the type is off. */
static __always_inline struct event_account *event_on(__u32 type)
{
	const struct event_limit *limit = bpf_map_lookup_elem(&event_limits, &type);

	return limit && limit->interval_ns ? bpf_map_lookup_elem(&event_accounts, &type) : NULL;
}

/* Returns how many of `many` writes, evenly spread between the first and the last,
 * have waited longer than the threshold. */
VERIFIED_ONCE __u32 over(__u64 threshold, __u64 first_wait, __u64 span, __u32 many)
{
	if (first_wait < threshold)
		return 0;
	if (first_wait - threshold >= span || many < 2)
		return many;
	return 1 + (first_wait - threshold) * (many - 1) / span;
}

/* Counts `many` writes, spread as in over(), in the histogram. A bucket gets
 * those that are over its lower bound and not over its upper bound. */
VERIFIED_ONCE int many_measured(__u64 id, __u64 first_wait, __u64 span, __u32 many)
{
	static const __u64 bounds[] = {
		HISTOGRAM_BOUND(0), HISTOGRAM_BOUND(1), HISTOGRAM_BOUND(2), HISTOGRAM_BOUND(3),
		HISTOGRAM_BOUND(4), HISTOGRAM_BOUND(5), HISTOGRAM_BOUND(6), HISTOGRAM_BOUND(7),
		HISTOGRAM_BOUND(8), HISTOGRAM_BOUND(9), HISTOGRAM_BOUND(10), HISTOGRAM_BOUND(11),
	};
	struct histograms *hs = keep_histograms == HISTOGRAMS_PODS ? histograms_of_netns(id) :
								   histograms_of_node();
	__u32 below = many;
	struct histogram *h;

	if (!hs)
		return 0;
	h = &hs->of[HIST_WRITE];
	for (__u32 i = 0; i < HISTOGRAM_BUCKETS && below; i++) {
		__u32 above = i < HISTOGRAM_BUCKETS - 1 ? over(bounds[i], first_wait, span, many) : 0;

		if (below > above)
			__sync_fetch_and_add(&h->bucket[i], below - above);
		below = above;
	}
	__sync_fetch_and_add(&h->sum_ns, (first_wait - (span < first_wait ? span : first_wait) / 2) * many);
	return 0;
}

static __always_inline void writes_measured(const struct sock *sk, __u64 wait, __u64 span,
					    __u32 many)
{
	if (many == 1)
		measured_of(HIST_WRITE, wait, owner_of_sock(sk), INTERRUPTED);
	else if (keep_histograms == HISTOGRAMS_PODS)
		many_measured(netns_id(owner_of_sock(sk)), wait, span, many);
	else if (keep_histograms == HISTOGRAMS_NODE)
		many_measured(NETNS_NONE, wait, span, many);
}

/* The first `many` writes of a mark of the socket `number` are complete. One event reports
 * them; the others count as suppressed. `writers` is the address of the socket's. */
VERIFIED_ONCE int mark_out(__u64 number, __u32 first, __u64 last_many, __u64 writers, __u64 now)
{
	const struct sock *sk = (const struct sock *)number;
	__u32 type, n, many = (__u32)last_many >> 2;
	struct event_account *account;
	__u64 wait, span;
	struct owner o;

	wait = elapsed_ns(first, ticks_of(now));
	span = (__u64)((__u32)(last_many >> 32) - first) << TICK_SHIFT;
	writes_measured(sk, wait, span, many);
	if (wait < slow_ns)
		return 0;
	o = owner_of_sock(sk);
	count_many(o, WRITE, over(slow_ns, wait, span, many));
	count_many(o, WRITE100, over(slow100_ns, wait, span, many));
	n = over(event_ns, wait, span, many);
	if (!n)
		return 0;
	report(number, IPPROTO_TCP << 8 | WRITE, now, wait,
	       writers + (last_many & (WRITERS - 1)) * sizeof(struct writer));
	if (n < 2)
		return 0;
	type = EVENT_SOCKETLAT_SENDSLOW;
	account = event_on(type);
	if (account) {
		__sync_fetch_and_add(&account->seen, n - 1);
		__sync_fetch_and_add(&account->suppressed, n - 1);
	}
	return 0;
}

static __always_inline void written_out(const struct sock *sk, struct waiting *w,
					const struct mark *m, __u64 now)
{
	__u64 writers = as_number(&w->writers_number, &w->writers);

	mark_out(as_number(&w->socket_number, sk), m->first, (__u64)m->last << 32 | m->many, writers, now);
}

/* Everything up to end_seq has left TCP; the part up to `unseen` did so at an
 * unknown time. */
static __always_inline void went_out(const struct sock *sk, struct waiting *w, __u32 unseen,
				     __u32 end_seq, __u64 now)
{
	struct queue *q = &w->out;
	__u32 tail = q->tail, head = q->head, base = q->base, len, many, done;
	struct mark part, *m;

	for (int i = 0; i < MARKS && after(head, tail); i++) {
		m = mark_at(q, tail);
		if (after(m->end, end_seq))
			break;
		if (after(m->end, unseen))
			written_out(sk, w, m, now);
		base = m->end;
		tail++;
	}
	q->tail = tail;
	q->base = base;
	if (!after(head, tail))
		return;
	/* Some of the mark's writes may be complete. */
	m = mark_at(q, tail);
	many = many_of(m);
	len = m->end - base;
	if (many < 2 || !after(end_seq, base) || end_seq - base >= len)
		return;
	done = (__u64)(end_seq - base) * many / len;
	if (!done || done >= many)
		return;
	part.end = base + (__u64)len * done / many;
	part.first = m->first;
	part.last = m->first + (__u64)(m->last - m->first) * (done - 1) / (many - 1);
	part.many = done << 2 | (m->many & 3);
	m->first += (__u64)(m->last - m->first) * done / (many - 1);
	m->many = (many - done) << 2 | (m->many & 3);
	q->base = part.end;
	if (after(part.end, unseen))
		written_out(sk, w, &part, now);
}

/* A segment of data up to end_seq leaves TCP. Data before snd_nxt left earlier
 * on a path that no program here sees: the packet waits for its neighbour's
 * address, or a filter held or encrypted it before the device. Such data did not
 * wait in TCP, even if the packet passes late (tcp_event_new_data_sent moves
 * snd_nxt when a segment has left). */
static __always_inline int segment_out(const struct sock *sk, struct waiting *w, __u32 end_seq,
				       __u64 now)
{
	w->sent = end_seq;
	w->sent_at = ticks_of(now);
	went_out(sk, w, snd_nxt_of(sk), end_seq, now);
	return 0;
}

/* Whether a segment is the first to carry written, unsent data. */
static __always_inline bool is_new(const struct waiting *w, __u32 end_seq)
{
	return after(end_seq, w->sent);
}

static __always_inline bool writer_is(const struct writer *one, __u32 pid, const __u64 comm[2])
{
	return one->pid == pid && one->comm[0] == comm[0] && one->comm[1] == comm[1];
}

/* writer_of returns the writer's slot, which may replace that of a writer that has
 * been inactive. */
static __always_inline __u32 writer_of(struct waiting *w, __u32 pid, const __u64 comm[2])
{
	__u32 at = w->writer & (WRITERS - 1);

	for (__u32 i = 0; i < WRITERS; i++) {
		__u32 other = (at + i) & (WRITERS - 1);

		if (writer_is(&w->writers[other], pid, comm))
			return w->writer = other;
	}
	at = (at + 1) & (WRITERS - 1);
	w->writers[at].pid = pid;
	w->writers[at].comm[0] = comm[0];
	w->writers[at].comm[1] = comm[1];
	return w->writer = at;
}

/* The last write ended early, at write_seq. */
static __always_inline void settle(const struct sock *sk, struct waiting *w, __u32 write_seq,
				   __u64 now)
{
	struct queue *q = &w->out;
	struct mark *m = mark_at(q, q->head - 1);

	if (!after(m->end, write_seq))
		return;
	m->end = write_seq;
	if (w->write_begin == write_seq) {
		/* The call wrote nothing. */
		m->many -= 1 << 2;
		if (!many_of(m)) {
			q->head--;
			return;
		}
	}
	if (!after(write_seq, w->sent)) {
		/* The bytes of this write were sent some time ago. */
		__u64 ago = (__u64)(ticks_of(now) - w->sent_at) << TICK_SHIFT;

		went_out(sk, w, q->base, write_seq, now - ago);
	}
}

/* A call begins to write `size` bytes at write_seq. */
static __always_inline void write_begins(const struct sock *sk, struct waiting *w, __u32 write_seq,
					 __u32 size, __u32 pid, const __u64 comm[2])
{
	__u64 now = bpf_ktime_get_ns();
	struct queue *q = &w->out;

	if (!queue_empty(q))
		settle(sk, w, write_seq, now);
	if (queue_empty(q)) {
		w->sent = write_seq;
		queue_restart(q);
	}
	w->write_begin = write_seq;
	queue_add(q, write_seq, write_seq + size, ticks_of(now), writer_of(w, pid, comm));
}

/* The tracepoint fires several times per call. Each time, the remaining data of the
 * call end at the same byte. So would the data of a non-blocking call that
 * continues a short write; such a call is at the beginning of its buffer. */
static __always_inline bool same_call(struct waiting *w, __u32 write_seq, __u32 end, __u8 iter_type,
				      __u64 iov_offset, __u32 flags)
{
	struct queue *q = &w->out;

	if (queue_empty(q) || mark_at(q, q->head - 1)->end != end)
		return false;
	if (iov_offset)
		return true;
	if (write_seq == w->write_begin)
		return !(flags & MSG_DONTWAIT); /* the call has waited for space */
	return !bpf_core_enum_value_exists(enum iter_type, ITER_UBUF) ||
	       iter_type != bpf_core_enum_value(enum iter_type, ITER_UBUF);
}

/* At the device, TCP's control block in the skb is overwritten, so read the TCP
 * header, of which this is the beginning. */
struct tcp_header {
	__be16 source, dest;
	__be32 seq, ack;
	__u8 offset;
};

/* Returns the end of a segment's data, or false if it has none: an ACK or a window
 * probe. */
static __always_inline bool data_end(const struct tcp_header *tcp, __u32 header, __u32 len,
				     __u32 *end_seq)
{
	header += (tcp->offset >> 4) * 4;
	if (len <= header)
		return false;
	*end_seq = bpf_ntohl(tcp->seq) + len - header;
	return true;
}

SEC("tp_btf/tcp_sendmsg_locked")
int btf_write(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	const struct msghdr *msg = (const struct msghdr *)ctx[1];
	struct waiting *w = stored_or_made(sk, IPPROTO_TCP);
	struct task_struct *task;
	struct connection c;
	__u32 size;

	if (!w || !connection_load(sk, &c))
		return 0;
	size = msg->msg_iter.count;
	if (same_call(w, c.write_seq, c.write_seq + size, msg->msg_iter.iter_type,
		      msg->msg_iter.iov_offset, msg->msg_flags))
		return 0;
	task = bpf_get_current_task_btf();
	write_begins(sk, w, c.write_seq, size, task->tgid, (const __u64 *)task->comm);
	return 0;
}

SEC("raw_tp/tcp_sendmsg_locked")
int raw_write(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sock *sk = (const struct sock *)ctx->args[0];
	const struct msghdr *msg = (const struct msghdr *)ctx->args[1];
	struct waiting *w = find_or_make(sk, IPPROTO_TCP);
	__u32 write_seq, size;
	__u64 comm[2];

	if (!w)
		return 0;
	write_seq = BPF_CORE_READ((const struct tcp_sock *)sk, write_seq);
	size = BPF_CORE_READ(msg, msg_iter.count);
	if (same_call(w, write_seq, write_seq + size, BPF_CORE_READ(msg, msg_iter.iter_type),
		      BPF_CORE_READ(msg, msg_iter.iov_offset), BPF_CORE_READ(msg, msg_flags)))
		return 0;
	bpf_get_current_comm(comm, sizeof(comm));
	write_begins(sk, w, write_seq, size, bpf_get_current_pid_tgid() >> 32, comm);
	return 0;
}

SEC("fentry/tcp_sendmsg_locked")
int BPF_PROG(fen_write, struct sock *sk, struct msghdr *msg, unsigned long size)
{
	struct waiting *w = size ? stored_or_made(sk, IPPROTO_TCP) : NULL;
	struct task_struct *task;
	struct connection c;

	if (!w || !connection_load(sk, &c))
		return 0;
	task = bpf_get_current_task_btf();
	write_begins(sk, w, c.write_seq, size, task->tgid, (const __u64 *)task->comm);
	return 0;
}

SEC("kprobe/tcp_sendmsg_locked")
int BPF_KPROBE(kp_write, struct sock *sk, struct msghdr *msg, unsigned long size)
{
	struct waiting *w = size ? find_or_make(sk, IPPROTO_TCP) : NULL;
	__u64 comm[2];

	if (!w)
		return 0;
	bpf_get_current_comm(comm, sizeof(comm));
	write_begins(sk, w, BPF_CORE_READ((const struct tcp_sock *)sk, write_seq), size,
		     bpf_get_current_pid_tgid() >> 32, comm);
	return 0;
}

/* At the device, a tunnel's header may be where TCP's is expected. */
static __always_inline bool header_of(const struct tcp_header *tcp, __u16 num, __be16 dport)
{
	return tcp->source == bpf_htons(num) && tcp->dest == dport;
}

static __always_inline int queued_loaded(const struct sk_buff *skb)
{
	struct sock *sk = skb->sk;
	/* The verifier does not allow loads from a packet's socket as a connection. */
	const struct tcp_sock *tp = (const struct tcp_sock *)sk;
	struct tcp_header tcp;
	struct waiting *w;
	__u32 end_seq;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	w = stored(sk);
	if (!w || queue_empty(&w->out) ||
	    bpf_probe_read_kernel(&tcp, sizeof(tcp), skb->head + skb->transport_header) ||
	    !data_end(&tcp, skb->head + skb->transport_header - skb->data, skb->len, &end_seq) ||
	    !is_new(w, end_seq) ||
	    !header_of(&tcp, sk->__sk_common.skc_num, sk->__sk_common.skc_dport))
		return 0;
	return segment_out(sk, w, end_seq,
			   bpf_core_field_exists(tp->tcp_clock_cache) ?
				   BPF_CORE_READ(tp, tcp_clock_cache) :
				   bpf_ktime_get_ns());
}

SEC("tp_btf/net_dev_queue")
int btf_queue(__u64 *ctx)
{
	queued_loaded((const struct sk_buff *)ctx[0]);
	chain_from(ctx, net_dev_queue, CHAIN_SOCKETLATENCY + 1);
	return 0;
}

SEC("raw_tp/net_dev_queue")
int raw_queue(struct bpf_raw_tracepoint_args *ctx)
{
	const struct sk_buff *skb = (const struct sk_buff *)ctx->args[0];
	const struct sock *sk = BPF_CORE_READ(skb, sk);
	const unsigned char *th;
	struct tcp_header tcp;
	struct waiting *w;
	__u32 end_seq;

	if (!sk)
		return 0;
	w = find(sk);
	if (!w || queue_empty(&w->out))
		return 0;
	th = BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, transport_header);
	if (bpf_probe_read_kernel(&tcp, sizeof(tcp), th) ||
	    !data_end(&tcp, th - BPF_CORE_READ(skb, data), BPF_CORE_READ(skb, len), &end_seq) ||
	    !is_new(w, end_seq) ||
	    !header_of(&tcp, BPF_CORE_READ(sk, __sk_common.skc_num),
		       BPF_CORE_READ(sk, __sk_common.skc_dport)))
		return 0;
	return segment_out(sk, w, end_seq, bpf_ktime_get_ns());
}

SEC("fentry/__tcp_transmit_skb")
int BPF_PROG(fen_transmit, struct sock *sk, struct sk_buff *skb)
{
	const struct tcp_skb_cb *cb = (const struct tcp_skb_cb *)&skb->cb[0];
	struct waiting *w = stored(sk);
	struct connection c;
	__u32 end_seq;

	if (!w || queue_empty(&w->out))
		return 0;
	end_seq = BPF_CORE_READ(cb, end_seq);
	if (end_seq == BPF_CORE_READ(cb, seq) || !is_new(w, end_seq) || !connection_load(sk, &c))
		return 0;
	return segment_out(sk, w, end_seq, c.clock_ns);
}

SEC("kprobe/__tcp_transmit_skb")
int BPF_KPROBE(kp_transmit, struct sock *sk, struct sk_buff *skb)
{
	const struct tcp_skb_cb *cb = (const struct tcp_skb_cb *)&skb->cb[0];
	struct waiting *w = find(sk);
	__u32 end_seq;

	if (!w || queue_empty(&w->out))
		return 0;
	end_seq = BPF_CORE_READ(cb, end_seq);
	if (end_seq == BPF_CORE_READ(cb, seq) || !is_new(w, end_seq))
		return 0;
	return segment_out(sk, w, end_seq, bpf_ktime_get_ns());
}
