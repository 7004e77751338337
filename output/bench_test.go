package output

import (
	"fmt"
	"io"
	"slices"
	"testing"

	dto "github.com/prometheus/client_model/go"
)

// benchFamilies makes a number of series over the Catalogue's families. They share label
// pairs as the Runner's do.
func benchFamilies(series int) []*dto.MetricFamily {
	value := func(f, s int) float64 { return float64(f*1000003 + s*7919) }
	one := seriesOf(catalogueFamilies(0, value))
	each := seriesOf(catalogueFamilies(1, value)) - one
	return catalogueFamilies((series-one+each-1)/each, value)
}

// flowFamilies makes series with 16 labels each, none of them shared, in two families.
func flowFamilies(series int) []*dto.MetricFamily {
	std := pairs("k8s_node", "node-1", "k8s_namespace", "hostNetwork", "k8s_pod", "hostNetwork")
	bytes := family("kubeskoop_flow_bytes", "Bytes sent per connection.", dto.MetricType_COUNTER)
	packets := family("kubeskoop_flow_packets", "Packets sent per connection.", dto.MetricType_COUNTER)
	for i := range series / 2 {
		ls := append(slices.Clone(std), pairs("protocol", "tcp", "src", fmt.Sprintf("10.0.%d.%d", i>>8, i&255), "src_type", "pod", "src_node", "", "src_namespace", "default", "src_pod", "web-0",
			"dst", "10.1.2.3", "dst_type", "unknown", "dst_node", "", "dst_namespace", "", "dst_pod", "", "sport", "0", "dport", "0")...)
		b, p := counter(float64(i*1460)), counter(float64(i))
		b.Label, p.Label = ls, slices.Clone(ls)
		bytes.Metric, packets.Metric = append(bytes.Metric, b), append(packets.Metric, p)
	}
	return []*dto.MetricFamily{bytes, packets}
}

func perSeries(b *testing.B, series int, bytes int64) {
	b.SetBytes(bytes)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(series), "ns/series")
	b.ReportMetric(float64(bytes), "file-bytes")
}

func BenchmarkEncode(b *testing.B) {
	for _, n := range []int{20_000, 100_000} {
		for name, fams := range map[string][]*dto.MetricFamily{"shared": benchFamilies(n), "flows": flowFamilies(n)} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				var e encoder
				var bytes int64
				for b.Loop() {
					var err error
					if bytes, err = e.encode(io.Discard, fams); err != nil {
						b.Fatal(err)
					}
				}
				perSeries(b, seriesOf(fams), bytes)
			})
		}
	}
}

// BenchmarkGuard is the guard's share of an encode.
func BenchmarkGuard(b *testing.B) {
	for name, fams := range map[string][]*dto.MetricFamily{"shared": benchFamilies(20_000), "flows": flowFamilies(20_000)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var g guard
			for b.Loop() {
				g.begin()
				for _, f := range fams {
					if g.check(f) != f {
						b.Fatal(f.GetName())
					}
				}
				g.end()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(seriesOf(fams)), "ns/series")
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{20_000, 100_000} {
		fams := benchFamilies(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			tf, err := NewTextfile(b.TempDir(), "nodeskoop.prom", 0, nil)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := tf.Write(fams); err != nil {
					b.Fatal(err)
				}
			}
			perSeries(b, seriesOf(fams), tf.Stats().Bytes)
		})
	}
}
