// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//go:build ignore

/* virtcmdlatency: duration of virtio-net control commands. There is no tracepoint.
 * The function is static, and renamed in 6.10. */

#include "headers/kernel.h"
#include "headers/counter.h"
#include "headers/event.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum slot { SLOW, SLOW100, SLOTS };

GO_TYPES(enum slot slot;);

const volatile __u64 slow_ns = 10000000;
const volatile __u64 slow100_ns = 100000000;

DEFINE_HOST_COUNTERS();

/* By thread, not by CPU: the caller may sleep and wake up on another CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} calls SEC(".maps");

static __always_inline int called(void)
{
	__u64 thread = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns();

	bpf_map_update_elem(&calls, &thread, &now, BPF_ANY);
	return 0;
}

static __always_inline int returned(void)
{
	__u64 thread = bpf_get_current_pid_tgid(), now, latency;
	__u64 *since = bpf_map_lookup_elem(&calls, &thread);
	struct event *e;

	if (!since)
		return 0;
	now = bpf_ktime_get_ns();
	latency = now - *since;
	bpf_map_delete_elem(&calls, &thread);
	if (latency < slow_ns)
		return 0;
	count_host(SLOW);
	if (latency >= slow100_ns)
		count_host(SLOW100);
	e = event_reserve_host(EVENT_VIRTCMDEXCUTE, now, sizeof(*e));
	if (!e)
		return 0;
	e->latency_ns = latency;
	event_set_process(e);
	event_submit(e);
	return 0;
}

#define COMMAND(name, function)                                                                    \
	SEC("fentry/" #function)                                                                   \
	int BPF_PROG(fen_##name)                                                                   \
	{                                                                                          \
		return called();                                                                   \
	}                                                                                          \
	SEC("fexit/" #function)                                                                    \
	int BPF_PROG(fex_##name)                                                                   \
	{                                                                                          \
		return returned();                                                                 \
	}                                                                                          \
	SEC("kprobe/" #function)                                                                   \
	int BPF_KPROBE(kp_##name)                                                                  \
	{                                                                                          \
		return called();                                                                   \
	}                                                                                          \
	SEC("kretprobe/" #function)                                                                \
	int BPF_KPROBE(krp_##name)                                                                 \
	{                                                                                          \
		return returned();                                                                 \
	}

COMMAND(reply, virtnet_send_command_reply)
COMMAND(command, virtnet_send_command)
