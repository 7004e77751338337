package event

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/quote"
)

// ErrNoEvent says that the fields describe no event type of the Catalogue.
var ErrNoEvent = errors.New("no event of the catalogue")

// recorded holds the texts of an Event that was read back. They may have been
// written by another version.
type recorded struct {
	message  string
	priority catalog.Priority // 0: none was recorded
}

// FromFields decodes an Event from its Fields. Missing or invalid fields are not an
// error, because an entry may come from another version. at is the time for entries
// without one of their own. The Event keeps the recorded message and priority. It
// must not be offered to a Hub, since it has passed the limits already.
//
// The caller must check who wrote the fields.
func FromFields(fields map[string]string, at time.Time) (*Event, error) {
	name := fields["KUBESKOOP_EVENT"]
	t := catalog.EventByName(name)
	if t == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoEvent, name)
	}
	f := fieldReader(fields)
	e := &Event{
		Type: t, Time: f.time("KUBESKOOP_TIMESTAMP_US", at), Netns: f.unsigned("KUBESKOOP_NETNS"), Node: f["K8S_NODE"],
		Protocol: f["KUBESKOOP_PROTOCOL"], Latency: time.Duration(max(0, f.number("KUBESKOOP_LATENCY_NS", 0))),
		Comm: f["KUBESKOOP_COMM"], PID: int(f.number("KUBESKOOP_PID", -1)), CPU: int(f.number("KUBESKOOP_CPU", -1)),
		Operation: f["KUBESKOOP_OPERATION"], Bytes: f.unsigned("KUBESKOOP_BYTES"),
		Ifname: f["KUBESKOOP_IFNAME"], Disk: f["KUBESKOOP_DISK"], Vector: f["KUBESKOOP_VECTOR"],
		Location: f["KUBESKOOP_LOCATION"], Reason: f["KUBESKOOP_REASON"], TCPState: f["KUBESKOOP_TCP_STATE"],
		Suppressed: f.count("KUBESKOOP_SUPPRESSED"),
		recorded:   recorded{message: f["MESSAGE"]},
	}
	switch p := catalog.Priority(f.number("PRIORITY", 0)); p {
	case catalog.PriWarning, catalog.PriNotice:
		e.recorded.priority = p
	}
	for _, p := range t.Points {
		if n := f.number(pointFields[p], -1); n >= 0 {
			e.Points = append(e.Points, Point{p, time.Duration(n)})
		}
	}
	if s := f["KUBESKOOP_STACK"]; s != "" {
		e.Stack = strings.Split(s, "\n")
	}
	if n := f.count("KUBESKOOP_COUNT"); n > 1 {
		e.Merged = f.merged(n, e.Time)
	}
	f.owner(e)
	if !t.Has(catalog.FieldTuple) {
		return e, nil
	}
	many := e.Merged != nil
	f.end(&srcFields, &e.Src, many)
	f.end(&dstFields, &e.Dst, many)
	if ports := e.Src.Port != 0 || e.Dst.Port != 0 || e.Protocol == "TCP" || e.Protocol == "UDP"; many && ports {
		// Fields omits ports that differ between the occurrences.
		e.Src.anyPort, e.Dst.anyPort = f[srcFields.port] == "", f[dstFields.port] == ""
	}
	if e.Pod != nil && !samePodOf(e.Src.Pod, e.Pod) && !samePodOf(e.Dst.Pod, e.Pod) {
		e.Pod.HostNetwork = e.Src.Kind == EndNode || e.Dst.Kind == EndNode
	}
	return e, nil
}

// samePodOf is samePod for an end that may not be a pod.
func samePodOf(p, q *owner.Pod) bool { return p != nil && samePod(p, q) }

// fieldReader reads fields as Fields writes them.
type fieldReader map[string]string

func (f fieldReader) number(name string, otherwise int64) int64 {
	if n, err := strconv.ParseInt(f[name], 10, 64); err == nil {
		return n
	}
	return otherwise
}

func (f fieldReader) unsigned(name string) uint64 {
	n, _ := strconv.ParseUint(f[name], 10, 64)
	return n
}

// maxCount is the largest valid number of occurrences in an entry. No kernel counts more
// in a window, sums of entries do not overflow, and JSON readers know it exactly.
const maxCount = 1<<53 - 1

// count reads a number of occurrences, 0 if it is not valid.
func (f fieldReader) count(name string) uint64 {
	if n := f.unsigned(name); n <= maxCount {
		return n
	}
	return 0
}

// The range of valid years. RFC 3339 has no others, and earlier ones come from a
// clock that was never set.
var (
	earliest = time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
)

func (f fieldReader) time(name string, otherwise time.Time) time.Time {
	n, err := strconv.ParseInt(f[name], 10, 64)
	if t := time.UnixMicro(n); err == nil && t.After(earliest) && t.Before(latest) {
		return t
	}
	return otherwise
}

// merged reads how often an event occurred. Only the message contains the length
// of the window.
func (f fieldReader) merged(n uint64, at time.Time) *Merged {
	m := &Merged{Count: n, First: f.time("KUBESKOOP_FIRST_US", at), Last: f.time("KUBESKOOP_LAST_US", at), Peers: int(f.number("KUBESKOOP_PEERS", 0))}
	if m.Last.Before(m.First) {
		m.First, m.Last = m.Last, m.First
	}
	m.Window = m.Last.Sub(m.First)
	return m
}

// owner determines the owner of the event. The message decides, because the
// host's labels are configurable and may be empty, like those of an unowned
// namespace.
func (f fieldReader) owner(e *Event) {
	namespace, name := f["K8S_NAMESPACE"], f["K8S_POD"]
	said := func(whose string) bool { return strings.HasPrefix(e.recorded.message, whose) }
	switch {
	case namespace == owner.UnknownLabel && name == owner.UnknownLabel:
		e.unattributed, e.HostLabel = true, owner.UnknownLabel
	case said("netns "), said("several netns: "):
		e.unowned = true
	case said("host: "), namespace == owner.DefaultHostLabel && name == owner.DefaultHostLabel:
		e.HostLabel = name
	case name == "" && namespace == "":
		e.unowned = e.Netns != 0
	default:
		e.Pod = podNamed(namespace, name)
	}
}

// podNamed returns a pod of which only the name is known.
func podNamed(namespace, name string) *owner.Pod {
	return &owner.Pod{ID: namespace + "/" + name, Namespace: namespace, Name: name}
}

func (f fieldReader) end(names *endFields, end *Endpoint, many bool) {
	if a, err := netip.ParseAddr(f[names.addr]); err == nil {
		end.Addr = a.WithZone("").Unmap()
	} else {
		end.anyAddr = many
	}
	if n, err := strconv.ParseUint(f[names.port], 10, 16); err == nil {
		end.Port = uint16(n)
	}
	switch kind := f[names.kind]; kind {
	case EndPod, EndNode, EndUnknown:
		end.Kind = kind
	}
	if name := f[names.pod]; name != "" {
		end.Pod = podNamed(f[names.namespace], name)
	}
	end.Node = f[names.node]
}

// appendRecorded appends the recorded message without its owner.
func (e *Event) appendRecorded(b []byte) []byte {
	text := e.recorded.message
	if rest, ok := strings.CutPrefix(quote.Safe(text), string(e.AppendOwner(nil))+": "); ok {
		return append(b, rest...)
	}
	return quote.AppendSafe(b, text)
}
