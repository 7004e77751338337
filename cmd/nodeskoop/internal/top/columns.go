package top

import "slices"

// Column is a number that top shows for each pod. Columns are listed in order of
// importance: a narrow window shows the first ones.
type Column struct {
	Name  string // name for --sort and in JSON
	key   rune   // key that sorts by the column
	head  string
	shows string // description
	unit  string
	probe string
	// metrics are summed. resetsSum and hostDropsSum are pseudo-metrics for values
	// that no metric has.
	metrics []string
}

// Units of columns.
const (
	perSecond = "per second"
	rightNow  = "now"
)

// gauge reports whether the column shows a value, not a rate.
func (c *Column) gauge() bool { return c.unit != perSecond }

// cells returns the width of the column: the widest of its head and of the texts of
// short and cell.text.
func (c *Column) cells() int {
	if c.Name == hostDrops {
		return 6 // room for the + of a lower bound
	}
	return 5
}

const (
	// resetsSum is the sum of the four slots of the probe tcpreset.
	resetsSum = "resets"
	// hostDropsSum counts events, because the kernel's counters have no addresses.
	hostDropsSum = "host drops"
)

// hostDrops is the name of the column of drops on the host that hit packets of the
// pod.
const hostDrops = "host_drops"

var columns = []Column{
	{"drops", 'd', "DROP", "packets lost in the pod's network namespace", perSecond, "packetloss", []string{"kubeskoop_packetloss_total"}},
	{hostDrops, 'D', "HDROP", "packets from or to the pod's addresses that are lost in the host's network namespace, by its rules, queues or routes; 5+ is at least 5", perSecond, "packetloss", []string{hostDropsSum}},
	{"retransmits", 't', "RETR", "TCP segments retransmitted", perSecond, "tcpretrans", []string{"kubeskoop_tcpretrans_total"}},
	{"resets", 'e', "RST", "TCP resets sent and received", perSecond, "tcpreset", []string{resetsSum}},
	{"socket_slow", 'o', "SOCK", "reads and writes of sockets that took over 1 ms", perSecond, "socketlatency", []string{"kubeskoop_socketlatency_read1ms", "kubeskoop_socketlatency_write1ms"}},
	{"kernel_slow", 'k', "KERN", "packets that took long in the kernel", perSecond, "kernellatency", []string{"kubeskoop_kernellatency_rxslow", "kubeskoop_kernellatency_txslow"}},
	{"rx_bytes", 'b', "RX-B", "bytes received", perSecond, "netdev", []string{"kubeskoop_netdev_rxbytes"}},
	{"tx_bytes", 'B', "TX-B", "bytes sent", perSecond, "netdev", []string{"kubeskoop_netdev_txbytes"}},
	{"tx_queue", 'u', "TX-Q", "bytes in TCP send queues that the peers have not acknowledged", rightNow, "tcpsummary", []string{"kubeskoop_tcpsummary_tcptxqueue"}},
	{"rx_queue", 'v', "RX-Q", "bytes in TCP receive queues that the applications have not read", rightNow, "tcpsummary", []string{"kubeskoop_tcpsummary_tcprxqueue"}},
	{"rx_packets", 'p', "RX-P", "packets received", perSecond, "netdev", []string{"kubeskoop_netdev_rxpackets"}},
	{"tx_packets", 'P', "TX-P", "packets sent", perSecond, "netdev", []string{"kubeskoop_netdev_txpackets"}},
}

// Heads of the columns that are not numbers.
const (
	headPod    = "POD"
	headReason = "REASON" // reason of most drops
)

// Names returns the names of all columns.
func Names() []string {
	var names []string
	for _, c := range columns {
		names = append(names, c.Name)
	}
	return names
}

// Probes returns the probes that have a column in top.
func Probes() []string {
	var names []string
	for _, c := range columns {
		if !slices.Contains(names, c.probe) {
			names = append(names, c.probe)
		}
	}
	return names
}

// Columns returns the columns of the chosen probes.
func Columns(probes []string) []Column {
	return slices.DeleteFunc(slices.Clone(columns), func(c Column) bool { return !slices.Contains(probes, c.probe) })
}
