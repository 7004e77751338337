package top

import (
	"bytes"
	"encoding/json"
	"errors"
	"iter"
	"strings"
	"testing"
	"time"

	"nodeskoop/output/history"
)

type minutes []*history.Minute

func (h minutes) Minutes(q history.Query) iter.Seq2[*history.Minute, error] {
	return func(yield func(*history.Minute, error) bool) {
		for _, m := range h {
			if m.Start.Before(q.Since) || !m.Start.Before(q.Until) {
				continue
			}
			kept := *m
			kept.Samples = nil
			for _, s := range m.Samples {
				if q.Keep(s.Series) {
					kept.Samples = append(kept.Samples, s)
				}
			}
			if !yield(&kept, nil) {
				return
			}
		}
	}
}

// The table of a minute shows what changed in it, per second. Unknown values are not
// shown as 0.
func TestPast(t *testing.T) {
	start := time.Date(2026, 11, 27, 3, 14, 0, 0, time.Local)
	of := func(kind history.Kind, metric, namespace, pod string, more ...string) *history.Series {
		s := &history.Series{Metric: metric, Kind: kind, Labels: []history.Label{{Name: "k8s_namespace", Value: namespace}, {Name: "k8s_pod", Value: pod}}}
		for i := 0; i < len(more); i += 2 {
			s.Labels = append(s.Labels, history.Label{Name: more[i], Value: more[i+1]})
		}
		return s
	}
	up := func(probe string) history.Sample {
		return history.Sample{Series: of(history.Gauge, "nodeskoop_probe_up", "", "", "probe", probe), Value: 1}
	}
	count := func(n float64, s *history.Series) history.Sample { return history.Sample{Series: s, Value: n} }
	minute := func(start time.Time, samples ...history.Sample) *history.Minute {
		return &history.Minute{Start: start, From: start, To: start.Add(time.Minute), Elapsed: time.Minute, Samples: samples}
	}
	h := minutes{
		minute(start.Add(-time.Minute), count(7777, of(history.Counter, "kubeskoop_tcpretrans_total", "shop", "web-0"))),
		minute(start, up("packetloss"), up("tcpretrans"), up("tcpreset"), up("netdev"), up("tcpsummary"),
			count(600, of(history.Counter, "kubeskoop_packetloss_total", "data", "db-0")),
			count(590, of(history.Counter, "kubeskoop_packetloss_reason", "data", "db-0", "reason", "NETFILTER_DROP")),
			count(10, of(history.Counter, "kubeskoop_packetloss_reason", "data", "db-0", "reason", "NO_SOCKET")),
			count(120, of(history.Counter, "kubeskoop_tcpretrans_total", "shop", "web-0")),
			count(30, of(history.Counter, "nodeskoop_tcpreset_total", "shop", "web-0", "kind", "active")),
			count(30, of(history.Counter, "nodeskoop_tcpreset_total", "shop", "web-0", "kind", "receive")),
			count(6000, of(history.Counter, "kubeskoop_netdev_rxbytes", "node", "node")),
			history.Sample{Series: of(history.Gauge, "kubeskoop_tcpsummary_tcptxqueue", "shop", "web-0"), Value: 5, Peak: 4096},
			count(3, of(history.Counter, "kubeskoop_packetloss_total", "unknown", "unknown"))),
	}
	columns := PastColumns(Columns(Probes()))
	table, err := Past(h, start.Add(42*time.Second), columns, "node")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := table.Write(&b, Order{Column: "drops"}, 200); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(b.String()) {
		got = append(got, strings.Join(strings.Fields(line), " "))
	}
	want := "2026-11-27 03:15:00 rates per second over 60.0s\n" +
		"POD DROP RETR RST SOCK KERN RX-B TX-B TX-Q RX-Q RX-P TX-P REASON\n" +
		"data/db-0 10 0 0 - - 0 0 0 0 0 0 NETFILTER_DROP\n" +
		"host 0 0 0 - - 100 0 0 0 0 0 -\n" +
		"shop/web-0 0 2.0 1.0 - - 0 0 4096 0 0 0 -\n"
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if names := strings.Join(table.Unknown(), " "); names != "socketlatency kernellatency" {
		t.Errorf("%s gave no values", names)
	}
	b.Reset()
	if err := table.WriteJSON(&b, Order{Column: "drops", Filter: "db-0"}); err != nil {
		t.Fatal(err)
	}
	var row map[string]any
	if err := json.Unmarshal(b.Bytes(), &row); err != nil || row["drops"] != 600.0 || row["drops_per_second"] != 10.0 || row["socket_slow"] != nil || row["drops_reason"] != "NETFILTER_DROP" {
		t.Errorf("%v, %s", err, b.String())
	}
	if _, err := Past(h, start.Add(time.Hour), columns, "node"); !errors.As(err, &NoMinuteError{}) || !strings.Contains(err.Error(), "no minute of 2026-11-27 04:14") {
		t.Error(err)
	}
	// If the daemon was restarted within a minute, both parts are added up.
	h = append(h, minute(start, count(600, of(history.Counter, "kubeskoop_packetloss_total", "data", "db-0"))))
	if table, err = Past(h, start, columns, "node"); err != nil || table.interval != 2*time.Minute || table.rows[1].cells[0].count != 1200 {
		t.Errorf("%v, %+v", err, table)
	}
}
