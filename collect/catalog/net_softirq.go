package catalog

import "time"

var netSoftirq = Probe{
	Name: "net_softirq", Aliases: []string{"softirq"},
	Title:  "delay and run time of the network softirqs",
	Rank:   18,
	Source: EBPF, Overhead: "high", Measured: "39 to 43 ns/step", Escalate: true,
	Cost:         "Runs three times for each network softirq: 39, 40 and 43 ns.",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Options:      []Option{slowOption, nodeHistogramsOption},
	Metrics: []Metric{{
		Name: "kubeskoop_softirq_schedslow", Type: Counter, Scope: PerHost,
		Help:   "Network softirqs that started over 10 ms after they were raised, those over 100 ms included.",
		Kernel: "irq:softirq_raise to irq:softirq_entry, NET_RX and NET_TX",
		Rises:  "The CPU cannot run softirqs for over 10 ms: kernel code disabled them, other softirqs run, a realtime task runs before ksoftirqd, or the hypervisor took the CPU.",
	}, {
		Name: "kubeskoop_softirq_schedslow100ms", Type: Counter, Scope: PerHost,
		Help:   "Network softirqs that started over 100 ms after they were raised.",
		Kernel: "irq:softirq_raise to irq:softirq_entry, NET_RX and NET_TX",
		Rises:  "As schedslow, for over 100 ms.",
	}, {
		Name: "kubeskoop_softirq_excuteslow", Type: Counter, Scope: PerHost,
		Help:   "Network softirqs that ran for over 10 ms, those over 100 ms included.",
		Kernel: "irq:softirq_entry to irq:softirq_exit, NET_RX and NET_TX",
		Rises:  "One softirq run takes over 10 ms: heavy rule sets, a slow driver, or a CPU that the hypervisor took away.",
	}, {
		Name: "kubeskoop_softirq_excuteslow100ms", Type: Counter, Scope: PerHost,
		Help:   "Network softirqs that ran for over 100 ms.",
		Kernel: "irq:softirq_entry to irq:softirq_exit, NET_RX and NET_TX",
		Rises:  "The same for over 100 ms.",
	}, latency("nodeskoop_softirq_seconds", []string{"vector", "stage"},
		"Time of network softirqs, by vector and stage: the delay before they start, and their run.",
		"irq:softirq_raise to irq:softirq_entry (stage delay), and from there to irq:softirq_exit (stage run)",
		"Each NET_RX and NET_TX softirq counts twice, once for each stage. One that began before the probe did has no delay.")},
	Events: []EventType{{
		Name: "NETSOFTIRQ_SCHED_SLOW", Path: "softirq_raise -> softirq_entry (NET_RX, NET_TX)", Threshold: 10 * time.Millisecond, Below: 100 * time.Millisecond, Warn: Warn{Count: 1000},
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency, FieldVector},
		MessageID: "c498b6e73648245edafa3a387f006745",
		Summary:   "A network softirq was scheduled late",
		Message:   "network softirq started {latency} late",
		Explain: "The kernel raised a network softirq (KUBESKOOP_VECTOR) on CPU KUBESKOOP_CPU, and over 10 ms passed until it ran. Packets on that CPU waited as long.\n\n" +
			"Something held the CPU: kernel code that disabled interrupts or softirqs, a process of realtime priority that ran before ksoftirqd, other softirqs, or a hypervisor that did not run the CPU. KUBESKOOP_PID is the process that was on the CPU when the softirq started.",
		Next: []Step{
			stepSteal,
			stepSoftnet,
			{"ps -eLo pid,tid,class,rtprio,psr,comm --sort=psr", "processes of realtime priority (FF, RR) on that CPU"},
		},
	}, {
		Name: "NETSOFTIRQ_SCHED_100MS", Path: "softirq_raise -> softirq_entry", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 20, Latency: time.Second},
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency, FieldVector},
		MessageID: "ab57f9854332c3da675a2e199b58ba8d",
		Summary:   "A network softirq was scheduled over 100 ms late",
		Message:   "network softirq started {latency} late",
		Explain: "The kernel raised a network softirq (KUBESKOOP_VECTOR) on CPU KUBESKOOP_CPU, and over 100 ms passed until it ran. Every connection whose packets that CPU handles stalled, and health checks with short timeouts fail.\n\n" +
			"Such a delay mostly comes from a hypervisor that took the CPU away, a soft lockup, a realtime process that never sleeps, or a long walk of kernel tables with softirqs disabled (conntrack, ipvs, cgroups).",
		Next: []Step{
			stepSteal,
			stepKernel,
			stepSoftnet,
		},
	}, {
		Name: "NETSOFTIRQ_EXCUTE_SLOW", Path: "softirq_entry -> softirq_exit", Threshold: 10 * time.Millisecond, Below: 100 * time.Millisecond, Warn: Warn{Count: 1000},
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency, FieldVector},
		MessageID: "c1b87f1a7323691b19f9cbef0f69a4d0",
		Summary:   "A network softirq ran for long",
		Message:   "network softirq ran for {latency}",
		Explain: "A network softirq (KUBESKOOP_VECTOR) on CPU KUBESKOOP_CPU ran for over 10 ms. No process ran on that CPU meanwhile.\n\n" +
			"Usually packets arrive faster than the CPU handles them, each packet traverses long rule chains (iptables, ipvs, network policies), or all traffic goes to one CPU because the network card has one queue.",
		Next: []Step{
			stepSoftnet,
			stepIRQ,
			{"iptables-save | wc -l; nft list ruleset | wc -l", "how many rules a packet may traverse"},
		},
	}, {
		Name: "NETSOFTIRQ_EXCUTE_100MS", Path: "softirq_entry -> softirq_exit", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 20, Latency: time.Second},
		Fields:    []FieldGroup{FieldCPU, FieldPID, FieldLatency, FieldVector},
		MessageID: "2eb737282fea875e75365e1458294a90",
		Summary:   "A network softirq ran for over 100 ms",
		Message:   "network softirq ran for {latency}",
		Explain: "A network softirq (KUBESKOOP_VECTOR) on CPU KUBESKOOP_CPU ran for over 100 ms, far beyond the kernel's own limit. One function in it did not return in time.\n\n" +
			"Usually very long rule chains, a slow driver, a BPF program, or a contended lock; or the hypervisor took the CPU away meanwhile.",
		Next: []Step{
			stepSteal,
			stepSoftnet,
			{"perf record -a -g -C CPU -- sleep 10; perf report", "what the CPU does"},
			stepKernel,
		},
	}},
}
