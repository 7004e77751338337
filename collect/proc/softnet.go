package proc

import (
	"errors"
	"io/fs"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// softnet sums the first two columns of /proc/net/softnet_stat over all CPUs
// (net/core/net-procfs.c, softnet_seq_show). The file is the same in every network
// namespace. Its numbers are hexadecimal with 32 bits.
//
// prometheus/procfs' NetSoftnetStat is not used because it accepts malformed files
// (TestLibraryLoses): a truncated number, an empty file, a CPU that is listed twice,
// and a file of which one line is too long for its buffer. Its errors do not name the
// line.
type softnet struct {
	processed, dropped *catalog.Metric
}

func newSoftnet(collect.Env) (collect.Probe, error) {
	return &softnet{
		processed: catalog.MustMetric("kubeskoop_softnet_processed"),
		dropped:   catalog.MustMetric("kubeskoop_softnet_dropped"),
	}, nil
}

func (*softnet) Granularity() collect.Granularity { return collect.Node }

func (*softnet) Close() error { return nil }

func (p *softnet) Sample(v *collect.View) error {
	b, err := v.ReadHost("net/softnet_stat")
	if errors.Is(err, fs.ErrNotExist) {
		// net is a symbolic link through self, which is broken in the procfs of another PID
		// namespace.
		b, err = v.ReadHost("1/net/softnet_stat")
	}
	if err != nil {
		return err
	}
	s := collect.State[softnetState](v)
	if err := s.parse(b); err != nil {
		return err
	}
	v.Add(p.processed, float64(s.processed))
	v.Add(p.dropped, float64(s.dropped))
	return nil
}

// softnetState is the last counts of each CPU, and the 64-bit sums since the start.
type softnetState struct {
	processed, dropped uint64
	cpus               []softnetCPU
	rows               int
	numbered           bool
	row                []softnetRow // reused by parse
}

// Keep appends the sums and the counts of each CPU.
func (s *softnetState) Keep(b []byte) []byte {
	if s.rows == 0 {
		return b
	}
	b = collect.AppendUints(b, s.processed, s.dropped, uint64(s.rows), flag(s.numbered))
	for _, c := range s.cpus {
		b = collect.AppendUints(b, flag(c.seen), uint64(c.processed), uint64(c.dropped))
	}
	return b
}

// Recall restores what Keep appended.
func (s *softnetState) Recall(b []byte) error {
	d := collect.NewDecoder(b)
	s.processed, s.dropped, s.rows, s.numbered = d.Uint(), d.Uint(), int(d.Uint()), d.Uint() == 1
	for d.More() && len(s.cpus) < maxCPU {
		s.cpus = append(s.cpus, softnetCPU{d.Uint() == 1, uint32(d.Uint()), uint32(d.Uint())})
	}
	return d.Err()
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

type softnetCPU struct {
	seen               bool
	processed, dropped uint32
}

type softnetRow struct {
	cpu                int
	processed, dropped uint32
}

// maxCPU is above any kernel's limit (CONFIG_NR_CPUS is at most 8192).
const maxCPU = 1 << 16

// The columns of softnet_stat. Newer kernels also print the CPU's number.
const (
	softnetProcessed = 0
	softnetDropped   = 1
	softnetIndex     = 12
)

// parse reads the whole file, or rejects it.
func (s *softnetState) parse(b []byte) error {
	s.row = s.row[:0]
	numbered := false
	l := kernel.Lines{File: "net/softnet_stat", Rest: b}
	for {
		line, ok, err := l.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		r := softnetRow{cpu: len(s.row)}
		n := 0
		for f, rest := kernel.Field(line); len(f) > 0; f, rest = kernel.Field(rest) {
			x, ok := kernel.Hex(f)
			if !ok || x > 0xFFFFFFFF {
				return l.Errorf("%.30q is not a hexadecimal number of 32 bits", f)
			}
			switch n {
			case softnetProcessed:
				r.processed = uint32(x)
			case softnetDropped:
				r.dropped = uint32(x)
			case softnetIndex:
				r.cpu = int(x)
			}
			n++
		}
		if n < 9 { // Linux 2.6 prints this many columns
			return l.Errorf("%d columns, not at least 9", n)
		}
		if len(s.row) > 0 && numbered != (n > softnetIndex) {
			return l.Errorf("%d columns, unlike the line before", n)
		}
		numbered = n > softnetIndex
		if r.cpu >= maxCPU || len(s.row) > 0 && r.cpu <= s.row[len(s.row)-1].cpu {
			return l.Errorf("the CPU number %d is out of order", r.cpu)
		}
		s.row = append(s.row, r)
	}
	if len(s.row) == 0 {
		l.N++
		return l.Errorf("no line for any CPU")
	}
	// Without CPU numbers, the lines are the online CPUs in order. If their number
	// changes, the affected CPU is unknown, so all continue from their current values.
	moved := !numbered && s.rows != 0 && s.rows != len(s.row) || s.rows != 0 && s.numbered != numbered
	s.rows, s.numbered = len(s.row), numbered
	if moved {
		clear(s.cpus)
	}
	for i := range s.row {
		s.add(&s.row[i], moved)
	}
	return nil
}

// add counts one line. An offline CPU keeps its counts.
func (s *softnetState) add(r *softnetRow, moved bool) {
	for r.cpu >= len(s.cpus) {
		s.cpus = append(s.cpus, softnetCPU{})
	}
	c := &s.cpus[r.cpu]
	switch {
	case c.seen:
		s.processed += kernel.Since32(r.processed, c.processed)
		s.dropped += kernel.Since32(r.dropped, c.dropped)
	case !moved:
		s.processed += uint64(r.processed)
		s.dropped += uint64(r.dropped)
	}
	*c = softnetCPU{true, r.processed, r.dropped}
}
