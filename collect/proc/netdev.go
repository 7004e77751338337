package proc

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"nodeskoop/collect"
)

// netdev sums /proc/PID/net/dev over every interface but lo
// (net/core/net-procfs.c, dev_seq_printf_stats).
type netdev struct {
	metrics []*collect.Metric
	fields  []string // "rx.bytes", of each metric
	layout  atomic.Pointer[netdevLayout]
}

// netdevFields is how many values are taken of an interface.
const netdevFields = 8

// netdevLayout is where a kernel prints the values: the line of names, and for
// each of its columns the index of the metric, or -1.
type netdevLayout struct {
	header []byte
	column []int8
}

func newNetdev(collect.Env) (collect.Probe, error) {
	p := &netdev{metrics: metricsOf("netdev")}
	for _, m := range p.metrics {
		p.fields = append(p.fields, m.Field)
	}
	if len(p.metrics) != netdevFields {
		return nil, errors.New("netdev has other metrics than this build knows")
	}
	return p, nil
}

func (*netdev) Over() collect.Over { return collect.EachNetns }

func (*netdev) Close() error { return nil }

func (p *netdev) Sample(v *collect.View) error {
	b, err := v.ReadNet("dev")
	if err != nil {
		return err
	}
	s := collect.State[interfaces](v)
	if err := p.parse(b, s); err != nil {
		return err
	}
	if s.hasNew {
		if err := s.findIndexes(v); err != nil {
			return err
		}
	}
	sum := s.sum()
	for i, m := range p.metrics {
		v.Add(m, float64(sum[i]))
	}
	return nil
}

// interfaces is what is remembered of one namespace: the interfaces of the
// last sample, and what those that are gone had counted.
type interfaces struct {
	list   []iface
	gone   [netdevFields]uint64
	next   int // where in list the next interface probably is
	read   []ifaceLine
	hasNew bool // an interface is there whose index is not known
}

type iface struct {
	name   [unix.IFNAMSIZ]byte
	index  int32 // 0: not known
	asked  bool  // whether the index was asked for
	values [netdevFields]uint64
	missed uint8 // samples in a row that did not see it
	fresh  bool  // seen for the first time in this sample
}

type ifaceLine struct {
	name   [unix.IFNAMSIZ]byte
	values [netdevFields]uint64
}

// parse takes in the whole file or nothing of it.
func (p *netdev) parse(b []byte, s *interfaces) error {
	l := lines{file: "net/dev", rest: b}
	if _, ok, err := l.next(); err != nil || !ok {
		return orMissing(err, &l, "the two lines of names are missing")
	}
	header, ok, err := l.next()
	if err != nil || !ok {
		return orMissing(err, &l, "the second line of names is missing")
	}
	layout := p.layout.Load()
	if layout == nil || !bytes.Equal(layout.header, header) {
		if layout, err = p.newLayout(&l, header); err != nil {
			return err
		}
		p.layout.Store(layout)
	}
	s.read = s.read[:0]
	for {
		line, ok, err := l.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		var x ifaceLine
		if err := x.parse(&l, layout, line); err != nil {
			return err
		}
		if x.name != loopback {
			s.read = append(s.read, x)
		}
	}
	s.update()
	return nil
}

var loopback = [unix.IFNAMSIZ]byte{'l', 'o'}

// newLayout reads a line such as
//
//	face |bytes    packets errs drop fifo frame compressed multicast|bytes ...
func (p *netdev) newLayout(l *lines, header []byte) (*netdevLayout, error) {
	parts := strings.Split(string(header), "|")
	if len(parts) != 3 || strings.TrimSpace(parts[0]) != "face" {
		return nil, l.errorf("%.60q does not name the columns", header)
	}
	layout := &netdevLayout{header: slices.Clone(header)}
	var found [netdevFields]bool
	for i, side := range []string{"rx.", "tx."} {
		for _, name := range strings.Fields(parts[1+i]) {
			at := slices.Index(p.fields, side+name)
			if at >= 0 && found[at] {
				return nil, l.errorf("it names %s%s twice", side, name)
			}
			if at >= 0 {
				found[at] = true
			}
			layout.column = append(layout.column, int8(at))
		}
	}
	if i := slices.Index(found[:], false); i >= 0 {
		return nil, l.errorf("it does not name %s", p.fields[i])
	}
	return layout, nil
}

func (x *ifaceLine) parse(l *lines, layout *netdevLayout, line []byte) error {
	i := bytes.IndexByte(line, ':')
	if i < 0 {
		return l.errorf("%.40q does not begin with the name of an interface", line)
	}
	name := bytes.TrimLeft(line[:i], " ")
	if len(name) == 0 || len(name) >= len(x.name) {
		return l.errorf("%.40q is not the name of an interface", name)
	}
	copy(x.name[:], name)
	n := 0
	for f, rest := field(line[i+1:]); len(f) > 0; f, rest = field(rest) {
		v, ok := parseUint(f)
		if !ok {
			return l.errorf("%.30q is not a number", f)
		}
		if n < len(layout.column) && layout.column[n] >= 0 {
			x.values[layout.column[n]] = v
		}
		n++
	}
	if n != len(layout.column) {
		return l.errorf("%d values under %d names", n, len(layout.column))
	}
	return nil
}

// update takes in the lines of one sample.
func (s *interfaces) update() {
	for i := range s.list {
		s.list[i].missed++
	}
	s.next = 0
	for i := range s.read {
		x := &s.read[i]
		f := s.find(&x.name)
		switch {
		case f == nil:
			s.list = append(s.list, iface{name: x.name, values: x.values, fresh: true})
			s.hasNew = true
			continue
		case fell(&x.values, &f.values):
			// Another interface has taken the name.
			s.keep(&f.values)
			f.index, f.asked = 0, false
			s.hasNew = true
		}
		f.values, f.missed = x.values, 0
	}
	n := 0
	for i := range s.list {
		f := &s.list[i]
		// A list longer than a page is read in several goes, and older
		// kernels can leave out an interface when another goes away in
		// between. So one has to be missed twice.
		if f.missed > 1 {
			s.keep(&f.values)
			continue
		}
		if n != i {
			s.list[n] = *f
		}
		n++
	}
	s.list = s.list[:n]
}

// fell reports whether any value is below what it was.
func fell(now, before *[netdevFields]uint64) bool {
	for i := range now {
		if now[i] < before[i] {
			return true
		}
	}
	return false
}

func (s *interfaces) find(name *[unix.IFNAMSIZ]byte) *iface {
	n := len(s.list)
	for i := range n {
		j := s.next + i
		if j >= n {
			j -= n
		}
		if s.list[j].name == *name {
			s.next = j + 1
			return &s.list[j]
		}
	}
	return nil
}

func (s *interfaces) keep(values *[netdevFields]uint64) {
	for i := range values {
		s.gone[i] += values[i]
	}
}

func (s *interfaces) sum() [netdevFields]uint64 {
	t := s.gone
	for i := range s.list {
		for j, x := range s.list[i].values {
			t[j] += x
		}
	}
	return t
}

// findIndexes asks for the indexes of new interfaces, by which one that was
// renamed is known again: it goes on counting, and must not count twice. What
// cannot be asked stays unknown, which costs only that.
func (s *interfaces) findIndexes(v *collect.View) error {
	err := v.Enter("find the indexes of interfaces", func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range s.list {
			f := &s.list[i]
			if f.asked {
				continue
			}
			f.asked = true
			r, err := unix.NewIfreq(string(bytes.TrimRight(f.name[:], "\x00")))
			if err != nil {
				continue
			}
			if unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r) == nil {
				f.index = int32(r.Uint32())
			}
		}
		return nil
	})
	if err != nil && !partial(err) {
		return err
	}
	s.hasNew = false
	s.joinRenamed()
	return nil
}

// joinRenamed drops the old entry of an interface that is there under a new name.
func (s *interfaces) joinRenamed() {
	for i := len(s.list) - 1; i >= 0; i-- {
		old := &s.list[i]
		renamed := old.missed > 0 && old.index != 0 && slices.ContainsFunc(s.list, func(f iface) bool {
			return f.fresh && f.index == old.index && !fell(&f.values, &old.values)
		})
		if renamed {
			s.list = slices.Delete(s.list, i, i+1)
		}
	}
	for i := range s.list {
		s.list[i].fresh = false
	}
}
