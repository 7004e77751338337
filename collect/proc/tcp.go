package proc

import "nodeskoop/collect"

// newTCP builds the probe tcp: TCP counters, IPv4 and IPv6 together, of /proc/PID/net/snmp.
func newTCP(collect.Env) (collect.Probe, error) { return newMIB("tcp", "snmp") }
