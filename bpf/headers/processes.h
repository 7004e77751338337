/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* The records that iterators write per process. iterators.go reads them. */

#ifndef NODESKOOP_PROCESSES_H
#define NODESKOOP_PROCESSES_H

/* The map of struct process, and the generation: the number of the reading, with
 * which each value begins, so that values of earlier readings are recognised. */
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
