// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* activity: tells which processes have not run for a while, for the probe io.
 * Nothing of it runs but when it is asked. */

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

/* Whenever a thread leaves the CPU it is counted, as one that waits or as one
 * that must (kernel/sched/core.c, __schedule). So a process that runs nowhere
 * and whose count is what it was has not run. */
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
	/* A kernel for one CPU does not note who is on it. Newer ones do it in
	 * fewer bytes. */
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
