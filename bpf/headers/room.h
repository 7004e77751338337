/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* How network namespaces share the room in a table.
 *
 * User space names the namespaces that it follows: each has a reserved share,
 * created before it is needed. All other namespaces share rooms by the creator of
 * the namespace, since any user may create thousands. An occurrence whose room is
 * used up gets no entry and counts under NETNS_NONE.
 *
 * The programs only increase the number of used entries. User space recounts it
 * after each reading of the table, which frees deleted entries and corrects double
 * counts of racing CPUs. */

#ifndef NODESKOOP_ROOM_H
#define NODESKOOP_ROOM_H

#include "kernel.h"

/* Rooms for namespaces that user space does not follow. As map keys they differ
 * from every namespace inode number. */
enum room {
	ROOM_OWN, /* no room: the namespace has its own share */
	ROOM_NODE, /* created with privileges over the whole machine */
	ROOM_ROOT, /* created by root in a user namespace, such as a pod's */
	ROOM_USERS, /* created by an unprivileged user */
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

/* take_room reserves an entry and returns its room; NO_ROOM if that is used up. */
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
