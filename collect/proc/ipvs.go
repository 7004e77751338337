package proc

import (
	"bytes"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// ipvs samples the totals in /proc/PID/net/ip_vs_stats, which are hexadecimal
// (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_stats_show). Without the module the file does
// not exist, and all values are 0.
//
// prometheus/procfs' IPVSStats is no alternative: it does not check the names of the
// columns (TestLibraryLoses), and needs a procfs directory, which a namespace kept only
// by a bind mount lacks.
type ipvs struct {
	granularity collect.Granularity
	metrics     [ipvsColumns]*catalog.Metric
}

// The columns of the file.
const (
	ipvsConnections = iota
	ipvsInPackets
	ipvsOutPackets
	ipvsInBytes
	ipvsOutBytes
	ipvsColumns
)

func newIPVS(env collect.Env) (collect.Probe, error) {
	p := &ipvs{granularity: collect.HostNetns}
	if pods, _ := env.Options["pods"].(bool); pods {
		p.granularity = collect.EachNetns
	}
	for i, name := range [ipvsColumns]string{ipvsConnections: "connections", ipvsInPackets: "incomingpackets",
		ipvsOutPackets: "outgoingpackets", ipvsInBytes: "incomingbytes", ipvsOutBytes: "outgoingbytes"} {
		p.metrics[i] = catalog.MustMetric("kubeskoop_ipvs_" + name)
	}
	return p, nil
}

func (p *ipvs) Granularity() collect.Granularity { return p.granularity }

func (*ipvs) Close() error { return nil }

func (p *ipvs) Sample(v *collect.View) error {
	var values [ipvsColumns]uint64
	b, err := readOptional(v, "ip_vs_stats")
	if err == nil && b != nil {
		values, err = parseIPVS(b)
	}
	if err != nil {
		return err
	}
	for i, m := range p.metrics {
		v.Add(m, float64(values[i]))
	}
	return nil
}

// ipvsHeader is the two lines of column names above the totals.
var ipvsHeader = [2][]byte{
	[]byte("Total Incoming Outgoing Incoming Outgoing"),
	[]byte("Conns Packets Packets Bytes Bytes"),
}

func parseIPVS(b []byte) (values [ipvsColumns]uint64, err error) {
	l := kernel.Lines{File: "net/ip_vs_stats", Rest: b}
	for _, want := range ipvsHeader {
		line, ok, err := l.Next()
		if err != nil || !ok {
			return values, l.OrMissing(err, "a line of names is missing")
		}
		if !sameFields(line, want) {
			return values, l.Errorf("%.80q is not the names %q", line, want)
		}
	}
	line, ok, err := l.Next()
	if err != nil || !ok {
		return values, l.OrMissing(err, "the totals are missing")
	}
	n := 0
	for f, rest := kernel.Field(line); len(f) > 0; f, rest = kernel.Field(rest) {
		x, ok := kernel.Hex(f)
		if !ok || n == ipvsColumns {
			return values, l.Errorf("%.80q is not %d hexadecimal numbers", line, ipvsColumns)
		}
		values[n] = x
		n++
	}
	if n != ipvsColumns {
		return values, l.Errorf("%.80q is not %d hexadecimal numbers", line, ipvsColumns)
	}
	return values, nil
}

// sameFields reports whether a and b consist of the same words.
func sameFields(a, b []byte) bool {
	for {
		var x, y []byte
		x, a = kernel.Field(a)
		y, b = kernel.Field(b)
		if !bytes.Equal(x, y) {
			return false
		}
		if len(x) == 0 {
			return true
		}
	}
}
