package collect

import (
	"strings"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/owner"
)

// labelSet holds the label pairs that all series of a target share.
type labelSet struct {
	key   string // what makes two sets equal
	pairs []*dto.LabelPair
}

// valid makes s acceptable as a label value: bytes that are not UTF-8 become
// U+FFFD, because node_exporter drops a whole file for one of them.
func validUTF8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func newLabelSet(node, namespace, pod string, p *owner.Pod, templates []owner.LabelTemplate) labelSet {
	s := labelSet{pairs: make([]*dto.LabelPair, 0, 3+len(templates))}
	add := func(name, value string) {
		value = validUTF8(value)
		s.key += value + "\xff"
		s.pairs = append(s.pairs, labelPair(name, value))
	}
	add(owner.LabelNode, node)
	add(owner.LabelNamespace, namespace)
	add(owner.LabelPod, pod)
	for _, t := range templates {
		add(t.Name, t.Value(p))
	}
	return s
}

func labelPair(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }
