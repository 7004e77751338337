/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/* Chains: the programs of several probes at one tracepoint.
 *
 * Only one program is attached (chain.bpf.c). It calls the program at the first place,
 * and each program calls the next when it has done its work. With retpolines each program
 * that is attached by itself costs some 50 ns a run, whatever it does. A tail call to a
 * place that is known at load time costs too little to be measured: on amd64 it is a jump,
 * which the kernel removes while the place is empty (bpf_tail_call_direct_fixup() in
 * arch/x86/net/bpf_jit_comp.c).
 *
 * Each probe's program is still loaded and verified alone. A probe comes and goes by one
 * write to its place, which the others do not notice. */

#ifndef NODESKOOP_CHAIN_H
#define NODESKOOP_CHAIN_H

#include "kernel.h"

/* The probes' places, the same in all chains. */
enum chain_place {
	CHAIN_SOCKETLATENCY,
	CHAIN_KERNELLATENCY,
	CHAIN_NETIFTXLATENCY,
	CHAIN_PLACES,
};

/* Whether the programs belong to chains. Two instances of a probe cannot share its place;
 * the second is attached by itself, and must not call what follows in the chain. */
const volatile bool chained = true;

/* The program types of a chain's programs must be the same. */
#define DEFINE_CHAIN(tracepoint)                                                                   \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY);                                             \
		__uint(max_entries, CHAIN_PLACES);                                                 \
		__type(key, __u32);                                                                \
		__type(value, __u32);                                                              \
	} chain_##tracepoint SEC(".maps")

/* chain_from calls the first program at this place or a later one, and does not return. It
 * returns if there is none. */
#define chain_from(ctx, tracepoint, place)                                                         \
	do {                                                                                       \
		if (chained) {                                                                     \
			if ((place) <= 0)                                                          \
				bpf_tail_call_static(ctx, &chain_##tracepoint, 0);                 \
			if ((place) <= 1)                                                          \
				bpf_tail_call_static(ctx, &chain_##tracepoint, 1);                 \
			if ((place) <= 2)                                                          \
				bpf_tail_call_static(ctx, &chain_##tracepoint, 2);                 \
		}                                                                                  \
	} while (0)

_Static_assert(CHAIN_PLACES == 3, "chain_from() calls each place");

#endif
