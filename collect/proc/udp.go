package proc

import "nodeskoop/collect"

// newUDP builds the probe udp: IPv4 UDP counters in /proc/PID/net/snmp.
func newUDP(collect.Env) (collect.Probe, error) { return newMIB("udp", "snmp") }
