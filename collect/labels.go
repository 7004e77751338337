package collect

import (
	"strings"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
)

// row is one value of one series.
type row struct {
	of     *labelSet
	metric *catalog.Metric
	value  float64
	hist   *Histogram // of a histogram, in place of value
	labels []string   // the values of metric.Labels

	leftOut int // not a value, but how many are missing
}

// Histogram is the value of a histogram.
type Histogram struct {
	// Buckets are how many values are in each, the one above all bounds included:
	// one more than the metric has Bounds. They are not cumulative.
	Buckets []uint64
	Sum     float64 // in the metric's Unit
}

// labelSet is whose series are: the label pairs that all of them share, and what
// decides which of them are written.
type labelSet struct {
	pairs   []*dto.LabelPair
	pod     *owner.Pod // nil: the host, or what is unknown
	unknown bool
	nonzero []uint64 // bit set of counters that were ever above 0
}

// validUTF8 makes s acceptable as a label value: bytes that are not UTF-8 become
// U+FFFD, because node_exporter drops a whole file for one of them.
func validUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// set gives the series other labels. The pairs of before stay as they are: a sink
// may have them still.
func (s *labelSet) set(node, namespace, pod string, p *owner.Pod, templates []owner.LabelTemplate) {
	s.pod, s.pairs = p, make([]*dto.LabelPair, 0, 3+len(templates))
	add := func(name, value string) { s.pairs = append(s.pairs, labelPair(name, validUTF8(value))) }
	add(owner.LabelNode, node)
	add(owner.LabelNamespace, namespace)
	add(owner.LabelPod, pod)
	for _, t := range templates {
		add(t.Name, t.Value(p))
	}
}

func labelPair(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }

func (s *labelSet) setNonzero(id int) {
	for len(s.nonzero) <= id/64 {
		s.nonzero = append(s.nonzero, 0)
	}
	s.nonzero[id/64] |= 1 << (id % 64)
}

func (s *labelSet) wasNonzero(id int) bool {
	return id/64 < len(s.nonzero) && s.nonzero[id/64]&(1<<(id%64)) != 0
}
