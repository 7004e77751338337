// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* openfiles: counts the open descriptors of every process of the node at once, for
 * the probe fd. It runs only on request. */

#include "headers/kernel.h"
#include "headers/processes.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

struct process {
	__u32 generation;
	__u32 open;
	__u32 sockets;
};

DEFINE_PROCESSES();

/* Visits each process, including those without descriptors. A process missing from
 * the map found no room, or started later. */
SEC("iter/task")
int each_process(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct process none = { .generation = generation };
	__u32 pid;

	if (!task || task->pid != task->tgid)
		return 0;
	/* If the first thread has exited and others run, the others hold the
	 * descriptors, and each_file does not count them. */
	if (task->exit_state && task->signal->live.counter > 0)
		return 0;
	pid = task->tgid;
	bpf_map_update_elem(&processes, &pid, &none, BPF_ANY);
	return 0;
}

/* Visits each descriptor. A thread may have a descriptor table of its own;
 * /proc/PID/fd shows the first thread's. */
SEC("iter/task_file")
int each_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct process *process;
	__u32 pid;

	if (!task || !file || task->pid != task->tgid)
		return 0;
	pid = task->tgid;
	process = bpf_map_lookup_elem(&processes, &pid);
	if (!process || process->generation != generation)
		return 0;
	process->open++;
	/* /proc shows these as socket:[inode]. */
	if (file->f_inode->i_sb->s_magic == SOCKFS_MAGIC)
		process->sockets++;
	return 0;
}
