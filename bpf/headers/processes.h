/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* What iterators write of each process, for iterators.go to read. */

#ifndef NODESKOOP_PROCESSES_H
#define NODESKOOP_PROCESSES_H

/* The map, of struct process, which begins with the generation; and what
 * numbers the readings, so that what an earlier one left behind is known. */
#define DEFINE_PROCESSES()                                     \
	__u32 generation;                                      \
                                                               \
	struct {                                               \
		__uint(type, BPF_MAP_TYPE_HASH);               \
		__uint(map_flags, BPF_F_NO_PREALLOC);          \
		__uint(max_entries, 16384);                    \
		__type(key, __u32);                            \
		__type(value, struct process);                 \
	} processes SEC(".maps")

#endif
