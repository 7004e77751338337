// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* identity: the random part of a namespace's ID, and the caller's PID in the initial
 * PID namespace. The programs run only on request, in the process that asks. */

#include "headers/kernel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Returns the upper half of the netns_id() of a network namespace. The argument is a
 * descriptor of the calling process, which has opened the namespace's file. Entering
 * the namespace instead would need CAP_SYS_ADMIN. */
SEC("raw_tp")
int netns_of_file(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct file **files = BPF_CORE_READ(task, files, fdt, fd), *file = NULL;
	const struct net *net;

	bpf_probe_read_kernel(&file, sizeof(file), files + ctx->args[0]);
	net = BPF_CORE_READ(file, f_inode, i_private) - bpf_core_field_offset(struct net, ns);
	return BPF_CORE_READ(net, hash_mix);
}

/* Returns the PID of the calling process in the initial PID namespace. */
SEC("raw_tp")
int own_pid(void *ctx)
{
	return bpf_get_current_pid_tgid() >> 32;
}
