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

// netdev sums /proc/PID/net/dev over every interface except lo (net/core/net-procfs.c,
// dev_seq_printf_stats).
//
// The sums are what interfaces have counted while they were in the namespace. The file has
// only names, which are reused, so interfaces are identified by index; a namespace assigns
// new indexes in ascending order. When an interface appears in a namespace that was sampled
// before, its counters count in full only if it was created there. In the host's namespace
// the kernel reports each new interface with its initial counters. Pods' namespaces have no
// such listener, since its socket would keep the namespace of an ended pod alive. There an
// interface with a higher index than any before is taken for a created one.
//
// Entering a pod's namespace to read the indexes is the largest part of the cost. Where the
// kernel reports the changes of other namespaces' interfaces in the host's (netlink.Watch), a
// namespace without a change keeps the indexes of the last sample and is not entered.
type netdev struct {
	log     *slog.Logger
	root    string
	once    bool
	metrics []*catalog.Metric
	fields  []string // kernel's name of each metric's value, such as "rx.bytes"
	layout  atomic.Pointer[netdevLayout]

	mu       sync.Mutex
	host     netlink.HostListener[interfaces]
	departed []departure    // departures of this cycle and the previous one
	watch    *netlink.Watch // nil without CAP_NET_BROADCAST
	watches  int            // number of Watches opened so far
}

// departure is an interface that moved from the host's namespace to another.
type departure struct {
	index  int32 // index in its new namespace
	values [netdevFields]uint64
	cycle  uint64
}

// netdevFields is the number of values per interface.
const netdevFields = 8

// netdevLayout is the layout of a kernel's file: the line of names, and for each column the
// index of the metric, or -1.
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

// listen opens the Listener of the host's namespace, once per state. Without it, interfaces
// are identified as in a pod's namespace.
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
		// The daemon does not have CAP_NET_BROADCAST: it enters every namespace in every cycle.
		if p.watch, err = netlink.WatchLinks(); err != nil {
			p.log.Debug("every network namespace is entered in every cycle", "reason", err)
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
		p.log.Warn("cannot follow changes of interfaces; one that moves into the host's network namespace may include what it counted elsewhere", "error", err)
	}
	return nil
}

// departures returns the departures of this cycle and the previous one; nil for the host.
func (p *netdev) departures(v *collect.View) []departure {
	if v.Pod() == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.departed = slices.DeleteFunc(p.departed, func(d departure) bool { return d.cycle+1 < v.Cycle() })
	return slices.Clone(p.departed)
}

// hear processes the kernel's messages about the namespace of s, and reports whether there
// were any.
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
		p.log.Warn("notifications about interfaces were lost; interfaces that came meanwhile may include what they counted elsewhere")
	}
	return heard || lost, err
}

// statsAt lists the indexes in struct rtnl_link_stats64 whose values are summed for each
// value of the file (dev_seq_printf_stats).
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

// unchanged reports whether the interfaces that were read are those of the last sample, and
// if so sets their indexes. Call it after reading the file: the kernel reports that an
// interface lost its name before another interface can take the name.
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

// watched prepares s for unchanged. It must run on a thread in the namespace of s, before
// the indexes are read.
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

// askIDAfter is the number of cycles until a namespace without an ID is queried again.
const askIDAfter = 16

// identify finds the indexes of the interfaces that were read. If they have changed, it
// reads the file again until names and indexes are the same before and after. An index that
// cannot be read stays 0, and the interface is identified by name.
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
			// Read through this thread, which is in the namespace: the process used before
			// may have moved.
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

// interfaces is the state of one namespace.
type interfaces struct {
	total [netdevFields]uint64
	list  []iface // as of the last sample
	top   int32   // highest index ever seen
	began bool    // the first sample is done, so unknown interfaces are new
	next  int     // likely index of the next interface in list or read
	read  []ifaceLine
	req   ifreq
	// looked: the kernel was asked about the interfaces that are missing in the
	// file.
	looked bool

	// watched: the indexes were read consistently, and the Watch reports every later change.
	watched bool
	watch   int    // netdev.watches of that Watch
	id      int32  // ID of the namespace in the host's
	mark    uint64 // position in the Watch before the indexes were read
	asked   uint64 // cycle in which id was queried
}

type iface struct {
	name   [unix.IFNAMSIZ]byte
	index  int32 // 0: unknown
	values [netdevFields]uint64
	missed uint8 // samples in a row without it
	gone   bool  // the kernel no longer has it
}

type ifaceLine struct {
	name   [unix.IFNAMSIZ]byte
	index  int32
	values [netdevFields]uint64
}

// ifreq is struct ifreq with a number in its union.
type ifreq struct {
	name   [unix.IFNAMSIZ]byte
	number int32
	_      [20]byte
}

// Keep appends the sums and the interfaces behind them.
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

// known reports whether the names that were read are exactly those of the last sample. With
// adopt it also sets the indexes of that sample.
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

// ask reads the indexes of the interfaces that were read, and reports whether every name
// still belongs to the interface that had it before.
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

// look determines which of the interfaces missing in the file are gone. The file may lack
// an existing interface: it is longer than a page, and older kernels lose their position
// in it when an interface is deleted.
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

// parse reads the whole file, or rejects it, and identifies interfaces by name.
func (p *netdev) parse(b []byte, s *interfaces) error {
	if err := p.read(b, s); err != nil {
		return err
	}
	s.update(nil)
	return nil
}

// read reads the lines of the whole file, or rejects it.
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

// newLayout parses a line such as
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

// update counts the lines of one sample. departed are interfaces that may have moved in.
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
		// If the kernel cannot be asked, an interface counts as gone once two
		// successive readings lack it.
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

// hear counts an interface that came or went, with its counters at that moment. It reports
// whether a known interface went.
func (s *interfaces) hear(came bool, x *ifaceLine) (went bool) {
	i := slices.IndexFunc(s.list, func(f iface) bool { return f.index == x.index })
	switch {
	case !s.began:
		// The first sample will include it if it exists.
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

// new reports whether an interface that appeared since the last sample counts in
// full.
func (s *interfaces) new(x *ifaceLine, departed []departure) bool {
	switch {
	case !s.began:
		return true // first sample: the kernel's counters as they are
	case x.index == 0:
		return true // identity unknown
	case x.index <= s.top:
		return false // moved in: created interfaces get higher indexes
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

// grow adds what an interface has counted since its last reading.
func (s *interfaces) grow(f *iface, x *ifaceLine) {
	for i, now := range x.values {
		switch before := f.values[i]; {
		case now >= before:
			s.total[i] += now - before
		case before-now <= before/16:
			// A corrected counter, or two readings out of order: keep the higher value, so
			// that the difference counts once.
			continue
		default:
			// This counter was reset; the others are unaffected.
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

// find returns the interface of a line by index, or by name if the index is unknown.
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
