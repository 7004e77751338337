package proc

import (
	"errors"
	"io/fs"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// softnet samples the first two columns of /proc/net/softnet_stat over all
// CPUs (net/core/net-procfs.c, softnet_seq_show). The file is the same in
// every network namespace. Its numbers are hexadecimal and have 32 bits.
//
// The library's NetSoftnetStat would do for one file in a cycle, but takes what is no
// whole file for values (TestLibraryLoses): a number that is cut, no line at all, a CPU
// twice, and what comes before a line that is too long for it. Its errors do not name
// the line.
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
		// net is a link through self, which leads nowhere in a procfs of
		// another process namespace than this one's.
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

// softnetState is what each CPU counted last, and the sums since the start in
// 64 bits.
type softnetState struct {
	processed, dropped uint64
	cpus               []softnetCPU
	rows               int
	numbered           bool
	row                []softnetRow // memory for parse
}

// Keep appends the sums and what each CPU had counted.
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

// maxCPU is more than any kernel has (CONFIG_NR_CPUS is at most 8192).
const maxCPU = 1 << 16

// The columns of softnet_stat. Newer kernels print the number of the CPU.
const (
	softnetProcessed = 0
	softnetDropped   = 1
	softnetIndex     = 12
)

// parse takes in the whole file or nothing of it.
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
		if n < 9 { // as many as Linux 2.6 had
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
	// Without numbers, the lines are those of the CPUs that are online, in
	// order. Where one more or less is, it cannot be told which, and all are
	// followed from what they show now.
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

// add takes in one line. A CPU that is offline keeps what it had counted.
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
