package proc

import "nodeskoop/collect"

// newIP builds the probe ip: IPv4 counters of the extended MIB in /proc/PID/net/netstat.
func newIP(collect.Env) (collect.Probe, error) { return newMIB("ip", "netstat") }
