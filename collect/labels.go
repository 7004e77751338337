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
	hist   *Histogram // value of a histogram, in place of value
	labels []string   // the values of metric.Labels

	leftOut int // if above 0, the number of series left out, and value is unused
}

// Histogram is the value of a histogram.
type Histogram struct {
	// Buckets are the counts of the buckets, not cumulative. There is one more
	// than the metric has Bounds: the last bucket has no upper bound.
	Buckets []uint64
	Sum     float64 // in the metric's Unit
}

// labelSet is the label pairs that the series of one owner share, and the state that
// decides which of these series are written.
type labelSet struct {
	pairs   []*dto.LabelPair
	pod     *owner.Pod // nil: the host, or unattributed
	unknown bool
	nonzero []uint64 // bit set by counter: it was above 0 once
}

// validUTF8 makes s valid as a label value: invalid bytes become U+FFFD, since one invalid
// value makes node_exporter drop the whole file.
func validUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// set replaces the labels. It does not change the old pairs: a sink may still hold them.
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
