package catalog

var conntrack = Probe{
	Name:   "conntrack",
	Title:  "connection tracking",
	Rank:   13,
	Source: Netlink, Overhead: "low", Measured: "under 1 ms/cycle", Default: true,
	Cost:         "Reads kernel counters once per cycle; adds nothing to the packet path.",
	Capabilities: []Capability{CapSysAdmin, CapNetAdmin},
	Options:      []Option{podsOption},
	Metrics: []Metric{{
		Name: "kubeskoop_conntrack_found", Type: Counter, Work: true, Scope: PerNetns, Field: "found",
		Help:   "Times that NAT found a tuple in use when it looked for a free one (found, over all CPUs); before Linux 4.9 every lookup that found an entry.",
		Kernel: "CTA_STATS_FOUND; nf_conntrack_tuple_taken()",
		Rises:  "NAT tries a source port and finds it taken. Since Linux 4.9 only NAT counts here: a fast rise means that NAT runs out of ports towards one destination.",
	}, {
		Name: "kubeskoop_conntrack_invalid", Type: Counter, Scope: PerNetns, Field: "invalid",
		Help:   "Packets that conntrack could not track (invalid, over all CPUs).",
		Kernel: "CTA_STATS_INVALID; nf_conntrack_in()",
		Rises:  "A packet fits no known connection and may not begin one: late segments after the entry expired, asymmetric routes. With net.netfilter.nf_conntrack_log_invalid the kernel says why.",
	}, {
		Name: "kubeskoop_conntrack_ignore", Type: Counter, Work: true, Scope: PerNetns, Field: "ignore",
		Help:   "Packets seen that were tracked or exempt already (ignore, over all CPUs); kernels since 5.10 no longer count it: 0.",
		Kernel: "CTA_STATS_IGNORE; before 5.10 nf_conntrack_in()",
		Rises:  "Stays 0 since Linux 5.10.",
	}, {
		Name: "kubeskoop_conntrack_insert", Type: Counter, Work: true, Scope: PerNetns, Field: "insert",
		Help:   "Entries inserted into the conntrack table (insert, over all CPUs); since Linux 4.9 only those that programs insert.",
		Kernel: "CTA_STATS_INSERT; nf_conntrack_hash_check_insert()",
		Rises:  "Since Linux 4.9 only entries that a program inserts through netlink count (conntrackd, conntrack -I).",
	}, {
		Name: "kubeskoop_conntrack_insertfailed", Type: Counter, Scope: PerNetns, Field: "insert_failed",
		Help:   "Entries that could not be inserted, mostly a race between packets of one connection (insert_failed, over all CPUs).",
		Kernel: "CTA_STATS_INSERT_FAILED; __nf_conntrack_confirm()",
		Rises:  "Two packets of one new connection race for the table, and the second is dropped: the A and AAAA queries of a resolver over one UDP socket with DNAT are the classic case, seen as DNS timeouts of 5 s.",
	}, {
		Name: "kubeskoop_conntrack_drop", Type: Counter, Scope: PerNetns, Field: "drop",
		Help:   "Packets dropped because no entry could be created, for example because the table was full (drop, over all CPUs).",
		Kernel: "CTA_STATS_DROP; nf_conntrack_in(), __nf_conntrack_confirm()",
		Rises:  "The table is full and no entry could be dropped early, or memory is short: packets of new connections are lost.",
	}, {
		Name: "kubeskoop_conntrack_earlydrop", Type: Counter, Scope: PerNetns, Field: "early_drop",
		Help:   "Entries dropped early to make room in a full table (early_drop, over all CPUs).",
		Kernel: "CTA_STATS_EARLY_DROP; early_drop()",
		Rises:  "The table is full, and an entry that had seen no reply was evicted for a new one.",
	}, {
		Name: "kubeskoop_conntrack_error", Type: Counter, Scope: PerNetns, Field: "error",
		Help:   "Packets dropped for a protocol error, ICMP errors that match no connection included (icmp_error, over all CPUs).",
		Kernel: "CTA_STATS_ERROR; nf_conntrack_handle_icmp()",
		Rises:  "A packet is malformed, or an ICMP error refers to a connection that is not in the table.",
	}, {
		Name: "kubeskoop_conntrack_searchrestart", Type: Counter, Work: true, Scope: PerNetns, Field: "search_restart",
		Help:   "Conntrack lookups repeated because the table changed underneath (search_restart, over all CPUs).",
		Kernel: "CTA_STATS_SEARCH_RESTART; ____nf_conntrack_find()",
		Rises:  "The table changes during a lookup, as with many new connections per second. It costs time; no packet is lost.",
	}, {
		Name: "kubeskoop_conntrack_entries", Type: Gauge, Recorded: true, Scope: PerNetns, Field: "entries",
		Help:   "Entries now in the conntrack table of the namespace.",
		Kernel: "CTA_STATS_GLOBAL_ENTRIES; nf_conntrack_count",
		Rises:  "Follows the tracked connections; closed ones stay until their timeout.",
	}, {
		Name: "kubeskoop_conntrack_maxentries", Type: Gauge, Recorded: true, Scope: PerNetns, Field: "max_entries",
		Help:   "Maximum number of entries in the conntrack table (net.netfilter.nf_conntrack_max).",
		Kernel: "CTA_STATS_GLOBAL_MAX_ENTRIES; net.netfilter.nf_conntrack_max",
		Rises:  "Changes only with the sysctl.",
	}},
}
