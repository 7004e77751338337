/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* How network namespaces share the room in a table.
 *
 * User space names the namespaces that it follows: each has a share of its own,
 * made before it needs it. All others share what is set apart for them, by who
 * made the namespace, since anybody may make thousands. What finds its share
 * used up gets no entry, and is counted where it cannot be taken for another's.
 *
 * Entries in use are counted up here, and again by user space whenever it has
 * read the table: what it deleted, and what two CPUs counted twice, is free
 * again then. */

#ifndef NODESKOOP_ROOM_H
#define NODESKOOP_ROOM_H

#include "kernel.h"

/* The rooms of namespaces that user space does not follow. As keys they are no
 * inode number of a namespace. */
enum room {
	ROOM_OWN, /* no such room: the namespace has a share of its own */
	ROOM_NODE, /* made with privileges over the whole machine */
	ROOM_ROOT, /* made by root in a user namespace, as a pod's may be */
	ROOM_USERS, /* made by an unprivileged user */
	ROOMS,
	NO_ROOM,
};

struct share {
	__u32 used;
	__u32 most;
	__u32 refused;
	__u32 unused;
};

#define DEFINE_SHARES(name, entries)                                                               \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_HASH);                                                   \
		__uint(max_entries, entries);                                                      \
		__type(key, __u32);                                                                \
		__type(value, struct share);                                                       \
	} name SEC(".maps")

static __always_inline __u32 room_of(const struct net *net)
{
	const struct user_namespace *user_ns;

	if (!net)
		return ROOM_NODE;
	user_ns = BPF_CORE_READ(net, user_ns);
	if (!BPF_CORE_READ(user_ns, level))
		return ROOM_NODE;
	return BPF_CORE_READ(user_ns, owner.val) ? ROOM_USERS : ROOM_ROOT;
}

/* take_room takes room for an entry, and says of which share: NO_ROOM if that is
 * used up. */
static __always_inline __u32 take_room(void *shares, struct owner o)
{
	struct share *s = bpf_map_lookup_elem(shares, &o.netns);
	__u32 room = ROOM_OWN;

	if (!s) {
		room = room_of(o.net);
		s = bpf_map_lookup_elem(shares, &room);
	}
	if (!s)
		return NO_ROOM;
	if (s->used >= s->most) {
		__sync_fetch_and_add(&s->refused, 1);
		return NO_ROOM;
	}
	__sync_fetch_and_add(&s->used, 1);
	return room;
}

#endif
