/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* The ends of a packet or of a socket. */

#ifndef NODESKOOP_TUPLE_H
#define NODESKOOP_TUPLE_H

#include "kernel.h"

struct tuple {
	__u8 saddr[16]; /* IPv4 as ::ffff:a.b.c.d */
	__u8 daddr[16];
	__u16 sport; /* host order; 0 where the protocol or the packet has none */
	__u16 dport;
	__u8 protocol;
	__u8 family; /* 4, 6, or 0 if unknown, in which case all else is zero */
	__u16 unused;
};

static __always_inline void tuple_set_v4(__u8 addr[16], __be32 v4)
{
	__u64 *half = (__u64 *)addr;
	__u32 *word = (__u32 *)addr;

	half[0] = 0;
	word[2] = bpf_htonl(0xffff);
	word[3] = v4;
}

static __always_inline void tuple_clear(struct tuple *t)
{
	__builtin_memset(t, 0, sizeof(*t));
}

static __always_inline void tuple_swap(struct tuple *t)
{
	__u64 *s = (__u64 *)t->saddr, *d = (__u64 *)t->daddr, half;
	__u16 port = t->sport;

	half = s[0], s[0] = d[0], d[0] = half;
	half = s[1], s[1] = d[1], d[1] = half;
	t->sport = t->dport;
	t->dport = port;
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP;
}

/* A packet as the current program can read it: as an skb's linear part at a kernel
 * address (tracing programs; data beyond `end` is in pages out of reach, or not
 * part of the packet), or through the context (programs on the packet path). The
 * choice is a compile-time constant. */
struct packet {
	struct __sk_buff *context;
	const unsigned char *head;
	__u32 end;
};

static __always_inline long packet_read(const struct packet *p, __u32 offset, void *to,
					const __u32 size)
{
	if (p->context)
		return bpf_skb_load_bytes(p->context, offset, to, size);
	if (offset + size > p->end)
		return -1;
	return bpf_probe_read_kernel(to, size, p->head + offset);
}

struct headers {
	__u32 l3; /* offset of the IP header */
	__u32 l4; /* offset behind the IP header and its extensions */
	bool first; /* not a later fragment, so it has the transport header */
};

#define IPV4_OFFSET_MASK 0x1fff
#define IPV6_OFFSET_MASK 0xfff8
#define IPV6_EXTENSIONS 6
#define VLAN_TAGS 2

/* Fills the tuple from the IPv4 header at `offset`; false if there is none. */
static __always_inline bool tuple_parse_v4(const __u8 *ip, __u32 offset, struct tuple *t,
					   struct headers *h)
{
	__u32 ihl = (ip[0] & 15) * 4, total = ip[2] << 8 | ip[3];

	/* In a packet too long for the length field (BIG TCP), the field is zero. */
	if (ihl < 20 || (total && total < ihl))
		return false;
	h->l4 = offset + ihl;
	h->first = !((ip[6] << 8 | ip[7]) & IPV4_OFFSET_MASK);
	t->family = 4;
	t->protocol = ip[9];
	tuple_set_v4(t->saddr, *(__be32 *)&ip[12]);
	tuple_set_v4(t->daddr, *(__be32 *)&ip[16]);
	return true;
}

static __always_inline bool is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT || next == IPPROTO_AH;
}

static __always_inline void tuple_parse_v6(const struct packet *p, const __u8 *ip, __u32 offset,
					   struct tuple *t, struct headers *h)
{
	__u8 next = ip[6], ext[4];

	t->family = 6;
	__builtin_memcpy(t->saddr, &ip[8], 16);
	__builtin_memcpy(t->daddr, &ip[24], 16);
	offset += 40;
	_Pragma("unroll") for (int i = 0; i < IPV6_EXTENSIONS; i++)
	{
		if (!h->first || !is_extension(next) || packet_read(p, offset, ext, sizeof(ext)))
			break;
		if (next == IPPROTO_FRAGMENT) {
			h->first = !((ext[2] << 8 | ext[3]) & IPV6_OFFSET_MASK);
			offset += 8;
		} else if (next == IPPROTO_AH) {
			offset += (ext[1] + 2) * 4;
		} else {
			offset += (ext[1] + 1) * 8;
		}
		next = ext[0];
	}
	h->l4 = offset;
	t->protocol = next;
}

/* tuple_parse reads the headers from `offset` on and returns whether they are IP.
 * `protocol` is the protocol named by the layer below, 0 if unknown. Ports stay
 * zero if there are none to read. */
static __always_inline bool tuple_parse(const struct packet *p, __u32 offset, __be16 protocol,
					struct tuple *t, struct headers *h)
{
	__be16 tag[2], ports[2];
	__u8 ip[40] __attribute__((aligned(8)));

	tuple_clear(t);
	_Pragma("unroll") for (int i = 0; i < VLAN_TAGS; i++)
	{
		if (protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD))
			break;
		if (packet_read(p, offset, tag, sizeof(tag)))
			return false;
		protocol = tag[1];
		offset += sizeof(tag);
	}
	if (packet_read(p, offset, ip, 20))
		return false;
	h->l3 = offset;
	h->first = true;
	if (ip[0] >> 4 == 4 && (!protocol || protocol == bpf_htons(ETH_P_IP))) {
		if (!tuple_parse_v4(ip, offset, t, h))
			return false;
	} else if (ip[0] >> 4 == 6 && (!protocol || protocol == bpf_htons(ETH_P_IPV6))) {
		if (packet_read(p, offset, ip, sizeof(ip)))
			return false;
		tuple_parse_v6(p, ip, offset, t, h);
	} else {
		return false;
	}
	if (h->first && has_ports(t->protocol) && !packet_read(p, h->l4, ports, sizeof(ports))) {
		t->sport = bpf_ntohs(ports[0]);
		t->dport = bpf_ntohs(ports[1]);
	}
	return true;
}

/* tuple_from_skb parses from the network header and ignores the offset of the
 * transport header, which much of the stack leaves unset. */
static __always_inline bool tuple_from_skb(const struct sk_buff *skb, struct tuple *t)
{
	struct packet p = {
		.head = BPF_CORE_READ(skb, head),
		.end = BPF_CORE_READ(skb, tail),
	};
	struct headers h = {};

	return tuple_parse(&p, BPF_CORE_READ(skb, network_header), BPF_CORE_READ(skb, protocol), t,
			   &h);
}

/* tuple_from_common fills the tuple from fields that full, request and time-wait
 * sockets share; the source is this end. */
static __always_inline bool tuple_from_common(const struct sock_common *sk, __u8 protocol,
					      struct tuple *t)
{
	__u16 family = BPF_CORE_READ(sk, skc_family);

	tuple_clear(t);
	if (family == AF_INET) {
		t->family = 4;
		tuple_set_v4(t->saddr, BPF_CORE_READ(sk, skc_rcv_saddr));
		tuple_set_v4(t->daddr, BPF_CORE_READ(sk, skc_daddr));
	} else if (family == AF_INET6) {
		t->family = 6;
		BPF_CORE_READ_INTO(&t->saddr, sk, skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&t->daddr, sk, skc_v6_daddr);
	} else {
		return false;
	}
	t->protocol = protocol;
	t->sport = BPF_CORE_READ(sk, skc_num);
	t->dport = bpf_ntohs(BPF_CORE_READ(sk, skc_dport));
	return true;
}

/* For a full socket. A closing socket has already returned its port, but its last
 * packets still carry it, so the port comes from the socket's own copy. */
static __always_inline bool tuple_from_sock(const struct sock *sk, __u8 protocol, struct tuple *t)
{
	if (!tuple_from_common(&sk->__sk_common, protocol, t))
		return false;
	if (!t->sport)
		t->sport = bpf_ntohs(BPF_CORE_READ((const struct inet_sock *)sk, inet_sport));
	return true;
}

#endif
