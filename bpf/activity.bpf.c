// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* activity: detects which processes have not run for a while, for the probe io. It
 * runs only on request. */

#include "headers/kernel.h"
#include "headers/processes.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum state { RUNS = 0x80000000 };

struct process {
	__u32 generation;
	__u32 threads;
	__u64 switches;
	__u64 start;
	__u32 parent;
	enum state state; /* exit_state, and RUNS if a thread is on a CPU */
};

DEFINE_PROCESSES();

/* The kernel counts a context switch, voluntary or not, whenever a thread leaves a
 * CPU (kernel/sched/core.c, __schedule). So a process has not run if none of its
 * threads is on a CPU and its count is unchanged. */
SEC("iter/task")
int each_thread(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct process *process;
	__u32 pid;

	if (!task)
		return 0;
	pid = task->tgid;
	process = bpf_map_lookup_elem(&processes, &pid);
	if (!process || process->generation != generation) {
		struct process none = { .generation = generation };

		bpf_map_update_elem(&processes, &pid, &none, BPF_ANY);
		process = bpf_map_lookup_elem(&processes, &pid);
		if (!process)
			return 0;
	}
	process->threads++;
	process->switches += task->nvcsw + task->nivcsw;
	/* A uniprocessor kernel has no on_cpu. In newer kernels it is a bit field. */
	if (!bpf_core_field_exists(task->on_cpu) || BPF_CORE_READ_BITFIELD(task, on_cpu))
		process->state |= RUNS;
	if (task->pid == task->tgid) {
		process->switches += task->signal->nvcsw + task->signal->nivcsw;
		process->start = task->start_boottime;
		process->parent = task->real_parent->tgid;
		process->state |= task->exit_state;
	}
	return 0;
}
