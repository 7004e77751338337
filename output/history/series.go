package history

import "strings"

// Kind is the kind of a series' values.
type Kind uint8

// The kinds.
const (
	Counter Kind = iota // a value is the increase within the minute
	Gauge               // a value is the last of the minute
)

// BucketSuffix ends the names of a histogram's buckets, the only part of a histogram
// that is recorded. Each bucket has the label le, its upper bound or +Inf. Unlike in
// Prometheus, its value does not include the buckets below, so that in most minutes
// most buckets do not change.
const BucketSuffix = "_bucket"

// Label is one label of a series.
type Label struct{ Name, Value string }

// Series is the name of a series. It is immutable.
type Series struct {
	Metric string
	Kind   Kind
	Labels []Label // in the textfile's order
}

// Label returns the value of a label, "" if there is none.
func (s *Series) Label(name string) string {
	for _, l := range s.Labels {
		if l.Name == name {
			return l.Value
		}
	}
	return ""
}

// String returns the series in the text exposition format, without a value.
func (s *Series) String() string {
	if len(s.Labels) == 0 {
		return s.Metric
	}
	var b strings.Builder
	b.WriteString(s.Metric)
	for i, l := range s.Labels {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(l.Name)
		b.WriteString(`="`)
		_, _ = escape.WriteString(&b, l.Value)
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

var escape = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
