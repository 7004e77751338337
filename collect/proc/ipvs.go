package proc

import (
	"errors"
	"io/fs"

	"github.com/prometheus/procfs"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
)

// ipvs samples the totals of /proc/PID/net/ip_vs_stats, which are hexadecimal
// (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_stats_show). Without the module there
// is no file, and all is 0.
type ipvs struct {
	granularity collect.Granularity
	metrics     []*catalog.Metric
}

func newIPVS(env collect.Env) (collect.Probe, error) {
	p := &ipvs{granularity: collect.HostNetns}
	if pods, _ := env.Options["pods"].(bool); pods {
		p.granularity = collect.EachNetns
	}
	for _, name := range []string{"connections", "incomingpackets", "outgoingpackets", "incomingbytes", "outgoingbytes"} {
		p.metrics = append(p.metrics, catalog.MustMetric("kubeskoop_ipvs_"+name))
	}
	return p, nil
}

func (p *ipvs) Granularity() collect.Granularity { return p.granularity }

func (*ipvs) Close() error { return nil }

func (p *ipvs) Sample(v *collect.View) error {
	var s procfs.IPVSStats
	err := v.NetFS("net/ip_vs_stats", func(proc procfs.FS) (err error) {
		s, err = proc.IPVSStats()
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for i, n := range []uint64{s.Connections, s.IncomingPackets, s.OutgoingPackets, s.IncomingBytes, s.OutgoingBytes} {
		v.Add(p.metrics[i], float64(n))
	}
	return nil
}
