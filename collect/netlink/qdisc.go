package netlink

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
	"nodeskoop/collect"
)

// qdisc sums the root queueing disciplines of every interface but lo. It
// follows tc_fill_qdisc in net/sched/sch_api.c and net/core/gen_stats.c.
type qdisc struct {
	bytes, packets, drops, qlen, backlog, overlimits *collect.Metric
}

func newQdisc(collect.Env) (collect.Probe, error) {
	return &qdisc{
		bytes:      collect.MustMetric("kubeskoop_qdisc_bytes"),
		packets:    collect.MustMetric("kubeskoop_qdisc_packets"),
		drops:      collect.MustMetric("kubeskoop_qdisc_drops"),
		qlen:       collect.MustMetric("kubeskoop_qdisc_qlen"),
		backlog:    collect.MustMetric("kubeskoop_qdisc_backlog"),
		overlimits: collect.MustMetric("kubeskoop_qdisc_overlimits"),
	}, nil
}

func (*qdisc) Over() collect.Over { return collect.EachNetns }

func (*qdisc) Close() error { return nil }

func (p *qdisc) Sample(v *collect.View) error {
	s := collect.State[qdiscs](v)
	if err := v.Enter("list queueing disciplines", func() error { return s.read(v) }); err != nil {
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

// rootQdisc is what one message says of a root qdisc. The kernel keeps drops
// and overlimits, and reports packets to anyone who does not know TCA_STATS_PKT64,
// in 32 bits.
type rootQdisc struct {
	ifindex                                   int32
	handle                                    uint32
	kind                                      [unix.IFNAMSIZ]byte
	bytes, packets                            uint64
	wide                                      bool // packets has 64 bits
	packets32, drops, overlimits, qlen, queue uint32
}

// qdiscSum is what is written.
type qdiscSum struct{ bytes, packets, drops, overlimits, qlen, backlog uint64 }

// qdiscs is what is remembered of one namespace: the qdiscs of the last sample
// with what each has counted since it was first seen, and what those that are
// gone had counted.
type qdiscs struct {
	known []knownQdisc
	gone  qdiscSum
	lo    int32 // index of the loopback interface, 0: not asked yet
	next  int   // where in known the next interface probably is
}

type knownQdisc struct {
	rootQdisc
	sum  qdiscSum // its counters in 64 bits; its gauges
	seen bool     // in this sample
}

const (
	sizeofTcMsg   = 20 // struct tcmsg
	parentRoot    = 0xFFFFFFFF
	statsBasic    = 1
	statsQueue    = 3
	statsPkt64    = 8
	sizeofTcStats = 36 // struct tc_stats without its padding
)

// read asks for the qdiscs of the namespace that the thread is in.
func (s *qdiscs) read(v *collect.View) error {
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
		s.begin()
		interrupted, err := c.ask(req[:], func(typ uint16, msg []byte) error {
			if typ != unix.RTM_NEWQDISC {
				return nil
			}
			var q rootQdisc
			root, err := q.parse(msg)
			if err != nil || !root || q.ifindex == s.lo {
				return err
			}
			s.add(&q)
			return nil
		})
		if err != nil {
			return err
		}
		// An interrupted dump may lack interfaces, which would count as gone.
		if interrupted && try < 3 {
			continue
		}
		s.end(!interrupted)
		return nil
	}
}

// loopbackIndex is the index of lo in every namespace since Linux 3.7
// (LOOPBACK_IFINDEX in include/net/flow.h).
const loopbackIndex = 1

// findLoopback returns the index of lo, -1 if there is none.
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

// parse reads one RTM_NEWQDISC message; root is false if the qdisc is not the
// root of its interface: a child of another, or for incoming packets.
func (q *rootQdisc) parse(msg []byte) (root bool, err error) {
	if len(msg) < sizeofTcMsg {
		return false, fmt.Errorf("%w: a qdisc in %d bytes", errMalformed, len(msg))
	}
	*q = rootQdisc{
		ifindex: int32(binary.NativeEndian.Uint32(msg[4:])),
		handle:  binary.NativeEndian.Uint32(msg[8:]),
	}
	if binary.NativeEndian.Uint32(msg[12:]) != parentRoot {
		return false, nil
	}
	var old []byte
	nested := false
	for b := msg[sizeofTcMsg:]; len(b) > 0; {
		typ, value, rest, err := nextAttr(b)
		if err != nil {
			return false, err
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
				return false, err
			}
		}
	}
	if nested {
		return true, nil
	}
	if len(old) < sizeofTcStats {
		return false, fmt.Errorf("%w: the qdisc %x: of interface %d without its counters", errMalformed, q.handle>>16, q.ifindex)
	}
	q.bytes = binary.NativeEndian.Uint64(old)
	q.packets32 = binary.NativeEndian.Uint32(old[8:])
	q.drops = binary.NativeEndian.Uint32(old[12:])
	q.overlimits = binary.NativeEndian.Uint32(old[16:])
	q.qlen = binary.NativeEndian.Uint32(old[28:])
	q.queue = binary.NativeEndian.Uint32(old[32:])
	return true, nil
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

// add takes in what a sample found of one root qdisc.
func (s *qdiscs) add(q *rootQdisc) {
	k := s.find(q.ifindex)
	switch {
	case k == nil:
		s.known = append(s.known, knownQdisc{})
		s.known[len(s.known)-1].start(q)
	case q.handle != k.handle || q.kind != k.kind || k.wentDown(q) && !q.sumsChildren():
		s.gone.keep(&k.sum)
		k.start(q)
	case k.wentDown(q):
		// One of its children was replaced, and took along what it had
		// counted. The others' counts must not be added again.
		k.update(q)
	default:
		k.sum.bytes += q.bytes - k.bytes
		k.sum.packets += k.newPackets(q)
		k.sum.drops += since32(q.drops, k.drops)
		k.sum.overlimits += since32(q.overlimits, k.overlimits)
		k.update(q)
	}
}

// find returns what is known of an interface's root qdisc. The kernel lists
// interfaces in the same order each time.
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

// start begins to count a qdisc with all that it has counted so far.
func (k *knownQdisc) start(q *rootQdisc) {
	packets := q.packets
	if !q.wide {
		packets = uint64(q.packets32)
	}
	k.sum = qdiscSum{bytes: q.bytes, packets: packets, drops: uint64(q.drops), overlimits: uint64(q.overlimits)}
	k.update(q)
}

func (k *knownQdisc) update(q *rootQdisc) {
	k.rootQdisc, k.seen = *q, true
	k.sum.qlen, k.sum.backlog = uint64(q.qlen), uint64(q.queue)
}

// newPackets returns how many packets q has counted since k, whose count may
// have wrapped around 32 bits where the kernel does not send 64.
func (k *knownQdisc) newPackets(q *rootQdisc) uint64 {
	switch {
	case q.wide && k.wide:
		return q.packets - k.packets
	case q.wide:
		// The kernel sends 64 bits from the moment that 32 are too few.
		return q.packets - uint64(k.packets32)
	}
	return uint64(q.packets32 - k.packets32)
}

// tornRead is more than the packets that can be counted between the kernel's
// reading of the bytes and of the packets, which no lock holds together.
const tornRead = 1 << 24

// wentDown reports whether q's counters have begun anew since k. Bytes have 64
// bits and only go up, and no packet is empty, which tells a count of packets
// that wrapped from one that fell.
func (k *knownQdisc) wentDown(q *rootQdisc) bool {
	if q.bytes < k.bytes || k.wide && (!q.wide || q.packets < k.packets) {
		return true
	}
	return k.newPackets(q) > q.bytes-k.bytes+tornRead
}

// sumsChildren reports whether the kernel makes up the qdisc's counters from
// those that its children have now (mq_dump in net/sched/sch_mq.c and its like).
func (q *rootQdisc) sumsChildren() bool {
	switch string(bytes.TrimRight(q.kind[:], "\x00")) {
	case "mq", "mqprio", "taprio":
		return true
	}
	return false
}

// since32 returns how far a counter of 32 bits has come. One that seems to
// have come further than half way round has fallen, and is followed from there.
func since32(now, before uint32) uint64 {
	if d := now - before; d < 1<<31 {
		return uint64(d)
	}
	return 0
}

// end closes a sample: what it did not see is gone, if it was whole.
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
