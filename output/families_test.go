package output

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"nodeskoop/collect/catalog"
)

// pairs makes labels from alternating names and values.
func pairs(nv ...string) []*dto.LabelPair {
	var ls []*dto.LabelPair
	for i := 0; i < len(nv); i += 2 {
		ls = append(ls, &dto.LabelPair{Name: &nv[i], Value: &nv[i+1]})
	}
	return ls
}

func counter(v float64, ls ...*dto.LabelPair) *dto.Metric {
	return &dto.Metric{Label: ls, Counter: &dto.Counter{Value: &v}}
}

func gauge(v float64, ls ...*dto.LabelPair) *dto.Metric {
	return &dto.Metric{Label: ls, Gauge: &dto.Gauge{Value: &v}}
}

// histogram returns a histogram with the given number of values in each bucket, and
// one more value above all bounds.
func histogram(bounds []float64, each uint64, sum float64, ls ...*dto.LabelPair) *dto.Metric {
	h := &dto.Histogram{SampleCount: new(uint64), SampleSum: &sum}
	var n uint64
	for i := range bounds {
		n += each / uint64(len(bounds))
		all := n
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: &bounds[i], CumulativeCount: &all})
	}
	*h.SampleCount = n + 1
	return &dto.Metric{Label: ls, Histogram: h}
}

func family(name, help string, typ dto.MetricType, ms ...*dto.Metric) *dto.MetricFamily {
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &typ, Metric: ms}
}

// catalogueFamilies makes a whole exposition from the Catalogue for the host and a number
// of pods. Each shares its label pairs as the Runner's do. Node-wide metrics have one
// series.
func catalogueFamilies(pods int, value func(family, series int) float64) []*dto.MetricFamily {
	sets := [][]*dto.LabelPair{pairs("k8s_node", "node-1", "k8s_namespace", "hostNetwork", "k8s_pod", "hostNetwork")}
	for i := range pods {
		sets = append(sets, pairs("k8s_node", "node-1", "k8s_namespace", fmt.Sprintf("namespace-%d", i%7), "k8s_pod", fmt.Sprintf("deployment-%d-7d4b9c6f5-x2x%d", i, i)))
	}
	return familiesOver(sets, value)
}

func familiesOver(sets [][]*dto.LabelPair, value func(family, series int) float64) []*dto.MetricFamily {
	var fams []*dto.MetricFamily
	for i, m := range catalog.Metrics() {
		f := family(m.Name, m.Help, dto.MetricType_GAUGE)
		switch m.Type {
		case catalog.Counter:
			*f.Type = dto.MetricType_COUNTER
		case catalog.Histogram:
			*f.Type = dto.MetricType_HISTOGRAM
		}
		over := sets
		if m.Scope == catalog.PerHost {
			over = sets[:1]
		}
		for j, set := range over {
			if len(m.Labels) > 0 {
				set = slices.Clone(set)
				for _, l := range m.Labels {
					set = append(set, pairs(l, fmt.Sprintf("%s %d", l, j))...)
				}
			}
			s := gauge(value(i, j), set...)
			switch m.Type {
			case catalog.Counter:
				s = counter(value(i, j), set...)
			case catalog.Histogram:
				v := value(i, j)
				s = histogram(m.Bounds, uint64(min(v, 1<<52)), v, set...) // readers keep counts as float64
			}
			s.Label = set // shared, not a copy
			f.Metric = append(f.Metric, s)
		}
		fams = append(fams, f)
	}
	return fams
}

func seriesOf(fams []*dto.MetricFamily) (n int) {
	for _, f := range fams {
		n += len(f.GetMetric())
	}
	return n
}

// plain reduces families to a comparable form: a line for each HELP, TYPE and sample, with
// sorted labels, and without empty labels, which readers ignore.
func plain(fams []*dto.MetricFamily) map[string]bool {
	lines := map[string]bool{}
	for _, f := range fams {
		lines[fmt.Sprintf("%s HELP %q TYPE %s", f.GetName(), f.GetHelp(), f.GetType())] = true
		for _, m := range f.Metric {
			var ls []string
			for _, l := range m.Label {
				if l.GetValue() != "" {
					ls = append(ls, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
			}
			slices.Sort(ls)
			v := m.GetGauge().GetValue()
			if m.Counter != nil {
				v = m.Counter.GetValue()
			}
			if h := m.Histogram; h != nil {
				for _, b := range h.Bucket {
					if !math.IsInf(b.GetUpperBound(), 1) {
						lines[fmt.Sprintf("%s_bucket{%s} %v %v", f.GetName(), strings.Join(ls, ","), b.GetUpperBound(), b.GetCumulativeCount())] = true
					}
				}
				lines[fmt.Sprintf("%s_count{%s} %v", f.GetName(), strings.Join(ls, ","), h.GetSampleCount())] = true
				v = h.GetSampleSum()
			}
			lines[fmt.Sprintf("%s{%s} %v", f.GetName(), strings.Join(ls, ","), v)] = true
		}
	}
	return lines
}

// difference lists the lines that only one of the two has.
func difference(got, want map[string]bool) string {
	var out []string
	for l := range got {
		if !want[l] {
			out = append(out, "unexpected: "+l)
		}
	}
	for l := range want {
		if !got[l] {
			out = append(out, "missing:    "+l)
		}
	}
	slices.Sort(out)
	if len(out) > 20 {
		out = append(out[:20], fmt.Sprintf("and %d more", len(out)-20))
	}
	return strings.Join(out, "\n")
}

// parse reads an exposition as node_exporter does.
func parse(t testing.TB, text string) []*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	m, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("a reader refuses the exposition: %v\n%.2000s", err, text)
	}
	var fams []*dto.MetricFamily
	for _, f := range m {
		fams = append(fams, f)
	}
	return fams
}

func encodeText(t testing.TB, fams []*dto.MetricFamily) string {
	t.Helper()
	var b strings.Builder
	if err := EncodeTo(&b, fams, nil); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
