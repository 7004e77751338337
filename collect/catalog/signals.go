package catalog

// The sources that several signals have.
const (
	sourceSockets = "nsenter -t PID -n ss -tanio"
	sourceEvents  = "nodeskoop events --all --event "
	sourceQdisc   = "nsenter -t PID -n tc -s qdisc show"
)

// signals are the quantities that diagnose measures in addition to the kernel's
// IP stack counters and the metrics.
var signals = []Signal{
	{"drop.rule", "a rule dropped {n} packets ({what}) between this end and {peer} in {time}", sourceEvents + "PacketLoss"},
	{"drop.node", "a rule dropped {n} packets ({what}) from {from} to {peer} in {time}", sourceEvents + "PacketLoss"},
	{"drop.untracked", "conntrack could not enter the connections of {n} packets in {time}, and dropped them", sourceEvents + "PacketLoss"},
	{"drop.no_route", "{n} packets to {peer} had no route in {time}", sourceEvents + "PacketLoss"},
	{"drop.neighbour", "{n} packets to {peer} were dropped in {time}, as the next hop did not answer", "nsenter -t PID -n ip neigh show"},
	{"drop.neighbour_table", "{n} packets to {peer} were dropped in {time} because no entry of the neighbour table could be made", sourceEvents + "PacketLoss"},
	{"drop.checksum", "{n} packets from {peer} had a wrong checksum in {time}", sourceEvents + "PacketLoss"},
	{"drop.backlog", "{n} packets found the backlog of a CPU full in {time}", "cat /proc/net/softnet_stat"},
	{"drop.too_big", "{n} packets to {peer} were larger than the MTU of their way in {time}", sourceEvents + "PacketLoss"},
	{"drop.rpfilter", "the reverse path filter dropped {n} packets from {peer} in {time}", "nsenter -t PID -n nstat -az TcpExtIPReversePathFilter"},
	{"drop.queue", "{n} packets to {peer} were dropped by a queue in {time}", sourceQdisc},
	{"drop.socket", "{n} packets from {peer} found no room in their socket ({what}) in {time}", sourceEvents + "PacketLoss"},
	{"drop.memory", "{n} packets from {peer} were dropped for lack of memory in {time}", sourceEvents + "PacketLoss"},
	{"drop.local", "{n} packets between this end and {peer} were lost on this node in {time}", sourceEvents + "PacketLoss"},

	{"tcp.retransmitted", "{n} segments to {peer} were retransmitted in {time}", sourceEvents + "TCPRetrans"},
	{"tcp.lost", "{n} segments to {peer} had to be retransmitted in {time}", sourceEvents + "TCPRetrans; nsenter -t PID -n nstat -az TcpRetransSegs TcpExtTCPDSACKRecv"},
	{"syn.retransmitted", "{n} SYNs to {peer} were retransmitted in {time}", sourceEvents + "TCPRetrans"},
	{"synack.retransmitted", "{n} SYN-ACKs to {peer} were retransmitted in {time}", sourceEvents + "TCPRetrans"},
	{"tcp.reordered", "TCP saw {n} segments arrive out of order at the other end in {time}", "nsenter -t PID -n nstat -az 'TcpExtTCP*Reorder'"},
	{"reordered.peer", "{n} segments to {peer} arrived out of order in {time}", sourceSockets + "  # reord_seen"},
	{"needless.peer", "{n} segments to {peer} were retransmitted in {time} although they had arrived, late", sourceSockets + "  # dsack_dups"},
	{"sent.peer", "{n} segments with data were sent to {peer} in {time}", sourceSockets + "  # data_segs_out"},
	{"tcp.opens", "{n} connections were opened in {time}", "nsenter -t PID -n nstat -az TcpActiveOpens TcpPassiveOpens"},
	{"tcp.aborts", "{n} connections were closed with data unread, or by SO_LINGER 0, in {time}", "nsenter -t PID -n nstat -az TcpExtTCPAbortOnClose TcpExtTCPAbortOnData"},
	{"tcp.refused", "{n} connections to {peer} were refused at port {what}, where nobody listens", sourceEvents + "TCPRESET_NOSOCK"},
	{"udp.refused", "{n} datagrams to {peer} came to port {what}, which no socket has", sourceEvents + "PacketLoss"},
	{"tcp.loopback_only", "{n} connections to {peer} were refused at port {what}, where it listens on the loopback address alone", "nsenter -t PEERPID -n ss -tln"},
	{"reset.unsent", "{n} resets came in the name of {peer}, which sent none, in {time}", sourceEvents + "TCPRESET_RECEIVE"},
	{"listen.full", "connections that wait to be accepted: {n}, port {what}", "nsenter -t PID -n ss -tln"},
	{"syn.half_open", "{n} handshakes are half open", "nsenter -t PID -n ss -tan state syn-recv"},
	{"syn.refused", "{n} SYNs found the queue of half-open handshakes full in {time}", "nsenter -t PID -n nstat -az 'TcpExtTCPReqQFull*'"},
	{"syn.cookies_unanswered", "{n} SYN cookies were sent and never answered in {time}", "nsenter -t PID -n nstat -az 'TcpExtSyncookies*'"},
	{"window.closed", "connections to {peer} that have data to send and no window: {n}", sourceSockets + "  # rwnd_limited, snd_wnd"},
	{"stuck.large", "connections to {peer} that retransmit full segments in vain, while small ones get through: {n}", sourceSockets + "  # backoff, mss"},
	{"stuck.small", "connections to {peer} that retransmit small segments in vain: {n}", sourceSockets + "  # backoff"},
	{"unread.stands", "{n} bytes from {peer} wait in the receive queue, and none was read in {time}", sourceSockets + "  # Recv-Q"},
	{"unread.server", "{n} connections at port {what} hold data, and nobody read or wrote at this port in {time}", "nsenter -t PID -n ss -tanp  # Recv-Q"},
	{"read.late", "process {what} read data over 100 ms late in {n} % of the seconds", sourceEvents + "SOCKETLAT_READSLOW"},
	{"ports.open", "{n} % of the ephemeral ports to one destination have an open connection: {what}", "nsenter -t PID -n ss -tan; nsenter -t PID -n sysctl net.ipv4.ip_local_port_range"},
	{"ports.time_wait", "{n} % of the ephemeral ports to one destination are taken, most by TIME_WAIT: {what}", "nsenter -t PID -n ss -tan state time-wait; nsenter -t PID -n sysctl net.ipv4.ip_local_port_range"},
	{"time_wait.used", "TIME_WAIT sockets are {n} % of tcp_max_tw_buckets", "nsenter -t PID -n ss -s"},

	{"udp.full", "{n} datagrams found the receive buffer full in {time}", "nsenter -t PID -n nstat -az UdpRcvbufErrors Udp6RcvbufErrors"},
	{"udp.datagrams", "{n} datagrams arrived in {time}", "nsenter -t PID -n nstat -az UdpInDatagrams Udp6InDatagrams"},
	{"checksum.bad", "{n} packets had a wrong checksum in {time}", "nsenter -t PID -n nstat -az '*CsumErrors'"},
	{"dns.slow", "{n} lookups at {peer} took half a second or more, or had no answer", "tcpdump -ni any port 53"},
	{"dns.worst", "the slowest lookup at {peer} took {n} s", "tcpdump -ni any port 53"},
	{"dns.lookups", "{n} lookups were made at {peer} in {time}", "tcpdump -ni any port 53"},

	{"ipv6.no_route", "{n} packets had no IPv6 route in {time}, although there is a global IPv6 address", "nsenter -t PID -n ip -6 route show"},
	{"ipv6.stuck", "{n} SYNs over IPv6 to {peer} were met without an answer, and no connection, while IPv4 works", "nsenter -t PID -n ss -6tan state syn-sent"},
	{"ipv6.syn", "{n} SYNs over IPv6 to {peer} were retransmitted in {time}", sourceEvents + "TCPRetrans"},

	{"shaper.waits", "the shaper of {what} made packets wait {n} times in {time}", sourceQdisc + "  # overlimits"},
	{"shaper.packets", "{n} packets went through the shaper of {what} in {time}", sourceQdisc},
	{"shaper.queue", "{n} packets wait in the shaper of {what}", sourceQdisc + "  # backlog"},
	{"shaper.drops", "the shaper of {what} dropped {n} packets in {time}", sourceQdisc},
	{"queue.drops", "the queue of {what} dropped {n} packets in {time}", sourceQdisc},
	{"queue.packets", "{n} packets went into the queue of {what} in {time}", sourceQdisc},

	{"conntrack.used", "the conntrack table is {n} % full ({what} entries)", "sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max"},
	{"nat.ports", "{n} % of the ports that NAT may use are taken: {what}", "conntrack -L"},
	{"neighbour.table_full", "the neighbour table had no room {n} times in {time}", "cat /proc/net/stat/arp_cache  # table_fulls"},
	{"neighbour.table_used", "the neighbour table is {n} % full", "ip -s neigh show; sysctl net.ipv4.neigh.default.gc_thresh3"},
	{"rpfilter.shared", "the reverse path filter dropped {n} packets in {time}, and two interfaces have addresses of one network", "nsenter -t PID -n nstat -az TcpExtIPReversePathFilter; nsenter -t PID -n ip addr show"},
	{"arp.other_device", "the neighbour table has {what}, another interface of the node", "nsenter -t PID -n ip neigh show"},

	{"cpu.softirq", "CPU {what} spent {n} % of the time in softirqs", "mpstat -P ALL 1 10  # %soft"},
	{"cpu.throttled", "the CPU quota stopped it in {n} % of the periods", "cat GROUP/cpu.stat  # nr_throttled of nr_periods"},
	{"cpu.throttled_time", "the CPU quota stopped it for {n} % of the time, summed over the CPUs", "cat GROUP/cpu.stat  # throttled_usec"},
	{"fd.used", "a process has used {n} % of its limit of descriptors: {what}", "ls /proc/PID/fd | wc -l; prlimit -n -p PID"},
	{"disk.wait", "an I/O of {what} took {n} ms on average", "iostat -x 10 2  # await"},
	{"disk.ios", "{what} did {n} I/Os in {time}", "iostat -x 10 2"},
	{"disk.stall", "some process waited for disks {n} % of the time", "cat /proc/pressure/io"},
	{"disk.late", "{n} I/Os of {what} took over 10 ms in {time}", sourceEvents + "BIOLAT_10MS"},
	{"disk.limit", "its I/O is at {n} % of its limit: {what}", "cat /proc/PID/cgroup  # io.max and io.stat there; cgroup v1: blkio.throttle.*"},
	{"disk.held", "its processes waited for disks {n} % of the time at over 60 % of a limit ({what}), while the disk itself was fast", "cat /proc/PID/cgroup  # io.max and io.pressure there; cgroup v1: blkio.throttle.*"},
	{"tcp.memory", "TCP uses {n} % of the memory above which it shrinks its buffers ({what})", "cat /proc/net/sockstat; sysctl net.ipv4.tcp_mem"},
}
