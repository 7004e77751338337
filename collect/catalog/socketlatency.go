package catalog

import "time"

var socketlatency = Probe{
	Name:   "socketlatency",
	Title:  "waiting time of data in sockets",
	Rank:   20,
	Source: EBPF, Overhead: "high", Measured: "45 to 139 ns/step", Escalate: true,
	Cost:         "Runs for each read and write of a socket: 62 and 118 ns for a TCP read, 139 and 45 ns for a TCP write. Each socket that has had data takes 0.8 KB.",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Options: []Option{{
		Key: "slow", Default: time.Millisecond, Help: slowOption.Help,
	}, eventOption, histogramsOption},
	Metrics: []Metric{{
		Name: "kubeskoop_socketlatency_read100ms", Type: Counter, Scope: PerNetns,
		Help:   "Reads whose oldest byte or datagram had waited over 100 ms in the socket.",
		Kernel: "sk_data_ready to the copy of the bytes, or of the datagram, to the application",
		Rises:  "As read1ms, for over 100 ms.",
	}, {
		Name: "kubeskoop_socketlatency_read1ms", Type: Counter, Scope: PerNetns,
		Help:   "Reads whose oldest byte or datagram had waited over 1 ms in the socket, those over 100 ms included.",
		Kernel: "sk_data_ready to the copy of the bytes, or of the datagram, to the application",
		Rises:  "The application is slow to read: busy, not scheduled, held by its CPU limit, or waiting for something else. TCP and UDP. One call is one read; its wait is that of the oldest byte or datagram that it takes. Peeks and reads of the error queue do not count. A wait is exact for up to 16 unread arrivals, where arrivals within 62 us of each other are one; with more it may be off by 5 % of the age of the oldest data in the socket. The wait of data below SO_RCVLOWAT starts when the kernel wakes the reader; the wait of data in a SYN (TCP Fast Open) starts with the data after it. MPTCP connections and raw sockets are not measured. If several threads read one datagram socket at the same time, a read may be measured by another thread's datagram, or not at all. Before Linux 6.3, where the kernel allows tracepoints only, reads of whole segments within a millisecond of each other may count as one, the wait of data that filled a gap starts with the next segment, and the wait of data below SO_RCVLOWAT starts with their arrival.",
	}, {
		Name: "kubeskoop_socketlatency_write100ms", Type: Counter, Scope: PerNetns,
		Help:   "TCP writes whose last byte was sent over 100 ms after the call began.",
		Kernel: "tcp_sendmsg_locked() to the transmission of the write's last byte",
		Rises:  "As write1ms, for over 100 ms.",
	}, {
		Name: "kubeskoop_socketlatency_write1ms", Type: Counter, Scope: PerNetns,
		Help:   "TCP writes whose last byte was sent over 1 ms after the call began, those over 100 ms included.",
		Kernel: "tcp_sendmsg_locked() to the transmission of the write's last byte",
		Rises:  "Written data wait in the socket: the peer's window or the congestion window is closed, or Nagle waits. TCP only. One call is one write; its wait ends when TCP gives its last byte to the IP layer for the first time, and includes the time for which the call blocks. So a large write that the line takes over 1 ms to carry counts too. A write that ended short is counted with the next one. Before Linux 6.5, sendfile and splice do not count as writes. MPTCP connections are not measured.",
	}, latency("nodeskoop_socketlatency_seconds", []string{"direction"},
		"Time that received data wait for their reader (read), and written data to be sent (write).",
		"as kubeskoop_socketlatency_read1ms and kubeskoop_socketlatency_write1ms",
		"Each read that takes data and each TCP write whose last byte is sent, as these counters have them. A call that takes several segments is one read if data that it takes have waited for the threshold `slow`, and counts with the first that did; below that each segment is one. Times are multiples of 4.1 us."+perPods)},
	Events: []EventType{{
		Name: "SOCKETLAT_READSLOW", Path: "data ready -> application read", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 100},
		Fields:    []FieldGroup{FieldTuple, FieldLatency, FieldProcess},
		MessageID: "78b7d0ac84773ce0ce4cda11b43c589b",
		Summary:   "An application left received data unread for over 100 ms",
		Message:   "received data{from} waited {latency} to be read",
		Explain: "The oldest byte, or the datagram, that the application (KUBESKOOP_COMM, process KUBESKOOP_PID) read had been in the socket's receive queue for over 100 ms. The network had delivered it; the application was slow. An application that is permanently behind has one such read after another.\n\n" +
			"Usually the application is busy (one thread for all connections, garbage collection, a lock), waits for a backend, or gets no CPU because its cgroup limit throttles it.",
		Next: []Step{
			{"cat \"/sys/fs/cgroup$(cut -d: -f3- /proc/PID/cgroup | tail -n 1)/cpu.stat\"", "with KUBESKOOP_PID: nr_throttled and throttled_usec show whether a CPU limit throttled it (cgroup v2)"},
			stepSockets,
			stepSteal,
		},
	}, {
		Name: "SOCKETLAT_SENDSLOW", Path: "application write -> segment sent", Threshold: 100 * time.Millisecond, Warn: Warn{Count: 100},
		Fields:    []FieldGroup{FieldTuple, FieldLatency, FieldProcess},
		MessageID: "2330fcf1562ae4b848668d77e827062c",
		Summary:   "Data that an application wrote was not sent for over 100 ms",
		Message:   "written data{to} waited {latency} to be sent",
		Explain: "TCP sent the last byte of a write by an application (KUBESKOOP_COMM, process KUBESKOOP_PID) over 100 ms after the call began; this includes the time that the call blocked. Of writes within 62 us of each other, only the first is reported, and the others count as suppressed.\n\n" +
			"TCP held the data back: the peer's receive window is closed because its application does not read, the congestion window is small after losses, or the queue of the interface is full. A peer that does not read shows as SOCKETLAT_READSLOW on its own node.",
		Next: []Step{
			{"ss -tinm dst PEER", "in the pod's namespace: rwnd_limited, sndbuf_limited, cwnd, retrans of that connection"},
			{"nodeskoop events --probe tcpretrans,packetloss,netiftxlatency", "whether packets are lost, or wait in a queue"},
		},
	}},
}
