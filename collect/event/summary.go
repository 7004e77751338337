package event

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/quote"
)

// maxSummaryKinds limits the kinds of a Summary: users choose the names of pods, and peers
// are unlimited.
const maxSummaryKinds = 1000

// Summary passes events to another Sink and counts them by kind. Its methods may be called
// from any goroutine.
type Summary struct {
	next Sink

	mu    sync.Mutex
	kinds map[summaryKey]*SummaryKind
	more  uint64
}

type summaryKey struct {
	typ         *catalog.EventType
	whose, what string
}

// SummaryKind is the count of one kind.
type SummaryKind struct {
	Type  *catalog.EventType
	Whose string // the owner, as from AppendOwner
	What  string // reason, disk or device, and peer; "" if none applies
	Count uint64 // occurrences
	Worst time.Duration
	// First and Last are the kernel's times of the first and last occurrence.
	First, Last time.Time
}

var _ Sink = (*Summary)(nil)

// NewSummary returns a Summary that passes events to next.
func NewSummary(next Sink) *Summary {
	return &Summary{next: next, kinds: map[summaryKey]*SummaryKind{}}
}

// Send implements Sink.
func (s *Summary) Send(e *Event, done func(e *Event, written bool)) {
	s.count(e)
	s.next.Send(e, done)
}

// Close implements Sink.
func (s *Summary) Close(ctx context.Context) error { return s.next.Close(ctx) }

func (s *Summary) count(e *Event) {
	key := summaryKey{e.Type, string(e.AppendOwner(nil)), string(e.appendKind(nil))}
	first := e.FirstSeen()
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[key]
	if k == nil {
		if len(s.kinds) >= maxSummaryKinds {
			s.more += e.Occurrences()
			return
		}
		k = &SummaryKind{Type: key.typ, Whose: key.whose, What: key.what, First: first}
		s.kinds[key] = k
	}
	k.Count += e.Occurrences()
	k.Worst = max(k.Worst, e.Latency)
	if first.Before(k.First) {
		k.First = first
	}
	if last := e.LastSeen(); last.After(k.Last) {
		k.Last = last
	}
}

// Kinds returns the kinds, those with the most occurrences first. more counts the
// occurrences of kinds beyond maxSummaryKinds.
func (s *Summary) Kinds() (kinds []SummaryKind, more uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kinds {
		kinds = append(kinds, *k)
	}
	slices.SortFunc(kinds, func(a, b SummaryKind) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Type.Name, b.Type.Name), cmp.Compare(a.Whose, b.Whose), cmp.Compare(a.What, b.What))
	})
	return kinds, s.more
}

// appendKind appends what distinguishes the kinds of one type and owner for a reader: the
// reason, and the peer without its port.
func (e *Event) appendKind(b []byte) []byte {
	start := len(b)
	b = e.AppendReason(b)
	reason := len(b)
	if b = append(b, ", "...); reason == start {
		b = b[:start]
	}
	said := len(b)
	if b = e.AppendPeer(b); len(b) == said {
		return b[:reason]
	}
	return b
}

// AppendReason appends the cause of an event, as far as it distinguishes kinds: the
// kernel's reason, the disk, the device or the process.
func (e *Event) AppendReason(b []byte) []byte {
	start := len(b)
	for _, g := range e.Type.Fields {
		var text string
		switch g {
		case catalog.FieldReason:
			text = e.Reason
		case catalog.FieldDisk:
			text = e.Disk
		case catalog.FieldVector:
			text = e.Vector
		case catalog.FieldIfname:
			text = e.Ifname
		case catalog.FieldProcess:
			text = CommonComm(e.Comm)
		}
		if text == "" {
			continue
		}
		if len(b) > start {
			b = append(b, ", "...)
		}
		b = quote.AppendSafe(b, text)
	}
	return b
}

// AppendPeer appends the other end of the connection, without the port: "from
// shop/db-0", "peer 192.0.2.1", "several peers". It appends nothing if that end is
// unknown.
func (e *Event) AppendPeer(b []byte) []byte {
	if !e.Type.Has(catalog.FieldTuple) {
		return b
	}
	start := len(b)
	if b = e.appendPeer(b, peerPlace(e.Type)); len(b) == start {
		if far, _, _ := e.ends(); far.Addr.IsValid() {
			b = far.Addr.Unmap().AppendTo(append(b, " peer "...))
		} else if far.anyAddr {
			b = append(b, " several peers"...)
		}
	}
	if len(b) > start { // drop the leading space
		b = append(b[:start], b[start+1:]...)
	}
	return b
}

// peerPlace returns the placeholder for the peer in an event type's Message.
func peerPlace(t *catalog.EventType) string {
	for _, place := range []string{"from", "to"} {
		if strings.Contains(t.Message, "{"+place+"}") {
			return place
		}
	}
	return "ends"
}
