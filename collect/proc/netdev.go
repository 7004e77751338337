package proc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/netlink"
	"nodeskoop/internal/kernel"
)

// netdev sums /proc/PID/net/dev over every interface but lo
// (net/core/net-procfs.c, dev_seq_printf_stats).
//
// The sums count what interfaces have counted while they were in the
// namespace. The file has names, and a name is nobody's for long: interfaces
// are told apart by their indexes, which a namespace gives to new ones in
// rising order. What an interface shows that is new to a namespace which is
// being followed counts only if it was created there since. In the host's
// namespace the kernel tells of each that comes, with what its counters were;
// in pods' one with a higher index than any before is a new one, because a
// socket that listens would keep the namespace of an ended pod alive.
//
// To ask for the indexes in a pod's namespace is what costs most. Where the
// kernel tells in the host's of all changes of interfaces in the others, a
// namespace without any is not asked.
type netdev struct {
	log     *slog.Logger
	root    string
	once    bool
	metrics []*catalog.Metric
	fields  []string // "rx.bytes", of each metric
	layout  atomic.Pointer[netdevLayout]

	mu       sync.Mutex
	host     netlink.HostListener[interfaces]
	departed []departure // in this cycle and the one before
	watch    *netlink.Watch
	watches  int // how many were opened
}

// departure is an interface that moved from the host's namespace to another.
type departure struct {
	index  int32 // there
	values [netdevFields]uint64
	cycle  uint64
}

// netdevFields is how many values are taken of an interface.
const netdevFields = 8

// netdevLayout is where a kernel prints the values: the line of names, and for
// each of its columns the index of the metric, or -1.
type netdevLayout struct {
	header []byte
	column []int8
}

func newNetdev(env collect.Env) (collect.Probe, error) {
	p := &netdev{log: env.Log, root: env.ProcRoot, once: env.Once, metrics: metricsOf("netdev")}
	for _, m := range p.metrics {
		p.fields = append(p.fields, m.Field)
	}
	if len(p.metrics) != netdevFields {
		return nil, errors.New("netdev has other metrics than this build knows")
	}
	return p, nil
}

func (*netdev) Granularity() collect.Granularity { return collect.EachNetns }

func (p *netdev) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watch != nil {
		_ = p.watch.Close()
		p.watch = nil
	}
	return p.host.Close()
}

func (p *netdev) Sample(v *collect.View) error {
	s := collect.State[interfaces](v)
	if v.Pod() == nil && !p.once {
		if err := p.listen(v, s); err != nil {
			return err
		}
	}
	b, err := v.ReadNet("dev")
	if err != nil {
		return err
	}
	if err := p.read(b, s); err != nil {
		return err
	}
	if !p.unchanged(s) {
		if err := p.identify(v, s); err != nil {
			return err
		}
	}
	s.update(p.departures(v))
	sum := s.sum()
	for i, m := range p.metrics {
		v.Add(m, float64(sum[i]))
	}
	return nil
}

// listen opens the Listener of the host's namespace, once for each memory of
// it. Without one, interfaces are told apart as in a pod's.
func (p *netdev) listen(v *collect.View, s *interfaces) error {
	p.mu.Lock()
	wanted := p.host.Wanted(s)
	p.mu.Unlock()
	if !wanted {
		return nil
	}
	err := v.Enter("listen for interfaces", func() error {
		l, err := netlink.ListenLinks()
		if err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.host.Set(l, s)
		if p.watch != nil {
			_ = p.watch.Close()
		}
		// Without one, which takes a capability that the daemon does not have,
		// each namespace is asked in each cycle.
		if p.watch, err = netlink.WatchLinks(); err != nil {
			p.log.Debug("each network namespace is asked for its interfaces in each cycle", "reason", err)
		}
		p.watches++
		return nil
	})
	if err != nil && !partial(err) {
		return err
	}
	if err != nil {
		p.mu.Lock()
		p.host.Deaf()
		p.mu.Unlock()
		p.log.Warn("cannot listen for interfaces that come and go; one that moves into the host's network namespace may count what it counted elsewhere", "error", err)
	}
	return nil
}

// departures returns those of this cycle and the one before, and is nil for
// the host.
func (p *netdev) departures(v *collect.View) []departure {
	if v.Pod() == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.departed = slices.DeleteFunc(p.departed, func(d departure) bool { return d.cycle+1 < v.Cycle() })
	return slices.Clone(p.departed)
}

// hear takes in what the kernel said of the namespace of s, and reports whether
// that was anything.
func (p *netdev) hear(v *collect.View, s *interfaces) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.host.Of(s)
	if l == nil {
		return false, nil
	}
	heard := false
	lost, err := l.Drain(func(typ uint16, msg []byte) error {
		m, err := netlink.ParseLink(msg)
		if err != nil || m.Loopback || m.Stats == nil {
			return err
		}
		var x ifaceLine
		x.index = m.Index
		copy(x.name[:], m.Name)
		if err := p.stats(m.Stats, &x.values); err != nil {
			return err
		}
		heard = true
		if s.hear(typ == unix.RTM_NEWLINK, &x) && m.NewIndex != 0 {
			p.departed = append(p.departed, departure{m.NewIndex, x.values, v.Cycle()})
		}
		return nil
	})
	if lost {
		p.log.Warn("the kernel had more to say of interfaces that came and went than there was room for; what those counted whose beginning was missed may be wrong by it")
	}
	return heard || lost, err
}

// statsAt says where struct rtnl_link_stats64 has the values that are summed
// up to that of the file (dev_seq_printf_stats).
var statsAt = map[string][]int{
	"rx.bytes": {2}, "rx.packets": {0}, "rx.errs": {4}, "rx.drop": {6, 15},
	"tx.bytes": {3}, "tx.packets": {1}, "tx.errs": {5}, "tx.drop": {7},
}

func (p *netdev) stats(b []byte, values *[netdevFields]uint64) error {
	if len(b) < 16*8 {
		return fmt.Errorf("an interface's counters in %d bytes", len(b))
	}
	for i, name := range p.fields {
		for _, n := range statsAt[name] {
			values[i] += binary.NativeEndian.Uint64(b[8*n:])
		}
	}
	return nil
}

// unchanged reports whether the interfaces that were read are those of the last
// sample, each under its name, and then sets their indexes. It is to be called
// after they were read: the kernel tells of an interface that loses a name before
// another has it.
func (p *netdev) unchanged(s *interfaces) bool {
	if !s.watched || !s.known(false) {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watch == nil || s.watch != p.watches {
		return false
	}
	changed, err := p.watch.Changed(s.id, s.mark)
	return err == nil && !changed && s.known(true)
}

// watched notes, on a thread in the namespace of s, up to which message the
// kernel's word of it was heard before its interfaces were asked for.
func (p *netdev) watched(v *collect.View, s *interfaces) {
	s.watched = false
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.watch == nil || s.id == netlink.NoID && v.Cycle() < s.asked+askIDAfter {
		return
	}
	s.id, s.asked = netlink.NoID, v.Cycle()
	ns, err := kernel.Open(unix.AT_FDCWD, p.root+"/thread-self/ns/net", 0)
	if err != nil {
		return
	}
	defer unix.Close(ns)
	if s.id, err = p.watch.ID(ns); err != nil || s.id == netlink.NoID {
		return
	}
	s.mark, err = p.watch.Mark()
	s.watch, s.watched = p.watches, err == nil
}

// askIDAfter is after how many cycles a namespace that had no ID is asked for one
// again.
const askIDAfter = 16

// identify finds the indexes of the interfaces that were read. Where they are
// not what they were, the file is read again until indexes and names are the
// same before and after. What cannot be asked stays unknown, and then the name
// has to do.
func (p *netdev) identify(v *collect.View, s *interfaces) error {
	err := v.Enter("find the indexes of interfaces", func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if v.Pod() != nil && !p.once {
			p.watched(v, s)
		}
		same := s.ask(fd)
		const tries = 5
		for range tries {
			heard, err := p.hear(v, s)
			if err != nil {
				return err
			}
			if same && !heard {
				break
			}
			// In this namespace, but not through the process that the file was
			// read through before: whatever it is in by now.
			b, err := os.ReadFile(p.root + "/thread-self/net/dev")
			if err != nil {
				break
			}
			before := slices.Clone(s.read)
			if err := p.read(b, s); err != nil {
				return err
			}
			s.ask(fd)
			same = slices.EqualFunc(before, s.read, func(a, b ifaceLine) bool { return a.index == b.index && a.name == b.name })
		}
		s.watched = s.watched && same
		s.look(fd)
		return nil
	})
	if err != nil && !partial(err) {
		return err
	}
	return nil
}

// interfaces is what is remembered of one namespace.
type interfaces struct {
	total [netdevFields]uint64
	list  []iface // the interfaces of the last sample
	top   int32   // the highest index that there was
	began bool    // a sample was taken: what comes is new
	next  int     // where in list, or read, the next interface probably is
	read  []ifaceLine
	req   ifreq
	// looked: the kernel was asked about those that were not read.
	looked bool

	// watched: names and indexes were the same before and after, and the kernel
	// tells what changes from then on, as of a namespace with this ID and after
	// this mark of that watch.
	watched bool
	watch   int
	id      int32
	mark    uint64
	asked   uint64 // the cycle of that
}

type iface struct {
	name   [unix.IFNAMSIZ]byte
	index  int32 // 0: not known
	values [netdevFields]uint64
	missed uint8 // samples in a row that did not see it
	gone   bool  // the kernel has it no more
}

type ifaceLine struct {
	name   [unix.IFNAMSIZ]byte
	index  int32
	values [netdevFields]uint64
}

// ifreq is struct ifreq with a number in it.
type ifreq struct {
	name   [unix.IFNAMSIZ]byte
	number int32
	_      [20]byte
}

// Keep appends the sums and the interfaces that they have come from.
func (s *interfaces) Keep(b []byte) []byte {
	if !s.began {
		return b
	}
	b = collect.AppendUints(b, s.total[:]...)
	b = collect.AppendUints(b, uint64(uint32(s.top)))
	for i := range s.list {
		f := &s.list[i]
		b = collect.AppendUints(b, uint64(uint32(f.index)))
		if f.index == 0 {
			b = collect.AppendUints(b, unix.IFNAMSIZ)
			b = append(b, f.name[:]...)
		}
		b = collect.AppendUints(b, f.values[:]...)
	}
	return b
}

// Recall restores what Keep appended.
func (s *interfaces) Recall(b []byte) error {
	d := collect.NewDecoder(b)
	d.Uints(s.total[:])
	s.top = int32(d.Uint())
	for d.More() {
		f := iface{index: int32(d.Uint())}
		if f.index == 0 {
			copy(f.name[:], d.Bytes())
		}
		d.Uints(f.values[:])
		s.list = append(s.list, f)
	}
	s.began = true
	return d.Err()
}

// known reports whether the interfaces that were read have the names of those of
// the last sample, which all differ: no more and no fewer. With adopt it takes over
// their indexes.
func (s *interfaces) known(adopt bool) bool {
	n := len(s.list)
	if !s.began || len(s.read) != n {
		return false
	}
	next := 0
	for i := range s.list {
		f := &s.list[i]
		if f.index == 0 || f.missed > 0 {
			return false
		}
		j := 0
		for j < n && s.read[(next+j)%n].name != f.name {
			j++
		}
		if j == n {
			return false
		}
		if adopt {
			s.read[(next+j)%n].index = f.index
		}
		next += j + 1
	}
	return true
}

// ask asks for the indexes of the interfaces that were read, and reports
// whether each is that of the interface that had the name before.
func (s *interfaces) ask(fd int) (same bool) {
	same = s.began
	s.next = 0
	for i := range s.read {
		x := &s.read[i]
		s.req.name, s.req.number = x.name, 0
		if s.ioctl(fd, unix.SIOCGIFINDEX) == 0 {
			x.index = s.req.number
		}
		if f := s.named(&x.name); f == nil || f.index != x.index {
			same = false
		}
	}
	return same
}

// look finds out which of the interfaces that were not read are gone. The file
// may lack one that is there: it is longer than a page, and older kernels lose
// their place in it when an interface goes away.
func (s *interfaces) look(fd int) {
	s.next, s.looked = 0, true
	for i := range s.list {
		f := &s.list[i]
		if f.index == 0 || s.wasRead(f.index) {
			continue
		}
		s.req.name, s.req.number = [unix.IFNAMSIZ]byte{}, f.index
		if e := s.ioctl(fd, unix.SIOCGIFNAME); e == unix.ENODEV || e == unix.ENXIO {
			f.gone = true
		}
	}
}

func (s *interfaces) wasRead(index int32) bool {
	n := len(s.read)
	for i := range n {
		j := s.next + i
		if j >= n {
			j -= n
		}
		if s.read[j].index == index {
			s.next = j + 1
			return true
		}
	}
	return false
}

func (s *interfaces) ioctl(fd int, request uintptr) unix.Errno {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&s.req)))
	return e
}

// parse takes in the whole file or nothing of it, and tells interfaces apart
// by their names.
func (p *netdev) parse(b []byte, s *interfaces) error {
	if err := p.read(b, s); err != nil {
		return err
	}
	s.update(nil)
	return nil
}

// read reads the lines of the whole file, or nothing of it.
func (p *netdev) read(b []byte, s *interfaces) error {
	l := kernel.Lines{File: "net/dev", Rest: b}
	if _, ok, err := l.Next(); err != nil || !ok {
		return l.OrMissing(err, "the two lines of names are missing")
	}
	header, ok, err := l.Next()
	if err != nil || !ok {
		return l.OrMissing(err, "the second line of names is missing")
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
		line, ok, err := l.Next()
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
	return nil
}

var loopback = [unix.IFNAMSIZ]byte{'l', 'o'}

// newLayout reads a line such as
//
//	face |bytes    packets errs drop fifo frame compressed multicast|bytes ...
func (p *netdev) newLayout(l *kernel.Lines, header []byte) (*netdevLayout, error) {
	parts := strings.Split(string(header), "|")
	if len(parts) != 3 || strings.TrimSpace(parts[0]) != "face" {
		return nil, l.Errorf("%.60q does not name the columns", header)
	}
	layout := &netdevLayout{header: slices.Clone(header)}
	var found [netdevFields]bool
	for i, side := range []string{"rx.", "tx."} {
		for _, name := range strings.Fields(parts[1+i]) {
			at := slices.Index(p.fields, side+name)
			if at >= 0 && found[at] {
				return nil, l.Errorf("it names %s%s twice", side, name)
			}
			if at >= 0 {
				found[at] = true
			}
			layout.column = append(layout.column, int8(at))
		}
	}
	if i := slices.Index(found[:], false); i >= 0 {
		return nil, l.Errorf("it does not name %s", p.fields[i])
	}
	return layout, nil
}

func (x *ifaceLine) parse(l *kernel.Lines, layout *netdevLayout, line []byte) error {
	i := bytes.IndexByte(line, ':')
	if i < 0 {
		return l.Errorf("%.40q does not begin with the name of an interface", line)
	}
	name := bytes.TrimLeft(line[:i], " ")
	if len(name) == 0 || len(name) >= len(x.name) {
		return l.Errorf("%.40q is not the name of an interface", name)
	}
	copy(x.name[:], name)
	n := 0
	for f, rest := kernel.Field(line[i+1:]); len(f) > 0; f, rest = kernel.Field(rest) {
		v, ok := kernel.Uint(f)
		if !ok {
			return l.Errorf("%.30q is not a number", f)
		}
		if n < len(layout.column) && layout.column[n] >= 0 {
			x.values[layout.column[n]] = v
		}
		n++
	}
	if n != len(layout.column) {
		return l.Errorf("%d values under %d names", n, len(layout.column))
	}
	return nil
}

// update takes in the lines of one sample. departed are interfaces that may
// have moved in.
func (s *interfaces) update(departed []departure) {
	for i := range s.list {
		s.list[i].missed++
	}
	s.next = 0
	for i := range s.read {
		x := &s.read[i]
		f := s.find(x)
		if f == nil {
			s.list = append(s.list, iface{name: x.name, index: x.index})
			f = &s.list[len(s.list)-1]
			if !s.new(x, departed) {
				f.values = x.values
			}
		}
		s.grow(f, x)
	}
	n := 0
	for i := range s.list {
		f := &s.list[i]
		// Where the kernel cannot be asked about an interface, it has to be
		// missed twice.
		if f.gone || f.missed > 1 && (f.index == 0 || !s.looked) {
			continue
		}
		if n != i {
			s.list[n] = *f
		}
		n++
	}
	s.list = s.list[:n]
	s.began, s.looked = true, false
}

// hear takes in that an interface came or went, and with which counters. It
// reports whether an interface went that was known.
func (s *interfaces) hear(came bool, x *ifaceLine) (went bool) {
	i := slices.IndexFunc(s.list, func(f iface) bool { return f.index == x.index })
	switch {
	case !s.began:
		// The first sample has it, if it is there.
	case i >= 0:
		s.grow(&s.list[i], x)
		if !came {
			s.list = slices.Delete(s.list, i, i+1)
			return true
		}
	case came:
		s.list = append(s.list, iface{name: x.name, index: x.index, values: x.values})
		s.top = max(s.top, x.index)
	}
	return false
}

// new reports whether an interface that was not there before counts with all
// that it shows.
func (s *interfaces) new(x *ifaceLine, departed []departure) bool {
	switch {
	case !s.began:
		return true // the kernel's counters as they are
	case x.index == 0:
		return true // it is not known
	case x.index <= s.top:
		return false // new ones get higher indexes
	}
	return !slices.ContainsFunc(departed, func(d departure) bool {
		if d.index != x.index {
			return false
		}
		for i := range d.values {
			if x.values[i] < d.values[i] {
				return false
			}
		}
		return true
	})
}

// grow adds what an interface has counted since it was read last.
func (s *interfaces) grow(f *iface, x *ifaceLine) {
	for i, now := range x.values {
		switch before := f.values[i]; {
		case now >= before:
			s.total[i] += now - before
		case before-now <= before/16:
			// A correction, or two readings that overtook each other: what is
			// above has been counted, and counts once.
			continue
		default:
			// This counter was set to 0, and no other was by that.
			s.total[i] += now
		}
		f.values[i] = now
	}
	f.name, f.missed = x.name, 0
	if x.index != 0 {
		f.index = x.index
		s.top = max(s.top, x.index)
	}
}

// find returns the interface of a line: by its index, or where that is not
// known by its name.
func (s *interfaces) find(x *ifaceLine) *iface {
	n := len(s.list)
	for i := range n {
		j := s.next + i
		if j >= n {
			j -= n
		}
		f := &s.list[j]
		if f.index == x.index && x.index != 0 || f.name == x.name && (x.index == 0 || f.index == 0) {
			s.next = j + 1
			return f
		}
	}
	return nil
}

// named returns the interface that had a name.
func (s *interfaces) named(name *[unix.IFNAMSIZ]byte) *iface {
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

func (s *interfaces) sum() [netdevFields]uint64 { return s.total }
