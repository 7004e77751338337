package proc

import (
	"bytes"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// sock samples the TCP line of /proc/PID/net/sockstat and the TCP6 line of sockstat6
// (net/ipv4/proc.c sockstat_seq_show, net/ipv6/proc.c sockstat6_seq_show). The second file
// has only the IPv6 sockets in use; all other values of the first cover both families.
type sock struct {
	metrics []*catalog.Metric
	at      []int // index of each metric's value in sockstat
}

// sockstat holds the values of the TCP line.
type sockstat [len(sockstatKeys)]uint64

var sockstatKeys = [...]string{"inuse", "orphan", "tw", "alloc", "mem"}

const (
	sockInuse = 0
	sockTW    = 2
)

func newSock(collect.Env) (collect.Probe, error) {
	p := &sock{metrics: metricsOf("sock")}
	for _, m := range p.metrics {
		for i, k := range sockstatKeys {
			if k == m.Field {
				p.at = append(p.at, i)
			}
		}
	}
	return p, nil
}

func (*sock) Granularity() collect.Granularity { return collect.EachNetns }

func (*sock) Close() error { return nil }

func (p *sock) Sample(v *collect.View) error {
	s, err := readSockstat(v)
	if err != nil {
		return err
	}
	for i, m := range p.metrics {
		v.Add(m, float64(s[p.at[i]]))
	}
	return nil
}

// readSockstat reads both files. A kernel without IPv6 has only the first.
func readSockstat(v *collect.View) (s sockstat, err error) {
	b, err := v.ReadNet("sockstat")
	if err != nil {
		return s, err
	}
	if err := s.parse("net/sockstat", "TCP:", b); err != nil {
		return s, err
	}
	b, err = readOptional(v, "sockstat6")
	if b == nil || err != nil {
		return s, err
	}
	var s6 sockstat
	if err := s6.parse("net/sockstat6", "TCP6:", b); err != nil {
		return s, err
	}
	s[sockInuse] += s6[sockInuse]
	return s, nil
}

// parse parses the line with the given prefix: pairs of a name and a number.
func (s *sockstat) parse(file, prefix string, b []byte) error {
	l := kernel.Lines{File: file, Rest: b}
	for {
		line, ok, err := l.Next()
		if err != nil {
			return err
		}
		if !ok {
			l.N++
			return l.Errorf("the line %s is missing", prefix)
		}
		if bytes.HasPrefix(line, []byte(prefix)) {
			return s.parseLine(&l, line[len(prefix):])
		}
	}
}

func (s *sockstat) parseLine(l *kernel.Lines, b []byte) error {
	found := false
	for {
		var key, value []byte
		if key, b = kernel.Field(b); len(key) == 0 {
			break
		}
		value, b = kernel.Field(b)
		n, ok := kernel.Gauge(value)
		if !ok {
			return l.Errorf("the value %.30q of %.30q is not a number", value, key)
		}
		for i, k := range sockstatKeys {
			if string(key) == k {
				s[i] = n
				found = found || i == sockInuse
			}
		}
	}
	if !found {
		return l.Errorf("it has no number of sockets in use")
	}
	return nil
}
