package proc

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/prometheus/procfs"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
)

// softnet samples the first two columns of /proc/net/softnet_stat over all
// CPUs (net/core/net-procfs.c, softnet_seq_show). The file is the same in
// every network namespace. Its numbers are hexadecimal and have 32 bits.
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
	rows, err := readSoftnet(v, v.ProcRoot())
	if errors.Is(err, fs.ErrNotExist) {
		// net is a link through self, which leads nowhere in a procfs of
		// another process namespace than this one's.
		rows, err = readSoftnet(v, v.ProcRoot()+"/1")
	}
	if err != nil {
		return err
	}
	s := collect.State[softnetState](v)
	if err := s.take(rows); err != nil {
		return err
	}
	v.Add(p.processed, float64(s.processed))
	v.Add(p.dropped, float64(s.dropped))
	return nil
}

// readSoftnet reads net/softnet_stat below a folder of procfs.
func readSoftnet(v *collect.View, root string) (rows []procfs.SoftnetStat, err error) {
	path := root + "/net/softnet_stat"
	err = v.Do(0, path, func() error {
		proc, err := procfs.NewFS(root)
		if err == nil {
			rows, err = proc.NetSoftnetStat()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return rows, nil
}

// softnetState is what each CPU counted last, and the sums since the start in
// 64 bits.
type softnetState struct {
	processed, dropped uint64
	cpus               []softnetCPU
	rows               int
	numbered           bool
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

// maxCPU is more than any kernel has (CONFIG_NR_CPUS is at most 8192).
const maxCPU = 1 << 16

// numberedWidth is how many columns there are at least where the kernel prints
// the number of the CPU (Linux 5.14 and newer).
const numberedWidth = 13

// take takes in all rows or none.
func (s *softnetState) take(rows []procfs.SoftnetStat) error {
	if len(rows) == 0 {
		return errors.New("net/softnet_stat: no line for any CPU")
	}
	numbered := rows[0].Width >= numberedWidth
	for i, r := range rows {
		if r.Width != rows[0].Width {
			return fmt.Errorf("net/softnet_stat line %d: %d columns, unlike the line before", i+1, r.Width)
		}
		if r.Index >= maxCPU || i > 0 && r.Index <= rows[i-1].Index {
			return fmt.Errorf("net/softnet_stat line %d: the CPU number %d is out of order", i+1, r.Index)
		}
	}
	// Without numbers, the lines are those of the CPUs that are online, in
	// order. Where one more or less is, it cannot be told which, and all are
	// followed from what they show now.
	moved := !numbered && s.rows != 0 && s.rows != len(rows) || s.rows != 0 && s.numbered != numbered
	s.rows, s.numbered = len(rows), numbered
	if moved {
		clear(s.cpus)
	}
	for i := range rows {
		s.add(&rows[i], moved)
	}
	return nil
}

// add takes in one line. A CPU that is offline keeps what it had counted.
func (s *softnetState) add(r *procfs.SoftnetStat, moved bool) {
	for int(r.Index) >= len(s.cpus) {
		s.cpus = append(s.cpus, softnetCPU{})
	}
	c := &s.cpus[r.Index]
	switch {
	case c.seen:
		s.processed += since32(r.Processed, c.processed)
		s.dropped += since32(r.Dropped, c.dropped)
	case !moved:
		s.processed += uint64(r.Processed)
		s.dropped += uint64(r.Dropped)
	}
	*c = softnetCPU{true, r.Processed, r.Dropped}
}
