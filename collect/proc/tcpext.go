package proc

import "nodeskoop/collect"

// newTCPExt builds the probe tcpext: Linux's own TCP counters in /proc/PID/net/netstat.
func newTCPExt(collect.Env) (collect.Probe, error) { return newMIB("tcpext", "netstat") }
