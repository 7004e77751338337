package catalog

var tcpreset = Probe{
	Name:   "tcpreset",
	Title:  "TCP resets sent and received",
	Rank:   15,
	Source: EBPF, Overhead: "low", Measured: "not measurable", Default: true,
	Cost:         "Runs for each reset, well under a microsecond. Resets in SYN_RECV and TIME_WAIT need a program that runs for each accepted connection, or, where the kernel does not let BPF hook functions, for each dropped packet: 23 ns. Other traffic has no measurable cost.",
	Capabilities: []Capability{CapBPF, CapPerfmon},
	Events: []EventType{{
		Name: "TCPRESET_NOSOCK", Path: "tcp_v4_send_reset / tcp_v6_send_reset without a socket", Warn: Warn{Count: 1000},
		Fields:    []FieldGroup{FieldTuple, FieldTCPState, FieldReason},
		MessageID: "c1acc9906424550ae36bf9b3ddcb369d",
		Summary:   "TCP sent RST because no socket matched the packet",
		Message:   "TCP reset sent{to}, no socket for the packet",
		Explain: "A TCP segment arrived for which this end has no socket, and the kernel answered with RST. KUBESKOOP_SADDR and KUBESKOOP_SPORT are this end.\n\n" +
			"If the segment was a SYN, no socket listens on that address and port: the server is not up yet, has ended, or listens on another address. If the segment belonged to a connection, this end no longer has that connection: its process ended, the connection timed out here but not there, or a load balancer or NAT sent the packet to the wrong backend. A RST that a firewall sends (\"reject with tcp reset\") does not come from TCP: only its receiver reports an event.",
		Next: []Step{
			{"nsenter -t PID -n ss -tln", "the listening ports in the pod's namespace"},
			{"journalctl -t nodeskoop KUBESKOOP_DADDR=PEER", "whether the same peer appears repeatedly"},
			{"kubectl get endpoints -A", "whether a service still sends traffic to a pod that is gone"},
		},
	}, {
		Name: "TCPRESET_ACTIVE", Path: "tcp_send_active_reset", Warn: Warn{Count: 1000},
		Fields:    []FieldGroup{FieldTuple, FieldTCPState, FieldReason},
		MessageID: "9ad9b9a25e78454df065a1c284cc4549",
		Summary:   "TCP sent an active RST (close() with unread data, linger, abort, timeout)",
		Message:   "TCP reset sent{to}, connection aborted",
		Explain: "This end ended a connection with RST instead of FIN, and the peer's application sees \"connection reset by peer\". KUBESKOOP_SADDR and KUBESKOOP_SPORT are this end. KUBESKOOP_TCP_STATE is CLOSE in most cases: the kernel changes it before it sends the RST.\n\n" +
			"Usually an application closed a socket that still held data it had not read, closed it with SO_LINGER and a time of 0, or closed a listening socket whose queue still held connections. When a process exits, the kernel closes its sockets: with RST where data are unread, and with FIN elsewhere. The kernel itself sends a RST when keep-alive probes get no answer (for as long as TCP_USER_TIMEOUT, if set), when there are too many orphaned sockets or too little TCP memory, and for `ss -K`. A connection whose data are never acknowledged ends without a RST: neither the last retransmission nor TCP_USER_TIMEOUT sends one. KUBESKOOP_REASON is the cause (Linux 6.12 and newer); the reason TCP_STATE means linger, a listening socket, or `ss -K`.",
		Next: []Step{
			{"journalctl --since -10m -g 'killed|oom|exited'", "whether the application ended at that time"},
			stepSockets,
			{"nsenter -t PID -n nstat -az 'TcpExtTCPAbort*'", "aborted connections by cause: unread data, timeout, memory"},
		},
	}, {
		Name: "TCPRESET_PROCESS", Path: "tcp_v4_send_reset / tcp_v6_send_reset with a socket", Warn: Warn{Count: 1000},
		Fields:    []FieldGroup{FieldTuple, FieldTCPState, FieldReason},
		MessageID: "993565976fbaf662f6a730b7b12e9eed",
		Summary:   "TCP sent RST because a packet did not fit the socket state (a failed handshake, for one)",
		Message:   "TCP reset sent{to}, packet did not fit the connection",
		Explain: "A segment reached a socket but did not fit its state, and the kernel answered with RST. KUBESKOOP_TCP_STATE is the state; KUBESKOOP_SADDR and KUBESKOOP_SPORT are this end.\n\n" +
			"In LISTEN a handshake failed: an acknowledgement without a SYN before it, a wrong SYN cookie, or a full accept queue with net.ipv4.tcp_abort_on_overflow set. In SYN_SENT the peer acknowledged another segment, for example of an older connection between the same ports. In CLOSE or FIN_WAIT2 data arrived after the local application had closed its socket. A NAT or conntrack entry that is reused too early can cause all of these.",
		Next: []Step{
			{"nsenter -t PID -n ss -tln", "the accept queues: a queue is full where Recv-Q has reached Send-Q"},
			{"nsenter -t PID -n nstat -az 'TcpExtListen*' 'TcpExtSyncookies*' TcpEstabResets", "failed handshakes and cookies"},
			{"conntrack -S", "insert_failed and invalid: connections that were tracked wrongly"},
		},
	}, {
		Name: "TCPRESET_RECEIVE", Path: "tcp:tcp_receive_reset", Warn: Warn{Count: 1000},
		Fields:    []FieldGroup{FieldTuple, FieldTCPState},
		MessageID: "8df08078a22ea180c5c2c2af3977a654",
		Summary:   "A TCP connection received RST",
		Message:   "TCP reset received{from}",
		Explain: "The peer (KUBESKOOP_DADDR) ended a connection with RST. KUBESKOOP_TCP_STATE is this end's state at that time. The kernel ignores a RST with an unexpected sequence number (RFC 5961); it causes no event.\n\n" +
			"In SYN_SENT the connection was refused: the peer has no listening socket, or a firewall rejects; the application sees \"connection refused\". In NEW_SYN_RECV a client aborted a handshake: a port scan, a health check that stops at the SYN-ACK, or a client that has timed out; no local application sees that. In ESTABLISHED the peer closed with unread data, or a device on the path (load balancer, NAT, firewall) dropped the idle connection from its table and refused the next packet; the application sees \"connection reset by peer\". In CLOSE_WAIT the peer has ended and refuses data that this end still sends; the application sees \"broken pipe\". In FIN_WAIT1, FIN_WAIT2, LAST_ACK and TIME_WAIT this end had already sent FIN: mostly the peer closed with unread data. If nodeskoop also watches the peer, the peer's own event names the cause.",
		Next: []Step{
			{"journalctl -t nodeskoop KUBESKOOP_SADDR=PEER", "on the peer's node: why it sent the RST"},
			stepSockets,
			{"sysctl net.ipv4.tcp_keepalive_time", "idle seconds until the first keep-alive probe (with SO_KEEPALIVE); it must be shorter than the load balancer's idle timeout"},
		},
	}},
}
