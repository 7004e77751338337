package proc

import "nodeskoop/collect"

// newUDP builds the probe udp: UDP counters of IPv4, of /proc/PID/net/snmp.
func newUDP(collect.Env) (collect.Probe, error) { return newMIB("udp", "snmp") }
