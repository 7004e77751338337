// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* identity: tells user space what netns_id() sees of a namespace. It runs only on
 * request, in the process that asks. */

#include "headers/kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Returns the upper half of the current namespace's netns_id(). */
SEC("raw_tp")
int own_namespace(void *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return BPF_CORE_READ(task, nsproxy, net_ns, hash_mix);
}
