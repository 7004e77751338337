package event

import (
	"strconv"
	"time"
)

// Merged describes the occurrences that an entry stands for. The event itself is the worst
// of them: the one with the longest latency, or else the first. An address or a port that
// differs between them is left out.
type Merged struct {
	Count uint64 // at least 2
	// First and Last are the kernel's times of the first and last occurrence.
	First, Last time.Time
	// Window is the time in which the occurrences were merged.
	Window time.Duration
	// Peers is the number of distinct peers if there are several; MorePeers says that there
	// were more than that.
	Peers     int
	MorePeers bool
}

// Occurrences is how many occurrences the event stands for.
func (e *Event) Occurrences() uint64 {
	if e.Merged == nil {
		return 1
	}
	return e.Merged.Count
}

// FirstSeen is the kernel's time of the first occurrence.
func (e *Event) FirstSeen() time.Time {
	if e.Merged == nil {
		return e.Time
	}
	return e.Merged.First
}

// LastSeen is the kernel's time of the last occurrence.
func (e *Event) LastSeen() time.Time {
	if e.Merged == nil {
		return e.Time
	}
	return e.Merged.Last
}

// AppendTimes appends how often the event occurred: "1,240 times in 60 s". For a single
// occurrence it appends nothing.
func (e *Event) AppendTimes(b []byte) []byte {
	m := e.Merged
	if m == nil {
		return b
	}
	b = appendCount(b, m.Count)
	b = append(b, " times in "...)
	if s := max(1, int64(m.Window.Round(time.Second)/time.Second)); s >= 120 && s%60 == 0 {
		b = append(strconv.AppendInt(b, s/60, 10), " min"...)
	} else {
		b = append(strconv.AppendInt(b, s, 10), " s"...)
	}
	if m.Peers > 1 {
		if b = append(b, ", "...); m.MorePeers {
			b = append(b, "over "...)
		}
		b = append(appendCount(b, uint64(m.Peers)), " peers"...)
	}
	return b
}

// appendCount appends a number with thousands separators.
func appendCount(b []byte, n uint64) []byte {
	start := len(b)
	b = strconv.AppendUint(b, n, 10)
	for i := len(b) - 3; i > start; i -= 3 {
		b = append(b, 0)
		copy(b[i+1:], b[i:])
		b[i] = ','
	}
	return b
}

// fields writes the journal fields of Merged.
func (m *Merged) fields(w *fieldWriter) {
	w.unsigned("KUBESKOOP_COUNT", m.Count)
	w.number("KUBESKOOP_FIRST_US", m.First.UnixMicro())
	w.number("KUBESKOOP_LAST_US", m.Last.UnixMicro())
	if m.Peers > 1 {
		w.number("KUBESKOOP_PEERS", int64(m.Peers))
	}
}

// maxPeersTold is how many distinct peers an entry counts.
const maxPeersTold = 128

// gathered holds what one window of a kind has merged.
type gathered struct {
	count       uint64
	first, last time.Time
	worst       *Event
	// Fields that differ between the occurrences, and are left out of the entry.
	srcAddr, dstAddr, srcPort, dstPort, netns bool

	peers     map[peer]struct{} // for the kind that covers all remaining peers; the map is reused
	morePeers bool
}

// add merges an event and takes ownership of it.
func (g *gathered) add(e *Event, p peer, manyPeers bool) {
	if manyPeers {
		g.addPeer(p)
	}
	if g.count++; g.count == 1 {
		g.first, g.last, g.worst = e.Time, e.Time, e
		return
	}
	if e.Time.Before(g.first) {
		g.first = e.Time
	}
	if e.Time.After(g.last) {
		g.last = e.Time
	}
	w := g.worst
	g.srcAddr = g.srcAddr || e.Src.Addr != w.Src.Addr
	g.dstAddr = g.dstAddr || e.Dst.Addr != w.Dst.Addr
	g.srcPort = g.srcPort || e.Src.Port != w.Src.Port
	g.dstPort = g.dstPort || e.Dst.Port != w.Dst.Port
	g.netns = g.netns || e.Netns != w.Netns
	if e.Latency > w.Latency {
		g.worst = e
	}
}

func (g *gathered) addPeer(p peer) {
	if _, known := g.peers[p]; known {
		return
	}
	if len(g.peers) >= maxPeersTold {
		g.morePeers = true
		return
	}
	if g.peers == nil {
		g.peers = map[peer]struct{}{}
	}
	g.peers[p] = struct{}{}
}

// entry returns the merged event, nil if there is none, and resets g.
func (g *gathered) entry(window time.Duration) *Event {
	e := g.worst
	if g.count > 1 {
		e.Merged = &Merged{Count: g.count, First: g.first, Last: g.last, Window: window, Peers: len(g.peers), MorePeers: g.morePeers}
		e.Src.vary(g.srcAddr, g.srcPort)
		e.Dst.vary(g.dstAddr, g.dstPort)
		if g.netns {
			e.Netns = 0
		}
	}
	clear(g.peers)
	*g = gathered{peers: g.peers}
	return e
}

// vary removes the fields that differ between the occurrences.
func (p *Endpoint) vary(addr, port bool) {
	if addr {
		*p = Endpoint{Port: p.Port, anyAddr: true}
	}
	if port {
		p.Port, p.anyPort = 0, true
	}
}
