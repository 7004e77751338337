package owner

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"nodeskoop/collect/catalog"
)

// The names of the labels that every series carries.
const (
	LabelNode      = "k8s_node"
	LabelNamespace = "k8s_namespace"
	LabelPod       = "k8s_pod"
)

// DefaultHostLabel is the value of both pod labels for the host's own network
// namespace and for anything node-wide.
const DefaultHostLabel = "hostNetwork"

// UnknownLabel is the value of both pod labels for unattributed series: the kernel left no
// way to know the network namespace.
const UnknownLabel = "unknown"

// LabelTemplate makes the value of a user-defined label from a pod's labels.
type LabelTemplate struct {
	Name  string
	parts []labelPart
}

type labelPart struct {
	text string
	key  string // name of a pod label; "" for literal text
}

var (
	labelName = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	reference = regexp.MustCompile(`\$\{labels:([^}]+)\}`)
)

// ParseLabelTemplate parses a template such as "${labels:app}/${labels:tier}". Each
// reference becomes the value of that pod label, or "" if the pod does not have it. name
// must be a Prometheus label name that nodeskoop does not use itself.
func ParseLabelTemplate(name, text string) (LabelTemplate, error) {
	switch {
	case !labelName.MatchString(name):
		return LabelTemplate{}, fmt.Errorf("%q is not a label name: letters, digits and underscores, not beginning with a digit", name)
	case strings.HasPrefix(name, "__"):
		return LabelTemplate{}, fmt.Errorf("label name %q: names that begin with __ are Prometheus's own, and crash node_exporter", name)
	case reservedLabel(name):
		return LabelTemplate{}, fmt.Errorf("label name %q is one that nodeskoop sets itself", name)
	}
	t := LabelTemplate{Name: name}
	for text != "" {
		m := reference.FindStringSubmatchIndex(text)
		if m == nil {
			break
		}
		if m[0] > 0 {
			t.parts = append(t.parts, labelPart{text: text[:m[0]]})
		}
		t.parts = append(t.parts, labelPart{key: text[m[2]:m[3]]})
		text = text[m[1]:]
	}
	if strings.Contains(text, "${") {
		return LabelTemplate{}, fmt.Errorf("label %q: %q is not a reference; write ${labels:KEY}", name, text[strings.Index(text, "${"):])
	}
	if text != "" {
		t.parts = append(t.parts, labelPart{text: text})
	}
	return t, nil
}

// Keys returns the pod labels that the templates refer to, sorted.
func Keys(templates []LabelTemplate) []string {
	var keys []string
	for _, t := range templates {
		for _, p := range t.parts {
			if p.key != "" {
				keys = append(keys, p.key)
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Value returns the label's value for a pod. For the host (nil) all references are empty.
func (t LabelTemplate) Value(p *Pod) string {
	var b strings.Builder
	for _, part := range t.parts {
		if part.key == "" {
			b.WriteString(part.text)
		} else if p != nil {
			b.WriteString(p.Labels[part.key])
		}
	}
	return b.String()
}

func reservedLabel(name string) bool {
	switch name {
	case LabelNode, LabelNamespace, LabelPod, "instance", "job", "le", "quantile":
		return true
	}
	for _, m := range catalog.Metrics() {
		for _, l := range m.Labels {
			if l == name {
				return true
			}
		}
	}
	return false
}
