package collect

import "regexp"

// Step is a command that looks further into an event, and what it shows.
type Step struct {
	// Command is what to type. A word of Placeholders stands for what the reader
	// fills in. It must not be one of the journal's own, @FIELD@: journalctl
	// replaces it by a field as it was stored, and anyone may write an entry with
	// any MESSAGE_ID and any field. Even ours have names that others chose.
	Command string
	Shows   string
}

// Placeholders are the words of a Step's Command that the reader replaces, and
// by what.
var Placeholders = []struct{ Word, Means string }{
	{"PID", "a process of the pod (nodeskoop pods lists them), or 1 for the host"},
	{"PEER", "the entry's KUBESKOOP_DADDR"},
	{"DEVICE", "the entry's KUBESKOOP_IFNAME"},
	{"DISK", "the entry's KUBESKOOP_DISK"},
	{"CPU", "the entry's KUBESKOOP_CPU"},
}

var placeholderWord = regexp.MustCompile(`[A-Z]+`)

// Placeholder returns the word of Placeholders that the command has, "" if it
// has none.
func (s Step) Placeholder() string {
	for _, word := range placeholderWord.FindAllString(s.Command, -1) {
		for _, p := range Placeholders {
			if p.Word == word {
				return word
			}
		}
	}
	return ""
}

// explanation is what the Catalogue says about an event beyond its Summary.
type explanation struct {
	text  string
	steps []Step
}

// The steps that more than one event needs.
var (
	stepSockets  = Step{"nsenter -t PID -n ss -tinm", "the pod's connections: queues, round-trip times, retransmissions, the processes' memory"}
	stepCounters = Step{"nsenter -t PID -n nstat -az", "the counters of the pod's IP stack"}
	stepRules    = Step{"nft list ruleset; iptables-save -c", "the firewall's rules, with how often each matched"}
	stepQdisc    = Step{"nsenter -t PID -n tc -s qdisc show", "what waits in the queues, what they dropped, and the rate that each is held to"}
	stepSteal    = Step{"top -b -n 1 -w 200 | head -20; cat /proc/pressure/cpu", "who keeps the CPUs busy, and how much the hypervisor takes (st)"}
	stepSoftnet  = Step{"cat /proc/net/softnet_stat", "by CPU in hexadecimal: packets taken, dropped for a full backlog, and how often the budget ran out"}
	stepIRQ      = Step{"cat /proc/interrupts /proc/softirqs", "which CPU takes the interrupts of which queue"}
	stepDisk     = Step{"iostat -x 1; cat /proc/pressure/io", "how busy each disk is, the length of its queue, and how much the node waits for it"}
	stepKernel   = Step{"journalctl -k --since -1h", "what the kernel said: errors of devices, lockups, resets"}
)

// explanations by the event's name. Paragraphs are separated by an empty line.
var explanations = map[string]explanation{
	"PacketLoss": {
		"The kernel dropped a packet that somebody should have got. Packets that nobody misses (acknowledgements that TCP has taken in, multicasts that nobody asked for, what a closing socket still held) are no events. KUBESKOOP_REASON is the kernel's own reason (Linux 5.17 and newer), KUBESKOOP_LOCATION the function that dropped it, KUBESKOOP_STACK the way there. TCP retransmits lost data, so one drop costs time; a steady rate, or drops of always the same connection, are what to look into.\n\n" +
			"NETFILTER_DROP is a firewall rule or a network policy. NO_SOCKET is a port on which nobody listens. SOCKET_RCVBUFF is an application that reads more slowly than data arrive. QDISC_DROP is a full queue of an interface. NEIGH_FAILED is a next hop that answers no ARP or neighbour discovery. CPU_BACKLOG is a CPU that cannot keep up with what arrives. TCP_CSUM, UDP_CSUM and IP_CSUM are damaged packets.",
		[]Step{stepRules, stepCounters, {"ip -s link show; tc -s qdisc show", "drops by interface and by queue"}},
	},
	"TCPRESET_NOSOCK": {
		"A TCP segment arrived for which this end has no socket, and the kernel answered with RST. KUBESKOOP_SADDR and KUBESKOOP_SPORT are this end.\n\n" +
			"If the segment was a SYN, nobody listens on that address and port: the server is not up yet, has ended, or listens on another address. If it belonged to a connection, this end has forgotten it: its process ended, the connection timed out here but not there, or a load balancer or NAT sent the packet to the wrong backend. A RST that a firewall sends (\"reject with tcp reset\") is not TCP's: only its receiver has an event.",
		[]Step{{"nsenter -t PID -n ss -tln", "the ports on which somebody listens in the pod's namespace"}, {"journalctl -t nodeskoop KUBESKOOP_DADDR=PEER", "whether the same peer is met again and again"}, {"kubectl get endpoints -A", "whether a service still sends traffic to a pod that is gone"}},
	},
	"TCPRESET_ACTIVE": {
		"This end ended a connection with RST instead of FIN, and the peer's application sees \"connection reset by peer\". KUBESKOOP_SADDR and KUBESKOOP_SPORT are this end. KUBESKOOP_TCP_STATE is CLOSE in most cases: the kernel changes it before it sends the RST.\n\n" +
			"Usually an application closed a socket that still held data it had not read, closed it with SO_LINGER and a time of 0, or closed a listening socket with connections that it had not accepted. The end of a process closes its sockets: a process that is killed sends RST where data are unread, and FIN elsewhere. The kernel itself sends a RST when keep-alive probes get no answer (for as long as TCP_USER_TIMEOUT, where that is set), when there are too many orphaned sockets or too little TCP memory, and for `ss -K`. Data that are never acknowledged end a connection without a RST: neither the last retransmission nor TCP_USER_TIMEOUT sends one. KUBESKOOP_REASON says which it was (Linux 6.12 and newer; TCP_STATE is linger, a listening socket, or `ss -K`).",
		[]Step{{"journalctl --since -10m -g 'killed|oom|exited'", "whether the application ended at that time"}, stepSockets, {"nsenter -t PID -n nstat -az 'TcpExtTCPAbort*'", "how often connections were given up, by cause: data left, timeout, memory"}},
	},
	"TCPRESET_PROCESS": {
		"A segment reached a socket but did not fit its state, and the kernel answered with RST. KUBESKOOP_TCP_STATE is the state; KUBESKOOP_SADDR and KUBESKOOP_SPORT are this end.\n\n" +
			"In LISTEN a handshake failed: an acknowledgement without a SYN before it, a wrong SYN cookie, or a full accept queue with net.ipv4.tcp_abort_on_overflow set. In SYN_SENT the peer answered with the acknowledgement of something else, for one of an older connection between the same ports. In CLOSE or FIN_WAIT2 data came after the application here had closed its socket. A NAT or conntrack entry that was used again too early causes all of these.",
		[]Step{{"nsenter -t PID -n ss -tln", "the accept queues: Recv-Q at Send-Q is full"}, {"nsenter -t PID -n nstat -az 'TcpExtListen*' 'TcpExtSyncookies*' TcpEstabResets", "failed handshakes and cookies"}, {"conntrack -S", "insert_failed and invalid: connections that were tracked wrongly"}},
	},
	"TCPRESET_RECEIVE": {
		"The peer (KUBESKOOP_DADDR) ended a connection with RST. KUBESKOOP_TCP_STATE is this end's state at that time. A RST whose sequence number is not the expected one is not obeyed (RFC 5961), and is no event.\n\n" +
			"In SYN_SENT the connection was refused: nobody listens there, or a firewall rejects; the application sees \"connection refused\". In NEW_SYN_RECV a client gave up a handshake: a port scan, a health check that stops at the SYN-ACK, or a client that has timed out; no application here sees that. In ESTABLISHED the peer closed with data unread, or something on the way (load balancer, NAT, firewall) forgot the connection while it was idle and refused the next packet; the application sees \"connection reset by peer\". In CLOSE_WAIT the peer has ended and does not take what is still sent; the application sees \"broken pipe\". In FIN_WAIT1, FIN_WAIT2, LAST_ACK and TIME_WAIT this end had sent FIN already: mostly the peer closed with data unread. If the peer is a pod that nodeskoop watches too, its own event says why.",
		[]Step{{"journalctl -t nodeskoop KUBESKOOP_SADDR=PEER", "on the peer's node: why it sent the RST"}, stepSockets, {"sysctl net.ipv4.tcp_keepalive_time", "idle connections are kept up from then on, if the application asked for it: longer than the load balancer's idle time is too long"}},
	},
	"TCPRetrans": {
		"TCP retransmitted a segment because no acknowledgement came in time, or because later acknowledgements show a hole. Either the segment or its acknowledgement was lost, the peer is slow, or packets arrive in another order. Some are normal on the Internet; inside a cluster the rate should be near zero. An event is one retransmission of one packet: a GSO packet is one event, and kubeskoop_tcpretrans_total counts its segments. A retransmission that this host refuses to send (a firewall rule on the way out, a full queue, no route) is no event.\n\n" +
			"In SYN_SENT the server's host does not answer: it is down, or a firewall drops silently. In NEW_SYN_RECV or SYN_RECV the client does not see the answer: often a wrong route back. In ESTABLISHED a link loses packets, a queue on the way is full, or packets of full size do not fit (MTU of an overlay).",
		[]Step{stepSockets, {"nodeskoop events --probe packetloss,tcpretrans", "whether this node drops the packets itself"}, {"ping -M do -s 1422 -c 3 PEER", "whether large packets pass: 1422 is an MTU of 1450 less the headers"}, {"ip -s -s link show", "errors of the network card"}},
	},
	"TXLAT_QDISC_100MS": {
		"A packet waited over 100 ms in the queue of an interface (KUBESKOOP_IFNAME) before the driver got it: the node sends more than the interface takes.\n\n" +
			"Usually traffic is shaped (a tbf, htb or fq rate, the bandwidth plugin of a pod), one bulk transfer fills a long FIFO, or the driver stopped the queue because the card is full.",
		[]Step{stepQdisc, {"nsenter -t PID -n ip -s link show", "packets, drops and carrier changes of the interfaces"}, {"nodeskoop events --event TXLAT_QDISC_100MS", "whether all packets wait or those of one connection"}},
	},
	"TXLAT_NETDEV_100MS": {
		"The driver of an interface (KUBESKOOP_IFNAME) took over 100 ms to accept one packet. That is no queue: the CPU was inside the driver for that time, or was taken away from it.\n\n" +
			"On a virtual machine the hypervisor did not run this CPU, or the host's side of virtio was slow. On hardware the driver waited for a lock, a register or a reset. On a tunnel or veth the time is that of everything behind it.",
		[]Step{stepSteal, {"ethtool -S DEVICE", "the driver's own counters: ring full, timeouts, resets"}, stepKernel},
	},
	"NETSOFTIRQ_SCHED_SLOW": {
		"The kernel asked for its network work (KUBESKOOP_VECTOR) on CPU KUBESKOOP_CPU, and over 10 ms passed until it began. Packets on that CPU waited as long.\n\n" +
			"Something held the CPU: code of the kernel that had interrupts or softirqs switched off, a process of realtime priority ahead of ksoftirqd, other softirqs, or a hypervisor that did not run the CPU. KUBESKOOP_PID is the process that was on the CPU when the work began.",
		[]Step{stepSteal, stepSoftnet, {"ps -eLo pid,tid,class,rtprio,psr,comm --sort=psr", "processes of realtime priority (FF, RR) on that CPU"}},
	},
	"NETSOFTIRQ_SCHED_100MS": {
		"The kernel asked for its network work (KUBESKOOP_VECTOR) on CPU KUBESKOOP_CPU, and over 100 ms passed until it began. Every connection whose packets that CPU handles stood still meanwhile, and health checks with short timeouts fail.\n\n" +
			"A delay of this size is mostly a hypervisor that took the CPU away, a soft lockup, a realtime process that never sleeps, or a long walk of the kernel with softirqs switched off (large tables of conntrack, ipvs or cgroups).",
		[]Step{stepSteal, stepKernel, stepSoftnet},
	},
	"NETSOFTIRQ_EXCUTE_SLOW": {
		"One round of network work (KUBESKOOP_VECTOR) on CPU KUBESKOOP_CPU ran for over 10 ms. Processes on that CPU did not run meanwhile.\n\n" +
			"Usually packets arrive faster than the CPU handles them, long chains of rules (iptables, ipvs, network policies) are walked for each packet, or all traffic goes to one CPU because the card has one queue.",
		[]Step{stepSoftnet, stepIRQ, {"iptables-save | wc -l; nft list ruleset | wc -l", "how many rules each packet may have to pass"}},
	},
	"NETSOFTIRQ_EXCUTE_100MS": {
		"One round of network work (KUBESKOOP_VECTOR) on CPU KUBESKOOP_CPU ran for over 100 ms, far beyond the kernel's own limit for a round. One piece of it did not return in time.\n\n" +
			"Usually very long chains of rules, a slow driver, a BPF program or a lock for which many CPUs wait; or the hypervisor took the CPU away in the middle.",
		[]Step{stepSteal, stepSoftnet, {"perf record -a -g -C CPU -- sleep 10; perf report", "what the CPU does"}, stepKernel},
	},
	"RXKERNEL_SLOW": {
		"A packet took over 100 ms from the interface to TCP or UDP. KUBESKOOP_LATENCY_IP_NS and KUBESKOOP_LATENCY_LOCAL_IN_NS say where the time went, as far as the hooks of this kernel show it.\n\n" +
			"The IP stack itself takes microseconds. Time before the routing decision is mostly netfilter: PREROUTING rules, conntrack, or a packet that waits for a program in user space (NFQUEUE). Time after it is the INPUT rules. Fragments wait here for the missing ones.",
		[]Step{stepRules, {"cat /proc/net/netfilter/nfnetlink_queue", "programs that packets wait for, and how many wait"}, {"nodeskoop events --probe net_softirq", "whether the CPU itself was held up"}},
	},
	"TXKERNEL_SLOW": {
		"A packet took over 100 ms from TCP or UDP to the neighbour layer. KUBESKOOP_LATENCY_ROUTE_NS, KUBESKOOP_LATENCY_LOCAL_OUT_NS and KUBESKOOP_LATENCY_POSTROUTING_NS say where the time went, as far as the hooks of this kernel show it.\n\n" +
			"Usually the OUTPUT or POSTROUTING rules: a packet that waits for a program in user space (NFQUEUE), NAT with no free port, or very long chains. The wait for a neighbour's address (ARP, neighbour discovery) and the queue of the interface come later; TXLAT_QDISC_100MS tells of the queue.",
		[]Step{stepRules, {"cat /proc/net/netfilter/nfnetlink_queue", "programs that packets wait for, and how many wait"}, {"conntrack -S", "NAT that finds no free port: insert_failed, search_restart"}},
	},
	"SOCKETLAT_READSLOW": {
		"The oldest byte, or the datagram, that the application (KUBESKOOP_COMM, process KUBESKOOP_PID) read had been in the socket's receive queue for over 100 ms. The network had delivered: the application was slow. An application that is steadily behind has one such read after another.\n\n" +
			"Usually it is busy with something else (one thread for all connections, garbage collection, a lock), waits for a backend, or does not get its CPU: a limit of its cgroup throttles it.",
		[]Step{{"cat \"/sys/fs/cgroup$(cut -d: -f3- /proc/PID/cgroup | tail -n 1)/cpu.stat\"", "with KUBESKOOP_PID: nr_throttled and throttled_usec, whether a CPU limit held it (cgroup v2)"}, stepSockets, stepSteal},
	},
	"SOCKETLAT_SENDSLOW": {
		"TCP sent the last byte of a write by an application (KUBESKOOP_COMM, process KUBESKOOP_PID) over 100 ms after the call began; the time for which the call blocked is included. Where writes follow each other within 62 us, one entry tells of the first, and the others count as suppressed.\n\n" +
			"TCP held them back: the peer's receive window is closed because its application does not read, the congestion window is small after losses, or the queue of the interface is full. A peer that does not read shows as SOCKETLAT_READSLOW on its own node.",
		[]Step{{"ss -tinm dst PEER", "in the pod's namespace: rwnd_limited, sndbuf_limited, cwnd, retrans of that connection"}, {"nodeskoop events --probe tcpretrans,packetloss,netiftxlatency", "whether packets are lost, or wait in a queue"}},
	},
	"VIRTCMDEXCUTE": {
		"A command to the control queue of a virtio-net card took over 10 ms. The driver waits for the answer in a loop, so CPU KUBESKOOP_CPU did nothing else meanwhile, and packets on it waited.\n\n" +
			"The hypervisor answers these commands: it was overloaded, or did not run the thread of the device. Commands come from changes of the card: multicast addresses, VLANs, promiscuous mode, queues, link announcements after a migration. Tools that poll or set them often cause many.",
		[]Step{{"ps -fp PID", "with KUBESKOOP_PID: who sent the command"}, stepSteal, {"ip monitor link", "changes of interfaces as they happen"}},
	},
	"BIOLAT_10MS": {
		"One read or write of the disk KUBESKOOP_DISK took over 10 ms. KUBESKOOP_COMM is the process that started it; for writes that is often a thread of the kernel that writes the page cache back.\n\n" +
			"On a spinning disk this is normal. On an SSD or a cloud volume the queue is long, another one uses the same device, or the volume is at its limit of operations per second.",
		[]Step{stepDisk, {"pidstat -d 1", "which processes read and write"}},
	},
	"BIOLAT_100MS": {
		"One read or write of the disk KUBESKOOP_DISK took over 100 ms. Whoever waits for it stands still: a database in its commit, etcd in its heartbeat, kubelet, a process that is paged in.\n\n" +
			"Usually the volume is throttled by its provider or by a limit of a cgroup (io.max), its queue is full of somebody's bulk writes, or the device fails and repeats.",
		[]Step{stepDisk, {"pidstat -d 1", "which processes read and write"}, stepKernel, {"smartctl -a /dev/DISK", "errors that the device itself counts"}},
	},
}
