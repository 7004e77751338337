package proc

import "nodeskoop/collect"

// newTCP builds the probe tcp: TCP counters of IPv4 and IPv6 in /proc/PID/net/snmp.
func newTCP(collect.Env) (collect.Probe, error) { return newMIB("tcp", "snmp") }
