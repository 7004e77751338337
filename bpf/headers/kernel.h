/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* The kernel's types, as far as the probes read them.
 *
 * Every struct lists only the fields in use, in any order: the loader relocates
 * each access to the offset in the running kernel's BTF. Reads of fields that some
 * kernels lack are guarded by bpf_core_field_exists(). Types of the BPF interface
 * itself (contexts) have a fixed layout and are declared completely, outside the
 * attribute. */

#ifndef NODESKOOP_KERNEL_H
#define NODESKOOP_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef _Bool bool;

#define NULL ((void *)0)

enum { false, true };

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_QUEUE = 22,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_SK_STORAGE_GET_F_CREATE = 1,
	BPF_RB_AVAIL_DATA = 0,
	BPF_RB_RING_SIZE = 1,
};

/* Contexts: their layout is part of the BPF interface. */

struct bpf_raw_tracepoint_args {
	__u64 args[0];
};

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys __attribute__((aligned(8)));
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk __attribute__((aligned(8)));
	__u32 gso_size;
};

struct task_struct;
struct file;

/* One process or thread of an iteration, NULL at its end. */
struct bpf_iter__task {
	void *meta;
	struct task_struct *task;
};

/* One open file of an iteration. */
struct bpf_iter__task_file {
	void *meta;
	struct task_struct *task;
	__u32 fd __attribute__((aligned(8)));
	struct file *file;
};

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
struct pt_regs {
	struct user_pt_regs user_regs;
};
#endif

/* bpf_tracing.h selects the kernel's register names by this macro. */
#define __VMLINUX_H__

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Namespaces and devices */

struct ns_common {
	unsigned int inum;
};

/* A UID as the initial user namespace sees it: the creator of a namespace. */
typedef struct {
	unsigned int val;
} kuid_t;

struct user_namespace {
	int level; /* 0: the initial one */
	kuid_t owner;
};

struct net {
	struct ns_common ns;
	struct user_namespace *user_ns;
	__u32 hash_mix; /* random, drawn when the namespace is created (setup_net) */
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sk_buff;

/* A queueing discipline. Without an enqueue function it queues nothing. */
struct Qdisc {
	int (*enqueue)(struct sk_buff *, struct Qdisc *, struct sk_buff **);
};

struct netdev_queue {
	struct Qdisc *qdisc;
};

struct list_head {
	struct list_head *next;
};

struct netdev_hw_addr {
	struct list_head list;
	unsigned char addr[32];
};

struct netdev_hw_addr_list {
	struct list_head list;
};

struct net_device {
	char name[16];
	int ifindex;
	unsigned int flags;
	unsigned long state;
	unsigned short type;
	possible_net_t nd_net;
	struct netdev_queue *_tx;
	struct Qdisc *qdisc;
	void *rx_handler;
	struct netdev_hw_addr_list mc; /* multicast groups whose frames the device accepts */
};

struct dst_entry {
	struct net_device *dev;
};

/* Sockets */

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	__u16 skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	__u32 skc_tw_rcv_nxt; /* TCP only: the rcv_nxt of a time-wait socket */
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sk_buff_head {
	struct sk_buff *next;
	struct sk_buff *prev;
	__u32 qlen;
};

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	struct dst_entry *sk_dst_cache;
	__u16 sk_type;
	__u16 sk_protocol;
};

struct inet_sock {
	__be16 inet_sport;
};

struct tcp_sock {
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 last_oow_ack_time;
	__u64 tcp_clock_cache;
};

struct request_sock_queue {
	__u8 rskq_defer_accept;
};

struct inet_connection_sock {
	struct request_sock_queue icsk_accept_queue;
};

struct udp_sock {
	struct sk_buff_head reader_queue;
};

struct request_sock {
	struct sock_common __req_common;
};

/* Packets */

struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	__u64 skb_mstamp_ns;
	char cb[48];
	unsigned long _skb_refdst;
	unsigned int len;
	unsigned int data_len;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	__u16 mac_header;
	unsigned int tail;
	unsigned int end;
	unsigned char *head;
	unsigned char *data;
	struct sk_buff *next;
	__u8 pkt_type : 3;
	__u8 cloned : 1;
	__u8 ip_summed : 2;
	__u8 csum_valid : 1;
};

struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
	__u16 tcp_gso_segs;
};

/* Drop reasons: only the enumerators in use. The loader takes their numbers from
 * the kernel's BTF. */

enum skb_drop_reason {
	SKB_NOT_DROPPED_YET,
	SKB_CONSUMED,
	SKB_DROP_REASON_NETFILTER_DROP,
};

/* Flags above the operation in cmd_flags. */
enum req_flag_bits {
	__REQ_SYNC = 11,
	__REQ_FUA = 17,
	__REQ_PREFLUSH = 18,
	__REQ_RAHEAD = 19,
};

/* Timers, and the fragment queues that end by one */

struct timer_list {
	void *function;
};

struct fqdir {
	struct net *net;
};

struct inet_frag_queue {
	struct timer_list timer;
	struct fqdir *fqdir;
};

/* Processes */

struct nsproxy {
	struct net *net_ns;
};

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live; /* threads that have not exited */
	unsigned long nvcsw; /* voluntary switches of exited threads */
	unsigned long nivcsw;
};

struct fdtable {
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct task_struct {
	int pid;
	int tgid;
	int on_cpu;
	int exit_state;
	struct task_struct *real_parent;
	struct signal_struct *signal;
	struct nsproxy *nsproxy;
	struct files_struct *files;
	unsigned long nvcsw;
	unsigned long nivcsw;
	__u64 start_boottime;
	unsigned in_iowait : 1; /* sleeps until an I/O ends, io_schedule() */
	char comm[16];
};

/* Files */

struct super_block {
	unsigned long s_magic;
};

struct inode {
	struct super_block *i_sb;
	void *i_private; /* of a namespace's file: its struct ns_common */
};

struct file {
	struct inode *f_inode;
};

/* Block I/O */

struct gendisk {
	char disk_name[32];
	__u64 diskseq; /* since 5.15; a loop device gets another with each file */
};

struct request_queue {
	struct gendisk *disk;
};

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len; /* remaining bytes */
};

/* Before 5.16 the request itself pointed to its disk. */
struct request___disk {
	struct gendisk *rq_disk;
};

#pragma clang attribute pop

/* Numbers that are part of a protocol or of the kernel's interface. */

enum {
	AF_UNIX = 1,
	AF_INET = 2,
	AF_INET6 = 10,
	AF_KEY = 15,
	AF_NETLINK = 16,
	AF_PACKET = 17,
	AF_ALG = 38,
	AF_VSOCK = 40,

	SOCK_STREAM = 1,
	SOCK_DGRAM = 2,

	PACKET_BROADCAST = 1,
	PACKET_MULTICAST = 2,
	PACKET_OTHERHOST = 3,
	PACKET_OUTGOING = 4,
	PACKET_LOOPBACK = 5,

	CHECKSUM_UNNECESSARY = 1,
	CHECKSUM_PARTIAL = 3,

	ETH_P_IP = 0x0800,
	ETH_P_IPV6 = 0x86dd,
	ETH_P_8021Q = 0x8100,
	ETH_P_8021AD = 0x88a8,

	IPPROTO_HOPOPTS = 0,
	IPPROTO_ICMP = 1,
	IPPROTO_IGMP = 2,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_DCCP = 33,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_AH = 51,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_DSTOPTS = 60,
	IPPROTO_SCTP = 132,
	IPPROTO_UDPLITE = 136,

	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_LISTEN = 10,
	TCP_NEW_SYN_RECV = 12,

	TCP_FLAG_FIN = 1,
	TCP_FLAG_SYN = 2,
	TCP_FLAG_RST = 4,

	ICMP_ECHOREPLY = 0,
	ICMPV6_ECHO_REPLY = 129,
	BOOTP_SERVER = 67,
	BOOTP_CLIENT = 68,

	MSG_PEEK = 2,

	SOCKFS_MAGIC = 0x534F434B,
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

/* A function that the verifier checks once rather than for every path of every
 * caller. Arguments must be numbers. */
#define VERIFIED_ONCE __attribute__((noinline))

/* Makes bpf2go export types to Go (its option -type): an object contains only types
 * that a variable uses, so this macro declares a struct with them as members. */
#define GO_TYPES(...)                                                                              \
	struct {                                                                                   \
		__VA_ARGS__                                                                        \
	} *const go_types = NULL

/* Namespace inode numbers start at the kernel's dynamic range, and the initial
 * namespace's lies just below it. Any other value was not read from a namespace: a
 * packet's device pointer shares memory with a queue's links and a receive-side
 * scratch value. */
#define NETNS_INUM_MIN 0xEFFFFF00u

static __always_inline __u32 netns_checked(__u32 inum)
{
	return inum >= NETNS_INUM_MIN ? inum : 0;
}

/* The owner of an occurrence. */
struct owner {
	__u32 netns; /* 0: not known */
	const struct net *net; /* the namespace as a pointer, to read its creator; or NULL */
};

/* The key of a namespace in tables. When a namespace is gone, another soon
 * gets its inode number. The upper half, which the kernel draws at random
 * for each namespace, distinguishes them. User space reads it by
 * identity.bpf.c. */
static __always_inline __u64 netns_id(struct owner o)
{
	const struct net *net = o.net;

	return net ? (__u64)BPF_CORE_READ(net, hash_mix) << 32 | o.netns : o.netns;
}

static __always_inline struct owner owner_of_net(const struct net *net)
{
	struct owner o = {};

	if (net) {
		o.netns = netns_checked(BPF_CORE_READ(net, ns.inum));
		o.net = net;
	}
	return o;
}

static __always_inline struct owner owner_of_dev(const struct net_device *dev)
{
	return owner_of_net(dev ? BPF_CORE_READ(dev, nd_net.net) : NULL);
}

/* Full, request and time-wait sockets all begin with struct sock_common. */
static __always_inline struct owner owner_of_sock(const struct sock *sk)
{
	return owner_of_net(sk ? BPF_CORE_READ(sk, __sk_common.skc_net.net) : NULL);
}

static __always_inline struct owner owner_of_skb(const struct sk_buff *skb)
{
	struct owner o = owner_of_dev(BPF_CORE_READ(skb, dev));
	unsigned long dst;

	if (o.netns)
		return o;
	o = owner_of_sock(BPF_CORE_READ(skb, sk));
	if (o.netns)
		return o;
	/* The lowest bit is a flag: whether the route is referenced. */
	dst = BPF_CORE_READ(skb, _skb_refdst) & ~1ul;
	return owner_of_dev(dst ? BPF_CORE_READ((struct dst_entry *)dst, dev) : NULL);
}

#endif
