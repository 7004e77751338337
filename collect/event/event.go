// Package event defines Event, one occurrence in the kernel, and the Hub, which attributes,
// limits and counts all events on their way to the sinks.
package event

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/quote"
)

// Event is one occurrence of an EventType. The probe fills in the fields that it knows and
// hands the Event to a Hub. From then on only the Hub may change it, and nobody once a sink
// has it.
type Event struct {
	Type *catalog.EventType
	// Time is the kernel's time of the occurrence.
	Time time.Time
	// Netns is the inode number of the network namespace; 0 for an event without one, such
	// as block I/O.
	Netns uint64
	// Pod is the owner of the event; nil for the host. A probe sets it if it knows the pod,
	// for example by control group; otherwise the Hub does.
	Pod *owner.Pod

	Protocol string
	Src, Dst Endpoint
	Latency  time.Duration
	// Points are the latencies up to intermediate points of the path. Points that were not
	// measured are missing or negative.
	Points []Point

	Comm     string
	PID, CPU int // -1: unknown

	// Operation is the operation of a block I/O, and Bytes its size; 0: no data.
	Operation string
	Bytes     uint64

	Ifname, Disk, Vector, Location, Reason, TCPState string
	// Stack holds symbol+0xoffset of each caller, innermost first.
	Stack []string

	// Merged is set by the Hub; nil if the event is a single occurrence.
	Merged *Merged

	// Suppressed counts occurrences of the same type and owner that a rate limit, in the
	// kernel or in the Hub, has suppressed since their last entry. The Hub sets it.
	Suppressed uint64

	// Node is the node's name. HostLabel stands for the pod's namespace and name if Pod is
	// nil; it is empty for an unowned network namespace, and UnknownLabel for an unknown
	// one. The Hub sets both.
	Node, HostLabel string

	unowned      bool // the network namespace is neither the host's nor a pod's
	unattributed bool // the kernel gives no way to know the network namespace
	unresolved   bool // finding the owner failed

	bucket *bucket // holds the count behind Suppressed; nil: nothing is limited

	recorded recorded // set if the event was read back
}

// OfHost reports whether the event is the host's own: not a pod's, and not of an unowned or
// unknown network namespace. It is valid once the Hub has labelled the event.
func (e *Event) OfHost() bool { return e.Pod == nil && !e.unowned && !e.unattributed }

// Unattributed reports whether the kernel gives no way to know the network namespace of
// the event's packet or socket. It is valid once the Hub has labelled the event.
func (e *Event) Unattributed() bool { return e.unattributed }

// The kinds of an Endpoint. The empty string means EndUnknown.
const (
	EndPod     = owner.EndPod
	EndNode    = owner.EndNode
	EndUnknown = owner.EndUnknown
)

// Endpoint is one end of a connection. A probe sets the unmapped address and the port; the
// Hub finds the owner.
type Endpoint struct {
	Addr netip.Addr
	Port uint16
	Kind string
	Pod  *owner.Pod
	Node string

	// The address, or the port, differs between the merged occurrences.
	anyAddr, anyPort bool
}

// Point is the latency up to one point of an EventType's Points.
type Point struct {
	Name    string
	Latency time.Duration
}

// Priority is the event's severity, as the Catalogue grades it, or as it was recorded.
func (e *Event) Priority() catalog.Priority {
	if p := e.recorded.priority; p != 0 {
		return p
	}
	return e.Type.Grade(e.Occurrences(), e.Latency)
}

// PodLabels returns the values of K8S_NAMESPACE and K8S_POD.
func (e *Event) PodLabels() (namespace, name string) {
	if e.Pod != nil {
		return e.Pod.Namespace, e.Pod.Name
	}
	return e.HostLabel, e.HostLabel
}

// Message returns the event as one readable line.
func (e *Event) Message() string { return string(e.AppendMessage(nil)) }

// AppendMessage appends Message to b: the owner from AppendOwner, a colon, and AppendWhat.
func (e *Event) AppendMessage(b []byte) []byte {
	if text := e.recorded.message; text != "" {
		return quote.AppendSafe(b, text)
	}
	return e.AppendWhat(append(e.AppendOwner(b), ": "...))
}

// AppendOwner appends the event's owner: NAMESPACE/NAME of a pod, host, netns NUMBER, or
// owner unknown. Like AppendWhat it appends valid UTF-8 without control characters,
// whatever the names contain.
func (e *Event) AppendOwner(b []byte) []byte {
	switch {
	case e.Pod != nil:
		return appendPod(b, e.Pod)
	case e.unattributed:
		return append(b, "owner unknown"...)
	case e.unowned && e.Netns == 0:
		return append(b, "several netns"...)
	case e.unowned:
		return strconv.AppendUint(append(b, "netns "...), e.Netns, 10)
	}
	return append(b, "host"...)
}

// AppendWhat appends what happened, how often, on which connection, and the details that
// the event type declares.
func (e *Event) AppendWhat(b []byte) []byte { return e.appendWhat(b, true) }

// AppendBrief is AppendWhat without the connection, for a narrow line. It needs a pod
// at the other end, which the text then names. Without one, only the addresses identify
// the peer: ok is false, and nothing is appended.
func (e *Event) AppendBrief(b []byte) (text []byte, ok bool) {
	other := func(p *owner.Pod) bool { return p != nil && !samePod(p, e.Pod) }
	if e.recorded.message != "" || !e.Type.Has(catalog.FieldTuple) || !other(e.Src.Pod) && !other(e.Dst.Pod) {
		return b, false
	}
	return e.appendWhat(b, false), true
}

func (e *Event) appendWhat(b []byte, connection bool) []byte {
	if e.recorded.message != "" {
		return e.appendRecorded(b)
	}
	b = e.appendTemplate(b, e.Type.Message)
	if e.Merged != nil {
		b = e.AppendTimes(append(b, ", "...))
	}
	start := len(b)
	if connection && e.Type.Has(catalog.FieldTuple) {
		if b = e.AppendTuple(append(b, ": "...)); len(b) == start+2 {
			b = b[:start]
		}
	}
	before, separator := len(b), ", "
	if before == start {
		separator = ": "
	}
	if b = e.appendDetails(append(b, separator...), e.Type.Message); len(b) == before+2 {
		b = b[:before]
	}
	if e.Suppressed > 0 {
		b = append(b, " (+"...)
		b = strconv.AppendUint(b, e.Suppressed, 10)
		b = append(b, " suppressed)"...)
	}
	return b
}

// appendTemplate appends the Message of an event type with its placeholders filled in.
func (e *Event) appendTemplate(b []byte, template string) []byte {
	for {
		said, rest, found := strings.Cut(template, "{")
		b = append(b, said...)
		if !found {
			return b
		}
		place, after, _ := strings.Cut(rest, "}")
		switch place {
		case "latency":
			if e.Merged != nil {
				b = append(b, "up to "...)
			}
			b = AppendLatency(b, e.Latency)
		case "operation":
			b = e.appendOperation(b)
		case "points":
			open := len(b)
			if b = e.appendPoints(append(b, " ("...)); len(b) > open+2 {
				b = append(b, ')')
			} else {
				b = b[:open]
			}
		case "from", "to", "ends":
			b = e.appendPeer(b, place)
		}
		template = after
	}
}

// appendPeer appends the pods at the ends of the connection other than the event's owner,
// such as " from shop/db-0". how is the direction of the packet between owner and peer;
// "ends" stands for the direction in which the connection is written.
func (e *Event) appendPeer(b []byte, how string) []byte {
	src, dst := e.Src.Pod, e.Dst.Pod
	if src != nil && samePod(src, e.Pod) {
		src = nil
	}
	if dst != nil && samePod(dst, e.Pod) {
		dst = nil
	}
	if how != "ends" && (src == nil) != (dst == nil) {
		peer := src
		if peer == nil {
			peer = dst
		}
		return appendPod(append(append(append(b, ' '), how...), ' '), peer)
	}
	if src != nil {
		b = appendPod(append(b, " from "...), src)
	}
	if dst != nil {
		b = appendPod(append(b, " to "...), dst)
	}
	return b
}

func appendPod(b []byte, p *owner.Pod) []byte {
	b = quote.AppendSafe(b, p.Namespace)
	b = append(b, '/')
	return quote.AppendSafe(b, p.Name)
}

// samePod reports whether p, which is not nil, and q are the same pod. The Pod of a pod is
// replaced when more becomes known about it; its ID stays.
func samePod(p, q *owner.Pod) bool { return p == q || q != nil && p.ID == q.ID && p.ID != "" }

// appendOperation appends the operation of a block I/O: read of 4 KiB.
func (e *Event) appendOperation(b []byte) []byte {
	if e.Operation == "" {
		b = append(b, "block I/O"...)
	} else {
		b = quote.AppendSafe(b, e.Operation)
	}
	if e.Bytes > 0 {
		b = appendBytes(append(b, " of "...), e.Bytes)
	}
	return b
}

// appendPoints appends the measured points, separated by commas.
func (e *Event) appendPoints(b []byte) []byte {
	start := len(b)
	for _, p := range e.Points {
		if p.Latency < 0 {
			continue
		}
		if len(b) > start {
			b = append(b, ", "...)
		}
		b = append(quote.AppendSafe(b, p.Name), ' ')
		b = AppendLatency(b, p.Latency)
	}
	return b
}

// appendDetails appends the further fields that the event type declares, separated by
// commas. It leaves out fields for which message, a template, has a placeholder.
func (e *Event) appendDetails(b []byte, message string) []byte {
	start := len(b)
	next := func(what string) {
		if len(b) > start {
			b = append(b, ", "...)
		}
		b = append(b, what...)
	}
	text := func(what, value string) {
		if value != "" {
			next(what)
			b = quote.AppendSafe(b, value)
		}
	}
	number := func(what string, n int) {
		if n >= 0 {
			next(what)
			b = strconv.AppendInt(b, int64(n), 10)
		}
	}
	var location bool
	for _, g := range e.Type.Fields {
		switch g {
		case catalog.FieldReason:
			text("", e.Reason)
			if e.Type.Has(catalog.FieldLocation) && e.Location != "" {
				location = true
				if e.Reason != "" {
					b = append(b, " at "...)
				} else {
					next("at ")
				}
				b = quote.AppendSafe(b, e.Location)
			}
		case catalog.FieldLocation:
			if !location && !e.Type.Has(catalog.FieldReason) {
				text("at ", e.Location)
			}
		case catalog.FieldVector:
			text("", e.Vector)
		case catalog.FieldTCPState:
			text("state ", e.TCPState)
		case catalog.FieldIfname:
			text("device ", e.Ifname)
		case catalog.FieldDisk:
			text("disk ", e.Disk)
		case catalog.FieldProcess:
			switch {
			case e.Comm != "":
				text("process ", e.Comm)
				if e.PID >= 0 {
					b = append(b, '[')
					b = strconv.AppendInt(b, int64(e.PID), 10)
					b = append(b, ']')
				}
			default:
				number("process ", e.PID)
			}
		case catalog.FieldCPU:
			number("CPU ", e.CPU)
		case catalog.FieldPID:
			number("process ", e.PID)
		case catalog.FieldOperation:
			if e.Operation != "" && !strings.Contains(message, "{operation}") {
				next("")
				b = e.appendOperation(b)
			}
		case catalog.FieldPoints:
			if strings.Contains(message, "{points}") {
				continue
			}
			before := len(b)
			next("")
			comma := len(b)
			if b = e.appendPoints(b); len(b) == comma {
				b = b[:before]
			}
		}
	}
	return b
}

// AppendLatency appends d with three or four digits: 12.3ms.
func AppendLatency(b []byte, d time.Duration) []byte {
	unit, name := time.Nanosecond, "ns"
	switch {
	case d >= time.Second:
		unit, name = time.Second, "s"
	case d >= time.Millisecond:
		unit, name = time.Millisecond, "ms"
	case d >= time.Microsecond:
		unit, name = time.Microsecond, "us"
	}
	if whole := d / unit; unit == time.Nanosecond || whole >= 100 {
		b = strconv.AppendInt(b, int64(whole), 10)
	} else {
		b = strconv.AppendInt(b, int64(whole), 10)
		b = append(b, '.', byte('0'+(d%unit)*10/unit))
	}
	return append(b, name...)
}

// appendBytes appends n in binary units: 512 B, 4 KiB, 1.5 MiB.
func appendBytes(b []byte, n uint64) []byte {
	unit, name := uint64(1), "B"
	switch {
	case n >= 1<<30:
		unit, name = 1<<30, "GiB"
	case n >= 1<<20:
		unit, name = 1<<20, "MiB"
	case n >= 1<<10:
		unit, name = 1<<10, "KiB"
	}
	b = strconv.AppendUint(b, n/unit, 10)
	if tenth := n % unit * 10 / unit; tenth > 0 {
		b = append(b, '.', byte('0'+tenth))
	}
	return append(append(b, ' '), name...)
}

// syslogIdentifier is the SYSLOG_IDENTIFIER of all entries.
const syslogIdentifier = "nodeskoop"

// pointFields maps the Catalogue's points to journal field names.
var pointFields = func() map[string]string {
	m := map[string]string{}
	for _, t := range catalog.Events() {
		for _, p := range t.Points {
			m[p] = pointField(p)
		}
	}
	return m
}()

func pointField(point string) string {
	return "KUBESKOOP_LATENCY_" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, point) + "_NS"
}

// fieldWriter passes fields to put, with values built in buf.
type fieldWriter struct {
	buf []byte
	put func(name string, value []byte)
}

func (w *fieldWriter) text(name, value string) {
	w.buf = append(w.buf[:0], value...)
	w.put(name, w.buf)
}

func (w *fieldWriter) given(name, value string) {
	if value != "" {
		w.text(name, value)
	}
}

func (w *fieldWriter) number(name string, value int64) {
	w.buf = strconv.AppendInt(w.buf[:0], value, 10)
	w.put(name, w.buf)
}

func (w *fieldWriter) unsigned(name string, value uint64) {
	w.buf = strconv.AppendUint(w.buf[:0], value, 10)
	w.put(name, w.buf)
}

// Fields calls put with each journal field of the event, in a fixed order: first the common
// fields, then the groups that its type declares. Unknown values are left out. Values may
// contain any byte, and are valid until put returns. Values are built in buf, which is
// returned for the next event, so that nothing is allocated.
func (e *Event) Fields(buf []byte, put func(name string, value []byte)) []byte {
	t := e.Type
	w := fieldWriter{buf: e.AppendMessage(buf[:0]), put: put}
	put("MESSAGE", w.buf)
	w.text("MESSAGE_ID", t.MessageID)
	w.number("PRIORITY", int64(e.Priority()))
	w.text("SYSLOG_IDENTIFIER", syslogIdentifier)
	w.text("KUBESKOOP_EVENT", t.Name)
	w.text("KUBESKOOP_PROBE", t.Probe())
	w.text("K8S_NODE", e.Node)
	namespace, name := e.PodLabels()
	w.text("K8S_NAMESPACE", namespace)
	w.text("K8S_POD", name)
	if e.Netns != 0 {
		w.unsigned("KUBESKOOP_NETNS", e.Netns)
	}
	w.number("KUBESKOOP_TIMESTAMP_US", e.Time.UnixMicro())
	for _, g := range t.Fields {
		switch g {
		case catalog.FieldTuple:
			w.given("KUBESKOOP_PROTOCOL", e.Protocol)
			ports := e.Src.hasPort() || e.Dst.hasPort()
			w.end(&srcFields, &e.Src, ports)
			w.end(&dstFields, &e.Dst, ports)
		case catalog.FieldLatency:
			w.number("KUBESKOOP_LATENCY_NS", int64(e.Latency))
		case catalog.FieldPoints:
			for _, p := range e.Points {
				if p.Latency < 0 {
					continue
				}
				name, ok := pointFields[p.Name]
				if !ok {
					name = pointField(p.Name)
				}
				w.number(name, int64(p.Latency))
			}
		case catalog.FieldOperation:
			w.given("KUBESKOOP_OPERATION", e.Operation)
			if e.Bytes > 0 {
				w.unsigned("KUBESKOOP_BYTES", e.Bytes)
			}
		case catalog.FieldProcess:
			w.given("KUBESKOOP_COMM", e.Comm)
			if e.PID >= 0 {
				w.number("KUBESKOOP_PID", int64(e.PID))
			}
		case catalog.FieldCPU:
			if e.CPU >= 0 {
				w.number("KUBESKOOP_CPU", int64(e.CPU))
			}
		case catalog.FieldPID:
			if e.PID >= 0 {
				w.number("KUBESKOOP_PID", int64(e.PID))
			}
		case catalog.FieldIfname:
			w.given("KUBESKOOP_IFNAME", e.Ifname)
		case catalog.FieldDisk:
			w.given("KUBESKOOP_DISK", e.Disk)
		case catalog.FieldVector:
			w.given("KUBESKOOP_VECTOR", e.Vector)
		case catalog.FieldLocation:
			w.given("KUBESKOOP_LOCATION", e.Location)
		case catalog.FieldReason:
			w.given("KUBESKOOP_REASON", e.Reason)
		case catalog.FieldTCPState:
			w.given("KUBESKOOP_TCP_STATE", e.TCPState)
		case catalog.FieldStack:
			if len(e.Stack) > 0 {
				w.buf = w.buf[:0]
				for i, s := range e.Stack {
					if i > 0 {
						w.buf = append(w.buf, '\n')
					}
					w.buf = append(w.buf, s...)
				}
				put("KUBESKOOP_STACK", w.buf)
			}
		}
	}
	if e.Merged != nil {
		e.Merged.fields(&w)
	}
	if e.Suppressed > 0 {
		w.unsigned("KUBESKOOP_SUPPRESSED", e.Suppressed)
	}
	return w.buf
}

// AppendJSON appends the fields as one JSON object without a newline. As with journalctl -o
// json, every value is a string; quote.AppendJSON writes it. buf is as in Fields.
func (e *Event) AppendJSON(b, buf []byte) (line, scratch []byte) {
	b = append(b, '{')
	first := true
	buf = e.Fields(buf, func(name string, value []byte) {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(b, '"')
		b = append(b, name...) // letters, digits and underscores
		b = append(b, '"', ':')
		b = quote.AppendJSON(b, value)
	})
	return append(b, '}'), buf
}
