package proc

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// mib samples the metrics in one section of /proc/PID/net/snmp or netstat. A section is two
// lines that begin with its name: the first has the names of the values, the second the
// values (net/ipv4/proc.c, snmp_seq_show and netstat_seq_show). Metric.Field is the name of
// a metric's value.
//
// A value that this kernel does not have is 0.
type mib struct {
	file    string // below /proc/PID/net
	path    string // path in errors: "net/snmp"
	section string
	metrics []*catalog.Metric
	names   []string // name of each metric's value
	layout  atomic.Pointer[mibLayout]
}

// mibLayout is the layout of a kernel's file: the line of names, and for each column the
// index of the metric, or -1.
type mibLayout struct {
	header []byte
	column []int16
}

// maxMIB is the most metrics that one section has.
const maxMIB = 40

func newMIB(probe, file string) (*mib, error) {
	p := &mib{file: file, path: "net/" + file, metrics: metricsOf(probe)}
	for _, m := range p.metrics {
		section, name, _ := strings.Cut(m.Field, ".")
		if p.section == "" {
			p.section = section
		}
		if section != p.section || name == "" || len(p.metrics) > maxMIB {
			return nil, errors.New("the metric " + m.Name + " does not belong to the section " + p.section + " of " + p.path)
		}
		p.names = append(p.names, name)
	}
	return p, nil
}

func (*mib) Granularity() collect.Granularity { return collect.EachNetns }

func (*mib) Close() error { return nil }

func (p *mib) Sample(v *collect.View) error {
	b, err := v.ReadNet(p.file)
	if err != nil {
		return err
	}
	var values [maxMIB]uint64
	if err := p.parse(b, &values); err != nil {
		return err
	}
	for i, m := range p.metrics {
		v.Add(m, float64(values[i]))
	}
	return nil
}

// parse finds the section in the file b and sets the value of each metric.
func (p *mib) parse(b []byte, values *[maxMIB]uint64) error {
	l := kernel.Lines{File: p.path, Rest: b}
	for {
		header, ok, err := l.Next()
		if err != nil {
			return err
		}
		if !ok {
			l.N++
			return l.Errorf("the section %s is missing", p.section)
		}
		if !p.inSection(header) {
			continue
		}
		layout := p.layout.Load()
		if layout == nil || !bytes.Equal(layout.header, header) {
			if layout, err = p.newLayout(&l, header); err != nil {
				return err
			}
			p.layout.Store(layout)
		}
		line, ok, err := l.Next()
		if err != nil {
			return err
		}
		if !ok || !p.inSection(line) {
			return l.Errorf("%s has a line of names without a line of values", p.section)
		}
		return p.values(&l, layout, line, values)
	}
}

func (p *mib) inSection(line []byte) bool {
	n := len(p.section)
	return len(line) > n && line[n] == ':' && string(line[:n]) == p.section
}

func (p *mib) newLayout(l *kernel.Lines, header []byte) (*mibLayout, error) {
	layout := &mibLayout{header: slices.Clone(header)}
	seen := map[int]bool{}
	for f, rest := kernel.Field(header[len(p.section)+1:]); len(f) > 0; f, rest = kernel.Field(rest) {
		i := slices.Index(p.names, string(f))
		if i >= 0 && seen[i] {
			return nil, l.Errorf("%s names %s twice", p.section, f)
		}
		seen[i] = true
		layout.column = append(layout.column, int16(i))
	}
	return layout, nil
}

func (p *mib) values(l *kernel.Lines, layout *mibLayout, line []byte, values *[maxMIB]uint64) error {
	n := 0
	for f, rest := kernel.Field(line[len(p.section)+1:]); len(f) > 0; f, rest = kernel.Field(rest) {
		if n == len(layout.column) {
			return l.Errorf("%s has more values than its %d names", p.section, n)
		}
		i := layout.column[n]
		n++
		// Some values are signed, such as Tcp.MaxConn, where -1 means no limit.
		x, ok := kernel.Gauge(f)
		if i >= 0 && p.metrics[i].Type == catalog.Counter {
			x, ok = kernel.Uint(f)
		}
		if !ok {
			return l.Errorf("the value %.30q of %s.%s is not a number", f, p.section, nameOf(layout, n-1))
		}
		if i >= 0 {
			values[i] = x
		}
	}
	if n != len(layout.column) {
		return l.Errorf("%s has %d values under %d names", p.section, n, len(layout.column))
	}
	return nil
}

// nameOf returns the name of column n.
func nameOf(l *mibLayout, n int) string {
	names := bytes.Fields(l.header)
	if n+1 < len(names) {
		return string(names[n+1])
	}
	return "?"
}

// readOptional reads a file that some kernels do not have. It returns nil if there is none.
func readOptional(v *collect.View, name string) ([]byte, error) {
	b, err := v.ReadNet(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}
