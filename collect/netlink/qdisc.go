package netlink

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/kernel"
)

// qdisc sums the root qdiscs of every interface except lo. It follows tc_fill_qdisc in
// net/sched/sch_api.c and net/core/gen_stats.c.
//
// The sums are what root qdiscs have counted since the first sample of the namespace, plus
// their counts at that sample. The kernel shows no identity of a qdisc: if one is deleted
// and recreated with the same handle, its counters fall, or do not even fall if the new one
// has counted more. In the host's namespace the kernel reports each qdisc that comes and
// goes.
type qdisc struct {
	log                                              *slog.Logger
	once                                             bool
	bytes, packets, drops, qlen, backlog, overlimits *catalog.Metric

	mu   sync.Mutex
	host HostListener[qdiscs]
}

func newQdisc(env collect.Env) (collect.Probe, error) {
	return &qdisc{
		log:        env.Log,
		once:       env.Once,
		bytes:      catalog.MustMetric("kubeskoop_qdisc_bytes"),
		packets:    catalog.MustMetric("kubeskoop_qdisc_packets"),
		drops:      catalog.MustMetric("kubeskoop_qdisc_drops"),
		qlen:       catalog.MustMetric("kubeskoop_qdisc_qlen"),
		backlog:    catalog.MustMetric("kubeskoop_qdisc_backlog"),
		overlimits: catalog.MustMetric("kubeskoop_qdisc_overlimits"),
	}, nil
}

func (*qdisc) Granularity() collect.Granularity { return collect.EachNetns }

func (p *qdisc) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.host.Close()
}

func (p *qdisc) Sample(v *collect.View) error {
	s := collect.State[qdiscs](v)
	host := v.Pod() == nil && !p.once
	if err := v.Enter("list queueing disciplines", func() error {
		if host {
			p.listen(s)
		}
		return s.read(v, p.hear)
	}); err != nil {
		return err
	}
	t := s.sum()
	v.Add(p.bytes, float64(t.bytes))
	v.Add(p.packets, float64(t.packets))
	v.Add(p.drops, float64(t.drops))
	v.Add(p.qlen, float64(t.qlen))
	v.Add(p.backlog, float64(t.backlog))
	v.Add(p.overlimits, float64(t.overlimits))
	return nil
}

// listen opens the Listener of the thread's namespace, which is the host's, once per state.
func (p *qdisc) listen(s *qdiscs) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.host.Wanted(s) {
		return
	}
	l, err := listenQdiscs()
	if err != nil {
		p.host.Deaf()
		p.log.Warn("cannot follow changes of queueing disciplines; counts of one that is replaced may be missing", "error", err)
		return
	}
	p.host.Set(l, s)
}

// hear processes the kernel's messages about the namespace of s, and reports whether there
// were any.
func (p *qdisc) hear(s *qdiscs) (heard bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.host.Of(s)
	if l == nil {
		return false, nil
	}
	lost, err := l.Drain(func(typ uint16, msg []byte) error {
		switch typ {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			m, err := ParseLink(msg)
			if err == nil {
				heard = true
				s.drop(m.Index)
			}
			return err
		case unix.RTM_NEWQDISC, unix.RTM_DELQDISC:
			var q rootQdisc
			root, err := q.parse(msg)
			if err == nil && !root && typ == unix.RTM_DELQDISC {
				err = q.parseCounters(msg)
			}
			if err != nil || q.ifindex == s.lo {
				return err
			}
			heard = true
			switch {
			case root:
				s.hear(typ == unix.RTM_NEWQDISC, &q)
			case typ == unix.RTM_DELQDISC:
				s.hearChild(parentOf(msg), &q)
			}
		}
		return nil
	})
	if lost {
		p.log.Warn("notifications about queueing disciplines were lost; the last counts of deleted ones may be missing")
	}
	return heard || lost, err
}

// rootQdisc is the content of one message about a root qdisc. Drops and overlimits have 32
// bits in the kernel; packets have 32 bits unless the message has TCA_STATS_PKT64.
type rootQdisc struct {
	ifindex                                   int32
	handle                                    uint32
	kind                                      [unix.IFNAMSIZ]byte
	bytes, packets                            uint64
	wide                                      bool // packets has 64 bits
	packets32, drops, overlimits, qlen, queue uint32
}

// qdiscSum is the probe's output.
type qdiscSum struct{ bytes, packets, drops, overlimits, qlen, backlog uint64 }

// qdiscs is the state of one namespace: the qdiscs of the last sample with their counts
// since they were first seen, and the sum of deleted qdiscs.
type qdiscs struct {
	known []knownQdisc
	gone  qdiscSum
	began bool  // the first sample is done, so unknown qdiscs are new
	lo    int32 // index of the loopback interface; 0: unknown
	next  int   // likely index of the next interface in known
	found []rootQdisc
}

type knownQdisc struct {
	rootQdisc
	sum  qdiscSum // its counters in 64 bits, and its gauges
	away qdiscSum // counts of deleted children, which the kernel's counters lack and rootQdisc includes
	seen bool     // seen in this sample
}

// plus adds the counts t to a root's counters.
func (q *rootQdisc) plus(t *qdiscSum) {
	q.bytes += t.bytes
	q.packets += t.packets
	q.packets32 += uint32(t.packets)
	q.drops += uint32(t.drops)
	q.overlimits += uint32(t.overlimits)
}

func (q *rootQdisc) minus(t *qdiscSum) {
	q.plus(&qdiscSum{bytes: -t.bytes, packets: -t.packets, drops: -t.drops, overlimits: -t.overlimits})
}

// count returns the number of packets.
func (q *rootQdisc) count() uint64 {
	if q.wide {
		return q.packets
	}
	return uint64(q.packets32)
}

const (
	sizeofTcMsg   = 20 // struct tcmsg
	parentRoot    = 0xFFFFFFFF
	statsBasic    = 1
	statsQueue    = 3
	statsPkt64    = 8
	sizeofTcStats = 36 // struct tc_stats without its padding
)

// read dumps the qdiscs of the thread's namespace. hear processes the messages received
// before.
func (s *qdiscs) read(v *collect.View, hear func(*qdiscs) (bool, error)) error {
	c, err := dial(unix.NETLINK_ROUTE, "queueing disciplines", v.Scratch)
	if err != nil {
		return err
	}
	v.Scratch = c.buf
	defer c.close()
	if s.lo == 0 {
		if s.lo, err = findLoopback(&c); err != nil {
			return err
		}
	}
	var req [unix.SizeofNlMsghdr + sizeofTcMsg]byte
	putHeader(req[:], unix.RTM_GETQDISC, unix.NLM_F_DUMP)
	for try := 0; ; try++ {
		s.found = s.found[:0]
		interrupted, err := c.ask(req[:], func(typ uint16, msg []byte) error {
			if typ != unix.RTM_NEWQDISC {
				return nil
			}
			var q rootQdisc
			root, err := q.parse(msg)
			if err != nil || !root || q.ifindex == s.lo {
				return err
			}
			s.found = append(s.found, q)
			return nil
		})
		if err != nil {
			return err
		}
		// The dump may or may not include qdiscs that came or went before this
		// point.
		heard, err := hear(s)
		if err != nil {
			return err
		}
		// After an interruption interfaces may be missing, and would count as gone.
		if (interrupted || heard) && try < 3 {
			continue
		}
		s.begin()
		for i := range s.found {
			s.add(&s.found[i])
		}
		s.end(!interrupted)
		s.began = true
		return nil
	}
}

// hear counts a root qdisc that was created or deleted, with its counters at that
// moment.
func (s *qdiscs) hear(came bool, q *rootQdisc) {
	if !s.began {
		return // the first sample will include it if it exists
	}
	s.next = 0
	k := s.find(q.ifindex)
	same := k != nil && k.handle == q.handle && k.kind == q.kind
	switch {
	case same:
		s.add(q) // the qdisc was changed, or is about to go
		if !came {
			s.drop(q.ifindex)
		}
	case came:
		s.drop(q.ifindex)
		s.add(q)
	}
}

// hearChild records that a child qdisc was deleted. If the root shows the sum of its
// children, its counters are lower by these counts from now on.
func (s *qdiscs) hearChild(parent uint32, q *rootQdisc) {
	s.next = 0
	k := s.find(q.ifindex)
	if !s.began || k == nil || !k.sumsChildren() || parent>>16 != k.handle>>16 {
		return
	}
	k.away.bytes += q.bytes
	k.away.packets += q.count()
	k.away.drops += uint64(q.drops)
	k.away.overlimits += uint64(q.overlimits)
}

// drop removes an interface's root qdisc. Its counts stay in the sum.
func (s *qdiscs) drop(ifindex int32) {
	for i := range s.known {
		if s.known[i].ifindex == ifindex {
			s.gone.keep(&s.known[i].sum)
			s.known = slices.Delete(s.known, i, i+1)
			return
		}
	}
}

// Keep appends the sums and the qdiscs behind them.
func (s *qdiscs) Keep(b []byte) []byte {
	if !s.began {
		return b
	}
	b = s.gone.keepIn(b)
	for i := range s.known {
		k := &s.known[i]
		wide, raw := uint64(0), k.rootQdisc
		if k.wide {
			wide = 1
		}
		raw.minus(&k.away)
		b = collect.AppendUints(b, uint64(uint32(k.ifindex)), uint64(k.handle), uint64(len(k.kind)))
		b = append(b, k.kind[:]...)
		b = collect.AppendUints(b, raw.bytes, raw.packets, wide, uint64(raw.packets32), uint64(raw.drops), uint64(raw.overlimits))
		b = k.sum.keepIn(b)
	}
	return b
}

func (t *qdiscSum) keepIn(b []byte) []byte {
	return collect.AppendUints(b, t.bytes, t.packets, t.drops, t.overlimits)
}

func (t *qdiscSum) recall(d *collect.Decoder) {
	t.bytes, t.packets, t.drops, t.overlimits = d.Uint(), d.Uint(), d.Uint(), d.Uint()
}

// Recall restores what Keep appended.
func (s *qdiscs) Recall(b []byte) error {
	d := collect.NewDecoder(b)
	s.gone.recall(d)
	for d.More() {
		k := knownQdisc{}
		k.ifindex, k.handle = int32(d.Uint()), uint32(d.Uint())
		copy(k.kind[:], d.Bytes())
		k.bytes, k.packets, k.wide = d.Uint(), d.Uint(), d.Uint() == 1
		k.packets32, k.drops, k.overlimits = uint32(d.Uint()), uint32(d.Uint()), uint32(d.Uint())
		k.sum.recall(d)
		s.known = append(s.known, k)
	}
	s.began = true
	return d.Err()
}

// loopbackIndex is the index of lo in every namespace since Linux 3.7 (LOOPBACK_IFINDEX in
// include/net/flow.h).
const loopbackIndex = 1

// findLoopback returns the index of lo; -1 if there is none.
func findLoopback(c *conn) (int32, error) {
	var req [unix.SizeofNlMsghdr + unix.SizeofIfInfomsg]byte
	putHeader(req[:], unix.RTM_GETLINK, 0)
	binary.NativeEndian.PutUint32(req[unix.SizeofNlMsghdr+4:], loopbackIndex)
	lo := int32(-1)
	each := func(typ uint16, msg []byte) error {
		if typ != unix.RTM_NEWLINK {
			return nil
		}
		if len(msg) < unix.SizeofIfInfomsg {
			return fmt.Errorf("%w: an interface in %d bytes", errMalformed, len(msg))
		}
		if binary.NativeEndian.Uint32(msg[8:])&unix.IFF_LOOPBACK != 0 {
			lo = int32(binary.NativeEndian.Uint32(msg[4:]))
		}
		return nil
	}
	_, err := c.ask(req[:], each)
	if err == nil && lo > 0 {
		return lo, nil
	}
	if err != nil && !refused(err) {
		return 0, err
	}
	binary.NativeEndian.PutUint32(req[unix.SizeofNlMsghdr+4:], 0)
	putHeader(req[:], unix.RTM_GETLINK, unix.NLM_F_DUMP)
	_, err = c.ask(req[:], each)
	return lo, err
}

// parse parses an RTM_NEWQDISC message. root is false if the qdisc is not the root of its
// interface: a child, or one for ingress.
func (q *rootQdisc) parse(msg []byte) (root bool, err error) {
	if len(msg) < sizeofTcMsg {
		return false, fmt.Errorf("%w: a qdisc in %d bytes", errMalformed, len(msg))
	}
	*q = rootQdisc{
		ifindex: int32(binary.NativeEndian.Uint32(msg[4:])),
		handle:  binary.NativeEndian.Uint32(msg[8:]),
	}
	if parentOf(msg) != parentRoot {
		return false, nil
	}
	return true, q.parseCounters(msg)
}

// parentOf returns tcm_parent of a message.
func parentOf(msg []byte) uint32 { return binary.NativeEndian.Uint32(msg[12:]) }

// parseCounters parses the kind and the counters of a message.
func (q *rootQdisc) parseCounters(msg []byte) error {
	var old []byte
	nested := false
	for b := msg[sizeofTcMsg:]; len(b) > 0; {
		typ, value, rest, err := nextAttr(b)
		if err != nil {
			return err
		}
		b = rest
		switch typ {
		case unix.TCA_KIND:
			copy(q.kind[:], bytes.TrimRight(value, "\x00"))
		case unix.TCA_STATS:
			old = value
		case unix.TCA_STATS2:
			nested = true
			if err := q.parseStats2(value); err != nil {
				return err
			}
		}
	}
	if nested {
		return nil
	}
	if len(old) < sizeofTcStats {
		return fmt.Errorf("%w: the qdisc %x: of interface %d without its counters", errMalformed, q.handle>>16, q.ifindex)
	}
	q.bytes = binary.NativeEndian.Uint64(old)
	q.packets32 = binary.NativeEndian.Uint32(old[8:])
	q.drops = binary.NativeEndian.Uint32(old[12:])
	q.overlimits = binary.NativeEndian.Uint32(old[16:])
	q.qlen = binary.NativeEndian.Uint32(old[28:])
	q.queue = binary.NativeEndian.Uint32(old[32:])
	return nil
}

func (q *rootQdisc) parseStats2(b []byte) error {
	var basic, queue bool
	for len(b) > 0 {
		typ, value, rest, err := nextAttr(b)
		if err != nil {
			return err
		}
		b = rest
		switch typ {
		case statsBasic: // struct gnet_stats_basic
			if len(value) < 12 {
				return fmt.Errorf("%w: TCA_STATS_BASIC of %d bytes", errMalformed, len(value))
			}
			q.bytes = binary.NativeEndian.Uint64(value)
			q.packets32 = binary.NativeEndian.Uint32(value[8:])
			basic = true
		case statsPkt64:
			if len(value) < 8 {
				return fmt.Errorf("%w: TCA_STATS_PKT64 of %d bytes", errMalformed, len(value))
			}
			q.packets = binary.NativeEndian.Uint64(value)
			q.wide = true
		case statsQueue: // struct gnet_stats_queue
			if len(value) < 20 {
				return fmt.Errorf("%w: TCA_STATS_QUEUE of %d bytes", errMalformed, len(value))
			}
			q.qlen = binary.NativeEndian.Uint32(value)
			q.queue = binary.NativeEndian.Uint32(value[4:])
			q.drops = binary.NativeEndian.Uint32(value[8:])
			q.overlimits = binary.NativeEndian.Uint32(value[16:])
			queue = true
		}
	}
	if !basic || !queue {
		return fmt.Errorf("%w: the qdisc %x: of interface %d lacks TCA_STATS_BASIC or TCA_STATS_QUEUE", errMalformed, q.handle>>16, q.ifindex)
	}
	return nil
}

func (s *qdiscs) begin() {
	s.next = 0
	for i := range s.known {
		s.known[i].seen = false
	}
}

// add adds the counters of one root qdisc to the sums.
func (s *qdiscs) add(q *rootQdisc) {
	k := s.find(q.ifindex)
	if k != nil && k.away != (qdiscSum{}) && q.handle == k.handle && q.kind == k.kind {
		x := *q
		x.plus(&k.away)
		q = &x
	}
	switch {
	case k == nil:
		s.known = append(s.known, knownQdisc{})
		s.known[len(s.known)-1].start(q)
	case q.handle != k.handle || q.kind != k.kind || k.wentDown(q) && !q.sumsChildren():
		s.gone.keep(&k.sum)
		k.start(q)
	case k.wentDown(q):
		// A child was replaced, so its counts are missing. Do not add the other
		// children's counts a second time.
		k.update(q)
	default:
		k.sum.bytes += q.bytes - k.bytes
		k.sum.packets += k.newPackets(q)
		k.sum.drops += kernel.Since32(q.drops, k.drops)
		k.sum.overlimits += kernel.Since32(q.overlimits, k.overlimits)
		k.update(q)
	}
}

// find returns the state of an interface's root qdisc. The kernel lists interfaces in the
// same order each time, so the search starts behind the previous one.
func (s *qdiscs) find(ifindex int32) *knownQdisc {
	n := len(s.known)
	for i := range n {
		j := s.next + i
		if j >= n {
			j -= n
		}
		if s.known[j].ifindex == ifindex {
			s.next = j + 1
			return &s.known[j]
		}
	}
	return nil
}

// start begins to count a qdisc, with all its counts so far.
func (k *knownQdisc) start(q *rootQdisc) {
	k.away = qdiscSum{}
	k.sum = qdiscSum{bytes: q.bytes, packets: q.count(), drops: uint64(q.drops), overlimits: uint64(q.overlimits)}
	k.update(q)
}

func (k *knownQdisc) update(q *rootQdisc) {
	k.rootQdisc, k.seen = *q, true
	k.sum.qlen, k.sum.backlog = uint64(q.qlen), uint64(q.queue)
}

// newPackets returns how many packets q has counted since k. If the kernel does not send
// 64 bits, the count may have wrapped at 32.
func (k *knownQdisc) newPackets(q *rootQdisc) uint64 {
	switch {
	case q.wide && k.wide:
		return q.packets - k.packets
	case q.wide:
		// The kernel sends 64 bits once 32 do not suffice.
		return q.packets - uint64(k.packets32)
	}
	return uint64(q.packets32 - k.packets32)
}

// tornRead exceeds the number of packets that the kernel can count between its readings of
// bytes and packets, which are not atomic.
const tornRead = 1 << 24

// wentDown reports whether q's counters were reset since k. No packet is empty and bytes do
// not wrap, so packets cannot have grown by more than bytes. If they seem to have, the
// packet count was reset and did not wrap.
func (k *knownQdisc) wentDown(q *rootQdisc) bool {
	if q.bytes < k.bytes || k.wide && (!q.wide || q.packets < k.packets) {
		return true
	}
	return k.newPackets(q) > q.bytes-k.bytes+tornRead
}

// sumsChildren reports whether the kernel computes the qdisc's counters from its current
// children (mq_dump in net/sched/sch_mq.c and similar).
func (q *rootQdisc) sumsChildren() bool {
	switch string(bytes.TrimRight(q.kind[:], "\x00")) {
	case "mq", "mqprio", "taprio":
		return true
	}
	return false
}

// end ends a sample. If the sample is whole, qdiscs that it did not see are gone.
func (s *qdiscs) end(whole bool) {
	n := 0
	for i := range s.known {
		k := &s.known[i]
		if !k.seen && whole {
			s.gone.keep(&k.sum)
			continue
		}
		if n != i {
			s.known[n] = *k
		}
		n++
	}
	s.known = s.known[:n]
}

// keep adds the counters of a qdisc that is gone.
func (t *qdiscSum) keep(q *qdiscSum) {
	t.bytes += q.bytes
	t.packets += q.packets
	t.drops += q.drops
	t.overlimits += q.overlimits
}

func (s *qdiscs) sum() qdiscSum {
	t := s.gone
	for i := range s.known {
		k := &s.known[i].sum
		t.keep(k)
		t.qlen += k.qlen
		t.backlog += k.backlog
	}
	return t
}
