package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/internal/testkit/nasty"
	"nodeskoop/output/history"
)

// A report uses the reader's time zone. The samples are in UTC.
func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

var (
	since = time.Date(2026, 11, 27, 3, 0, 0, 0, time.UTC)
	until = since.Add(time.Hour)
)

func options() Options {
	return Options{Node: "worker-7", Version: "dev", Made: until.Add(5 * time.Minute), Since: since, Until: until, HostLabel: "hostNetwork"}
}

// rows returns the lines of a table in testdata, without its comment.
func rows(t testing.TB, name string) (rows [][]string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../../testdata/report", name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "#") {
			rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
		}
	}
	return rows
}

// badHour returns the events of an hour with faults, as read back from the journal.
func badHour(t testing.TB) (events []*event.Event) {
	t.Helper()
	for _, r := range rows(t, "events.tsv") {
		us := func(clock string) string {
			at, err := time.Parse("15:04:05.000", clock)
			if err != nil {
				t.Fatal(err)
			}
			return strconv.FormatInt(time.Date(2026, 11, 27, at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), time.UTC).UnixMicro(), 10)
		}
		fields := map[string]string{"KUBESKOOP_EVENT": r[3], "KUBESKOOP_TIMESTAMP_US": us(r[0]), "K8S_NODE": "worker-7", "KUBESKOOP_NETNS": "4026532917"}
		if r[1] != "=" {
			fields["KUBESKOOP_COUNT"], fields["KUBESKOOP_FIRST_US"], fields["KUBESKOOP_LAST_US"] = r[2], us(r[0]), us(r[1])
		}
		if namespace, pod, both := strings.Cut(r[4], "/"); both {
			fields["K8S_NAMESPACE"], fields["K8S_POD"] = namespace, pod
		} else {
			fields["K8S_NAMESPACE"], fields["K8S_POD"] = "hostNetwork", "hostNetwork"
		}
		for _, f := range strings.Fields(r[5]) {
			name, value, _ := strings.Cut(f, "=")
			fields["KUBESKOOP_"+name] = value
		}
		e, err := event.FromFields(fields, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// minutes is a history held in memory.
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
				if q.Keep == nil || q.Keep(s.Series) {
					kept.Samples = append(kept.Samples, s)
				}
			}
			if !yield(&kept, nil) {
				return
			}
		}
	}
}

var labelPair = regexp.MustCompile(`([a-z0-9_]+)="([^"]*)"`)

// seriesOf parses a series in the text format.
func seriesOf(text string) *history.Series {
	name, labels, _ := strings.Cut(text, "{")
	s := &history.Series{Metric: name}
	for _, m := range labelPair.FindAllStringSubmatch(labels, -1) {
		s.Labels = append(s.Labels, history.Label{Name: m[1], Value: m[2]})
	}
	return s
}

// steadily is a history of an hour and the hour before it without any change.
func steadily() (h minutes) {
	last := since.Add(-time.Hour)
	for i := range 120 {
		m := &history.Minute{Start: since.Add(time.Duration(i-60) * time.Minute), From: last, Cycles: 4, First: i == 0}
		m.To = m.Start.Add(58 * time.Second)
		m.Elapsed = m.To.Sub(m.From)
		last = m.To
		h = append(h, m)
	}
	return h
}

// badHistory is the history of the same hour.
func badHistory(t testing.TB) minutes {
	t.Helper()
	h := steadily()
	stopped, started := h[105], h[106]
	stopped.To = stopped.Start.Add(5 * time.Second)
	stopped.Elapsed = stopped.To.Sub(stopped.From)
	started.From, started.First = started.Start.Add(2*time.Second), true
	started.Elapsed = started.To.Sub(started.From)
	for _, r := range rows(t, "counters.tsv") {
		s := seriesOf(r[0])
		usual, err := strconv.ParseFloat(r[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		own := map[int]float64{}
		for _, f := range strings.Fields(strings.TrimPrefix(r[2], "-")) {
			var from, to int
			var n float64
			if _, err := fmt.Sscanf(f, "%d-%d=%g", &from, &to, &n); err != nil {
				if _, err := fmt.Sscanf(f, "%d=%g", &from, &n); err != nil {
					t.Fatalf("%q: %v", f, err)
				}
				to = from
			}
			for i := from; i <= to; i++ {
				own[i] = n
			}
		}
		whole := 0.0
		for i, m := range h {
			n, ok := own[i-60]
			if !ok {
				if usual >= 1 { // the counts vary slightly
					n = math.Floor(usual * (0.9 + 0.2*float64(i*7919%101)/101))
					if strings.Contains(s.Metric, "_seconds_") {
						n = usual
					}
				} else {
					whole += usual
					n = math.Floor(whole)
					whole -= n
				}
			}
			if m == stopped {
				n = math.Floor(n / 12)
			}
			if n > 0 {
				m.Samples = append(m.Samples, history.Sample{Series: s, Value: n})
			}
		}
	}
	return h
}

func badReport(t testing.TB) *Report {
	t.Helper()
	b := New(options())
	for _, e := range badHour(t) {
		b.Event(e)
	}
	if err := b.History(badHistory(t), nil); err != nil {
		t.Fatal(err)
	}
	return b.Report()
}

func textOf(t testing.TB, r *Report, width int) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b, width); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func pageOf(t testing.TB, r *Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// golden compares a text with a file.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if os.Getenv("NODESKOOP_TEST_UPDATE") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what is made now; NODESKOOP_TEST_UPDATE=1 writes it (-file +now):\n%s", file, cmp.Diff(string(want), got))
	}
}

// TestGoldenSample compares the sample in docs/, and its form for a terminal, with the
// current report on the recorded hour.
func TestGoldenSample(t *testing.T) {
	r := badReport(t)
	golden(t, samplePage, pageOf(t, r))
	golden(t, "../../../../testdata/report/report.txt", textOf(t, r, 80))
}

// fits checks that no line is wider than the window.
func fits(t *testing.T, text string, width int) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := column.Width(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d of %d columns: %s", n, width, line)
		}
	}
}

func TestTextFits(t *testing.T) {
	r := badReport(t)
	for _, width := range []int{60, 80, 120, 200} {
		fits(t, textOf(t, r, width), width)
	}
	if a, b := textOf(t, r, 0), textOf(t, r, 80); a != b {
		t.Error("without a window it is not as in one of 80 columns")
	}
}

// The report counts every reported event: in the sum of the kinds, and of the
// lanes.
func TestEveryEventIsCounted(t *testing.T) {
	events := badHour(t)
	r := badReport(t)
	var told, kinds, lanes uint64
	for _, e := range events {
		told += e.Occurrences()
	}
	for _, k := range r.Kinds {
		kinds += k.Count
	}
	for _, l := range r.Timeline {
		lanes += l.Count
		if sum := Count(l.Counts); math.Abs(sum-float64(l.Count)) > 1e-6*sum {
			t.Errorf("%s %s: %v in the timeline, %d told", l.Whose, l.Event, sum, l.Count)
		}
	}
	if r.Events != told || kinds != told || lanes != told || r.Suppressed != 3 {
		t.Errorf("%d are told; the report has %d, its kinds %d, its lanes %d; %d suppressed", told, r.Events, kinds, lanes, r.Suppressed)
	}
	k := r.Kinds[0]
	if k.Event != "PacketLoss" || k.Whose != "data/db-0" || k.Peer != "from shop/checkout-7d9f8b6c44-x2k9p" || k.Reason != "NETFILTER_DROP" || k.Count != 3475 || !k.Warning() ||
		k.First.Format(dayTime) != "03:12:41" || k.Last.Format(dayTime) != "03:21:04" {
		t.Errorf("%+v", k)
	}
	for _, k := range r.Kinds {
		if k.Event == "BIOLAT_100MS" && (k.Worst != 1840210030 || k.Reason != "sda, postgres" && k.Reason != "postgres, sda") {
			t.Errorf("%+v", k)
		}
	}
}

// Events with peers of one pod that nobody has heard of do not hide what happens later,
// and each occurrence is in the row of its type and owner.
func TestManyPeersHideNothing(t *testing.T) {
	b := New(options())
	send := func(typ, pod, peer string, at time.Duration) {
		e, err := event.FromFields(map[string]string{"KUBESKOOP_EVENT": typ, "K8S_NAMESPACE": "shop", "K8S_POD": pod, "KUBESKOOP_DADDR": peer, "KUBESKOOP_SADDR": "10.0.0.1", "KUBESKOOP_PROTOCOL": "TCP"}, since.Add(at))
		if err != nil {
			t.Fatal(err)
		}
		b.Event(e)
	}
	const scan, few = 3 * maxKinds, 7
	for i := range scan {
		send("TCPRESET_NOSOCK", "web-0", fmt.Sprintf("198.51.%d.%d", i/250, i%250), time.Duration(i)*time.Second)
	}
	for i := range few {
		send("TCPRetrans", "db-0", "10.0.0.9", 59*time.Minute+time.Duration(i)*time.Second)
	}
	r := b.Report()
	of := map[string]uint64{}
	for _, k := range r.Kinds {
		of[k.Event+" "+k.Whose] += k.Count
	}
	if of["TCPRESET_NOSOCK shop/web-0"] != scan || of["TCPRetrans shop/db-0"] != few || r.MoreEvents != 0 || len(r.Kinds) != maxOwnKinds+2 {
		t.Errorf("%v in %d kinds, and %d more", of, len(r.Kinds), r.MoreEvents)
	}
	if text := textOf(t, r, 80); !strings.Contains(text, furtherPeers) || !strings.Contains(text, "shop/db-0") {
		t.Errorf("%s", text)
	}
}

// Many pods with an event each, such as those of jobs, do not hide what happens later.
func TestManyPodsHideNothing(t *testing.T) {
	b := New(options())
	const jobs = 3 * maxKinds
	for i := range jobs + 1 {
		fields := map[string]string{"KUBESKOOP_EVENT": "TCPRESET_NOSOCK", "K8S_NAMESPACE": "batch", "K8S_POD": fmt.Sprint("job-", i)}
		if i == jobs {
			fields["K8S_POD"], fields["KUBESKOOP_COUNT"] = "db-0", "500"
		}
		e, err := event.FromFields(fields, since.Add(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		b.Event(e)
	}
	r := b.Report()
	told, drawn := r.MoreEvents, r.MoreLanes
	for _, k := range r.Kinds {
		told += k.Count
	}
	for _, l := range r.Timeline {
		drawn += l.Count
	}
	if r.Kinds[0].Whose != "batch/db-0" || r.Kinds[0].Count != 500 || r.Timeline[0].Whose != "batch/db-0" || len(r.Kinds) != maxKinds || len(r.Timeline) != maxLanes {
		t.Errorf("%+v, %+v; %d kinds, %d lanes", r.Kinds[0], r.Timeline[0], len(r.Kinds), len(r.Timeline))
	}
	if r.Events != jobs+500 || told != r.Events || drawn != r.Events {
		t.Errorf("%d events, %d in the table, %d in the timeline", r.Events, told, drawn)
	}
}

// A counter that rose stands out, with its increase; a counter that continues as
// before does not.
func TestCountersThatStandOut(t *testing.T) {
	r := badReport(t)
	find := func(metric, whose string) *Counter {
		for i := range r.Counters {
			if c := &r.Counters[i]; c.Metric == metric && c.Whose == whose {
				return c
			}
		}
		return nil
	}
	rose := 0.0
	for _, m := range badHistory(t)[60:] {
		for _, s := range m.Samples {
			if s.Metric == "kubeskoop_tcpext_listenoverflows" {
				rose += s.Value
			}
		}
	}
	c := find("kubeskoop_tcpext_listenoverflows", "data/db-0")
	if c == nil || c.Rose != rose || rose != 5*18 || c.Expected != 0 || !c.Known || c.Most != 18 || c.MostAt.Format("15:04") != "03:32" || c.Times() != "new" || math.Abs(Count(c.Minutes)-rose) > 1e-6 {
		t.Errorf("%+v, rose by %v", c, rose)
	}
	if c := find("kubeskoop_tcpretrans_total", "shop/checkout-7d9f8b6c44-x2k9p"); c == nil || c.Rose < 8*281 || c.Expected < 20 || c.Expected > 40 || c.Help() == "" {
		t.Errorf("%+v", c)
	}
	for _, c := range r.Counters {
		if c.Whose == "shop/cart-6c9d5f7b9d-2fjqk" || c.Whose == "shop/web-5b7c9d8f6-9hq4z" || strings.Contains(c.Metric, "_seconds") || c.Metric == "kubeskoop_packetloss_total" && c.Whose == "data/db-0" {
			t.Errorf("%+v stands out", c)
		}
	}
	if c := find("kubeskoop_packetloss_reason", "data/db-0"); c == nil || c.Labels != "reason=NETFILTER_DROP" {
		t.Errorf("%+v", c)
	}
	if len(r.Traffic) != 1 || r.Traffic[0].Whose != "data/backup-29404980-lq5xd" {
		t.Errorf("%+v", r.Traffic)
	}
	if len(r.Distributions) != 3 || r.Distributions[0].Metric != "nodeskoop_biolatency_seconds" && r.Distributions[0].Metric != "nodeskoop_softirq_seconds" {
		t.Errorf("%+v", r.Distributions)
	}
	if len(r.Gaps) != 1 || r.Gaps[0].From.Format(dayTime) != "03:45:05" || r.Gaps[0].To.Format(dayTime) != "03:46:02" || r.Gaps[0].Why != "the daemon was started" {
		t.Errorf("%+v", r.Gaps)
	}
}

func TestQuantiles(t *testing.T) {
	d := &Distribution{Bounds: []float64{0.001, 0.01, 0.1}}
	for _, c := range []struct {
		q       float64
		buckets []float64
		want    string
	}{
		{0.5, []float64{0, 0, 0, 0}, "-"}, {0.5, []float64{100, 0, 0, 0}, "500us"}, {0.99, []float64{99, 1, 0, 0}, "1.0ms"},
		{0.5, []float64{0, 100, 0, 0}, "5.5ms"}, {0.99, []float64{0, 0, 0, 5}, "over 100ms"}, {1, []float64{1, 1, 1, 0}, "100ms"},
	} {
		if got := d.quantile(c.q, c.buckets); got != c.want {
			t.Errorf("%v of %v is %s, want %s", c.q, c.buckets, got, c.want)
		}
	}
}

// A histogram that the daemon's recorder has written becomes the same distribution:
// each value in its own bucket, those above the last bound included.
func TestRecordedDistribution(t *testing.T) {
	m := catalog.MustMetric("nodeskoop_biolatency_seconds")
	observed := func(counts []uint64) []*dto.MetricFamily {
		x, below := &dto.Histogram{}, uint64(0)
		for i, n := range counts {
			if below += n; i < len(m.Bounds) {
				x.Bucket = append(x.Bucket, &dto.Bucket{UpperBound: proto.Float64(m.Bounds[i]), CumulativeCount: proto.Uint64(below)})
			}
		}
		x.SampleCount = proto.Uint64(below)
		label := func(name, value string) *dto.LabelPair { return &dto.LabelPair{Name: &name, Value: &value} }
		return []*dto.MetricFamily{{Name: &m.Name, Type: dto.MetricType_HISTOGRAM.Enum(),
			Metric: []*dto.Metric{{Label: []*dto.LabelPair{label("disk", "sda"), label("operation", "write")}, Histogram: x}}}}
	}
	dir, begin := filepath.Join(t.TempDir(), history.Folder), time.Now()
	h := history.New(history.Options{Dir: dir, MaxBytes: 1 << 20, MaxAge: time.Hour})
	was, want := make([]uint64, len(m.Bounds)+1), make([]float64, len(m.Bounds)+1)
	is := slices.Clone(was)
	was[2] = 7
	is[2] = 7
	for i, n := range map[int]uint64{4: 90, 5: 8, len(m.Bounds): 3} {
		is[i], want[i] = n, float64(n)
	}
	h.Observe(observed(was))
	h.Observe(observed(is))
	h.Close(time.Minute)
	b := New(Options{Made: time.Now(), Since: begin.Truncate(time.Minute), Until: time.Now().Add(time.Minute)})
	if err := b.History(&history.Reader{Dir: dir}, nil); err != nil {
		t.Fatal(err)
	}
	r := b.Report()
	if len(r.Distributions) != 1 {
		t.Fatalf("%+v", r.Distributions)
	}
	d := &r.Distributions[0]
	if d.name() != "biolatency disk=sda operation=write" || !slices.Equal(d.Bounds, m.Bounds) || !slices.Equal(d.Now, want) || Count(d.Before) != 0 {
		t.Errorf("%+v", d)
	}
	if p50, over, ok := d.Quantile(0.5, d.Now); p50 <= m.Bounds[3] || p50 > m.Bounds[4] || over || !ok {
		t.Errorf("p50 is %v", p50)
	}
	if p99, over, _ := d.Quantile(0.99, d.Now); p99 != m.Bounds[len(m.Bounds)-1] || !over {
		t.Errorf("p99 is %v", p99)
	}
}

// In the morning everything rises faster than at night, and a new pod has counts that
// it did not have before: neither is trouble. A counter that grows more than the work
// is trouble.
func TestMoreWorkIsNoTrouble(t *testing.T) {
	b := New(options())
	h := steadily()
	add := func(metric, pod string, night, morning float64) {
		s := seriesOf(metric + `{k8s_namespace="shop",k8s_pod="` + pod + `"}`)
		for i, m := range h {
			if n := []float64{night, morning}[i/60]; n > 0 {
				m.Samples = append(m.Samples, history.Sample{Series: s, Value: n})
			}
		}
	}
	add("kubeskoop_netdev_rxpackets", "web-0", 100, 5000)
	add("kubeskoop_tcp_estabresets", "web-0", 2, 100)
	add("kubeskoop_socketlatency_read1ms", "web-0", 1, 60)
	add("kubeskoop_tcpretrans_total", "web-0", 1, 400)
	add("kubeskoop_tcpext_listenoverflows", "web-0", 0, 1)
	add("kubeskoop_netdev_rxpackets", "new-0", 0, 5000)
	add("kubeskoop_tcp_estabresets", "new-0", 0, 1)
	add("kubeskoop_tcpretrans_total", "new-0", 0, 9)
	if err := b.History(h, nil); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range b.Report().Counters {
		got = append(got, fmt.Sprintf("%s %s %v", c.Whose, c.Metric, c.Rose))
	}
	slices.Sort(got)
	want := []string{"shop/new-0 kubeskoop_tcpretrans_total 540", "shop/web-0 kubeskoop_tcpext_listenoverflows 60", "shop/web-0 kubeskoop_tcpretrans_total 24000"}
	if !slices.Equal(got, want) {
		t.Errorf("stand out: %q, want %q", got, want)
	}
}

// A healthy hour gives one line, and a short page without a table.
func TestQuiet(t *testing.T) {
	b := New(options())
	h := steadily()
	work := []*history.Series{seriesOf(`kubeskoop_netdev_rxbytes{k8s_namespace="shop",k8s_pod="web-0"}`), seriesOf(`kubeskoop_tcp_insegs{k8s_namespace="shop",k8s_pod="web-0"}`),
		seriesOf(`nodeskoop_packetloss_ignored_total{k8s_namespace="hostNetwork",k8s_pod="hostNetwork",why="closing"}`)} // by definition no loss
	noise := seriesOf(`kubeskoop_tcp_estabresets{k8s_namespace="shop",k8s_pod="web-0"}`)
	for i, m := range h {
		for _, s := range work { // ten times as much as in the hour before
			m.Samples = append(m.Samples, history.Sample{Series: s, Value: 1000 * float64(1+i/60*9)})
		}
		if i%20 == 3 {
			m.Samples = append(m.Samples, history.Sample{Series: noise, Value: 1})
		}
	}
	if err := b.History(h, nil); err != nil {
		t.Fatal(err)
	}
	r := b.Report()
	const want = "worker-7, 2026-11-27 03:00:00 to 04:00:00 UTC\nNothing happened: no event, no gap in sampling, no counter that stands out.\n"
	if got := textOf(t, r, 80); !r.Quiet || got != want {
		t.Errorf("%s", got)
	}
	page := pageOf(t, r)
	if len(page) > 12_000 || strings.Contains(page, "<section") || !strings.Contains(page, "Nothing happened") {
		t.Errorf("%d bytes:\n%s", len(page), page)
	}
	if text, err := json.Marshal(r); err != nil || !bytes.Contains(text, []byte(`"kinds":[],`)) || !bytes.Contains(text, []byte(`"quiet":true`)) {
		t.Errorf("%s, %v", text, err)
	}
}

// If something cannot be read, the report says so, and does not claim that all is
// quiet.
func TestUnknownIsSaid(t *testing.T) {
	b := New(options())
	if err := b.History(minutes{}, nil); err != nil {
		t.Fatal(err)
	}
	b.Unknown("The journal cannot be read: \x1b[2J.")
	r := b.Report()
	for _, text := range []string{textOf(t, r, 200), pageOf(t, r)} {
		if r.Quiet || strings.Contains(text, "Nothing happened") || !strings.Contains(text, `The journal cannot be read: \x1b[2J.`) || !strings.Contains(text, "The history has no minute of this time") {
			t.Errorf("%s", text)
		}
	}
}

func TestGaps(t *testing.T) {
	for what, c := range map[string]struct {
		change func(h minutes) minutes
		want   string
	}{
		"none":                     {func(h minutes) minutes { return h }, ""},
		"the daemon was restarted": {func(h minutes) minutes { h[80].First, h[80].From = true, h[80].Start.Add(30*time.Second); return h }, "03:19:58-03:20:30 the daemon was started"},
		"stopped for long": {func(h minutes) minutes {
			h[90].First, h[90].From = true, h[90].Start.Add(time.Second)
			return append(h[:70:70], h[90:]...)
		}, "03:09:58-03:30:01 the daemon was started"},
		"stopped since before": {func(h minutes) minutes {
			h[70].First, h[70].From = true, h[70].Start.Add(time.Second)
			return append(h[:50:50], h[70:]...)
		}, "03:00:00-03:10:01 the daemon was started"},
		"not written":              {func(h minutes) minutes { return append(h[:70:70], h[75:]...) }, "03:09:58-03:14:58 the minutes could not be written"},
		"asleep":                   {func(h minutes) minutes { h[70].Asleep = 40 * time.Second; return h }, "03:09:58-03:10:58 the machine was suspended for 40s"},
		"it ended":                 {func(h minutes) minutes { return h[:90] }, "03:29:58-04:00:00 no samples came any more: the daemon was stopped, or could not write"},
		"the history begins in it": {func(h minutes) minutes { h[70].First = true; return h[70:] }, "03:00:00-03:09:58 the history does not reach back further"},
		"stopped since long before": {func(h minutes) minutes {
			h[0].Start, h[70].First = h[0].Start.Add(-3*time.Hour), true
			return append(h[:1:1], h[70:]...)
		}, "03:00:00-03:09:58 the daemon was started"},
		"not written since long before": {func(h minutes) minutes {
			h[0].Start = h[0].Start.Add(-3 * time.Hour)
			return append(h[:1:1], h[70:]...)
		}, "03:00:00-03:09:58 the minutes could not be written"},
		"restarted the hour before": {func(h minutes) minutes { h[30].First, h[30].From = true, h[30].Start.Add(30*time.Second); return h }, ""},
	} {
		b := New(options())
		h := steadily()
		for _, m := range h {
			m.Samples = []history.Sample{{Series: seriesOf("kubeskoop_tcp_insegs"), Value: 1}}
		}
		if h = c.change(h); true {
			for _, m := range h {
				m.Elapsed = m.To.Sub(m.From)
			}
		}
		if err := b.History(h, nil); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, g := range b.Report().Gaps {
			got = append(got, g.From.Format(dayTime)+"-"+g.To.Format(dayTime)+" "+g.Why)
		}
		if strings.Join(got, "; ") != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

// A report on a pod that no record names does not claim that nothing happened to it.
func TestPodThatNoRecordNames(t *testing.T) {
	for pod, quiet := range map[string]bool{"shop/web-0": true, "shop/wbe-0": false} {
		o := options()
		o.Pods = []string{pod}
		b := New(o)
		h := steadily()
		for _, m := range h {
			m.Samples = []history.Sample{{Series: seriesOf(`kubeskoop_netdev_rxpackets{k8s_namespace="shop",k8s_pod="web-0"}`), Value: 100}}
		}
		if err := b.History(h, func(s *history.Series) bool { return s.Label("k8s_namespace")+"/"+s.Label("k8s_pod") == pod }); err != nil {
			t.Fatal(err)
		}
		r := b.Report()
		if text := textOf(t, r, 200); r.Quiet != quiet || strings.Contains(text, "Neither an event nor a counter of shop/wbe-0 is recorded in this time") == quiet {
			t.Errorf("%s: %s", pod, text)
		}
	}
}

// A report on the last minute, or on the future, does not claim that no counter moved:
// the history has no such minute yet.
func TestNoMinuteYet(t *testing.T) {
	for _, begins := range []time.Duration{-time.Minute, time.Hour} {
		o := options()
		o.Made = until
		o.Since, o.Until = until.Add(begins), until.Add(begins+time.Minute)
		b := New(o)
		if err := b.History(steadily(), nil); err != nil {
			t.Fatal(err)
		}
		// The last minute of steadily begins when the report's does.
		if r := b.Report(); r.Quiet != (begins < 0) {
			t.Errorf("%v: %+v", begins, r)
		}
		b = New(o)
		if err := b.History(steadily()[:119], nil); err != nil {
			t.Fatal(err)
		}
		if r := b.Report(); r.Quiet || !strings.Contains(textOf(t, r, 200), "The history has no minute of this time yet") {
			t.Errorf("%v: %+v", begins, r)
		}
	}
}

// If the clock was set within a minute, its increases are drawn at the time for which
// they were measured, and a gap does not leave the report's time.
func TestClockWasSet(t *testing.T) {
	for _, by := range []time.Duration{-2 * time.Hour, -20 * time.Minute, 20 * time.Minute, 50 * time.Hour} {
		h := steadily()
		m := h[100]
		m.From = m.To.Add(-m.Elapsed - by)
		m.Samples = []history.Sample{{Series: seriesOf("kubeskoop_tcpext_listendrops"), Value: 900}}
		b := New(options())
		if err := b.History(h, nil); err != nil {
			t.Fatal(err)
		}
		r := b.Report()
		if len(r.Counters) != 1 {
			t.Fatalf("%v: %+v", by, r.Counters)
		}
		at := int(m.To.Sub(since) / r.Step)
		if c := r.Counters[0].Minutes; Count(c) != 900 || Count(c[at-2:at+1]) != 900 {
			t.Errorf("%v: %v, and the minute ended at %d", by, c, at)
		}
		if len(r.Gaps) == 0 || !strings.Contains(r.Gaps[0].Why, "the clock was set by") {
			t.Errorf("%v: %+v", by, r.Gaps)
		}
		for _, g := range r.Gaps {
			if g.From.Before(since) || g.To.After(until) || g.To.Before(g.From) {
				t.Errorf("%v: %+v", by, g)
			}
		}
	}
}

// The current minute, and the one being written, are not a gap.
func TestNowIsNoGap(t *testing.T) {
	o := options()
	o.Until = since.Add(time.Hour + 2*time.Minute)
	o.Made = o.Until
	b := New(o)
	if err := b.History(steadily(), nil); err != nil {
		t.Fatal(err)
	}
	if r := b.Report(); len(r.Gaps) != 0 || !r.Quiet {
		t.Errorf("%+v", r.Gaps)
	}
}

// A report on several days has the date at each time: on its axis, of each minute, event
// and gap. If summer time ends in it, the zones of its ends differ.
func TestSeveralDays(t *testing.T) {
	for _, days := range []int{1, 30, 200} {
		o := options()
		o.Since = o.Until.AddDate(0, 0, -days)
		b := New(o)
		for _, e := range badHour(t) {
			b.Event(e)
		}
		if err := b.History(badHistory(t), nil); err != nil {
			t.Fatal(err)
		}
		r := b.Report()
		text, page := textOf(t, r, 80), pageOf(t, r)
		fits(t, text, 80)
		for _, s := range []string{text, page} {
			body, _, _ := strings.Cut(s, "Made by nodeskoop")
			for _, at := range regexp.MustCompile(`\b\d\d:\d\d\b`).FindAllStringIndex(body, -1) {
				if before := body[max(0, at[0]-6):at[0]]; !regexp.MustCompile(`^\d\d-\d\d $|[.:]$`).MatchString(before) { // or a port of an address, or seconds
					t.Errorf("%d days: no date in %q", days, before+body[at[0]:at[1]])
				}
			}
		}
		if want := o.Since.Format("01-02 15:04") + strings.Repeat(" ", 5); len(r.Counters) == 0 || !strings.Contains(text, want) {
			t.Errorf("%d days: %d counters, and %q is not in\n%s", days, len(r.Counters), want, text)
		}
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	time.Local = berlin
	defer func() { time.Local = time.UTC }()
	ends := time.Date(2026, 10, 25, 1, 0, 0, 0, time.UTC)
	for r, want := range map[*Report]string{
		{Since: ends.Add(-30 * time.Minute), Until: ends.Add(45 * time.Minute)}:                "2026-10-25 02:30:00 CEST to 02:45:00 CET",
		{Since: ends.Add(30 * time.Minute), Until: ends.Add(45 * time.Minute)}:                 "2026-10-25 02:30:00 to 02:45:00 CET",
		{Since: ends.Add(-30 * time.Hour).Add(-time.Minute), Until: ends.Add(-30 * time.Hour)}: "2026-10-23 20:59:00 to 21:00:00 CEST",
	} {
		if got := r.Span(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

// attacks are names that try to inject HTML.
var attacks = append([]string{`<script>alert(1)</script>`, `"><img src=x onerror=alert(1)>`, "</style><b>", "'&<>\"`", "javascript:alert(1)", "{{.}}", "]]>"}, nasty.Names...)

// nastyReport is a report in which all names are attacks.
func nastyReport(t testing.TB) *Report {
	t.Helper()
	b := New(Options{Node: attacks[0], Version: "x", Made: until, Since: since, Until: until, Pods: attacks, HostLabel: "hostNetwork"})
	h := steadily()
	for i, n := range attacks {
		for _, typ := range catalog.Events() {
			fields := map[string]string{"KUBESKOOP_EVENT": typ.Name, "KUBESKOOP_TIMESTAMP_US": strconv.FormatInt(since.Add(time.Minute).UnixMicro(), 10), "KUBESKOOP_LATENCY_NS": "5"}
			for _, name := range []string{"MESSAGE", "K8S_POD", "K8S_NAMESPACE", "KUBESKOOP_COMM", "KUBESKOOP_DISK", "KUBESKOOP_REASON", "KUBESKOOP_IFNAME", "KUBESKOOP_VECTOR", "KUBESKOOP_DST_POD", "KUBESKOOP_DST_NAMESPACE"} {
				fields[name] = n
			}
			e, err := event.FromFields(fields, since)
			if err != nil {
				t.Fatal(err)
			}
			b.Event(e)
		}
		for _, m := range h[100+i%10 : 112+i%8] {
			for _, s := range []*history.Series{
				{Metric: "kubeskoop_packetloss_reason", Labels: []history.Label{{Name: "k8s_namespace", Value: n}, {Name: "k8s_pod", Value: n}, {Name: "reason", Value: n}}},
				{Metric: n + "_seconds_bucket", Labels: []history.Label{{Name: n, Value: n}, {Name: "le", Value: "0.1"}}},
				{Metric: "nodeskoop_biolatency_seconds_bucket", Labels: []history.Label{{Name: "disk", Value: n}, {Name: "le", Value: "0.1"}}},
			} {
				m.Samples = append(m.Samples, history.Sample{Series: s, Value: 100})
			}
		}
	}
	b.gap(since, until, attacks[1])
	b.Unknown(attacks[2])
	if err := b.History(h, nil); err != nil {
		t.Fatal(err)
	}
	return b.Report()
}

// Whatever the names contain, a page shows them as text.
func TestNastyNames(t *testing.T) {
	r := nastyReport(t)
	if len(r.Counters) == 0 || len(r.Distributions) == 0 {
		t.Error("nothing nasty stands out")
	}
	page := pageOf(t, r)
	if r := nasty.Acts(page); r >= 0 {
		t.Errorf("%U in the page", r)
	}
	for _, tag := range regexp.MustCompile(`<[^>]*>`).FindAllString(page, -1) {
		if regexp.MustCompile(`(?i)<(script|img|iframe|object|link)|\son[a-z]+\s*=|href|src=`).MatchString(tag) {
			t.Errorf("the page has %s", tag)
		}
	}
	if n := strings.Count(page, "</style>"); n != 1 {
		t.Errorf("%d ends of the style", n)
	}
	text := textOf(t, r, 80)
	if r := nasty.Acts(text); r >= 0 {
		t.Errorf("%U in the text", r)
	}
	fits(t, text, 80)
}

const (
	badKinds = 3000
	badTimes = 7
)

// badDay is a day with more of everything than a report shows, and with names of the
// maximum length.
func badDay(t testing.TB) *Report {
	t.Helper()
	o := options()
	o.Since, o.Until = since.AddDate(0, 0, -1), since
	o.Made = o.Until
	b := New(o)
	long := strings.Repeat(`<"&'>`, 50)
	for i := range badKinds {
		for j := range badTimes {
			at := o.Since.Add(time.Duration(i*7+j*3600) * time.Second)
			e, err := event.FromFields(map[string]string{
				"KUBESKOOP_EVENT": catalog.Events()[i%len(catalog.Events())].Name, "KUBESKOOP_TIMESTAMP_US": strconv.FormatInt(at.UnixMicro(), 10),
				"MESSAGE": long + long, "K8S_NAMESPACE": long[:60], "K8S_POD": long + strconv.Itoa(i%600), "KUBESKOOP_REASON": long + strconv.Itoa(i), "KUBESKOOP_DISK": strconv.Itoa(i),
				"KUBESKOOP_COUNT": "2", "KUBESKOOP_FIRST_US": strconv.FormatInt(at.UnixMicro(), 10), "KUBESKOOP_LAST_US": strconv.FormatInt(at.Add(10*time.Minute).UnixMicro(), 10),
			}, at)
			if err != nil {
				t.Fatal(err)
			}
			b.Event(e)
		}
	}
	for i := range 500 {
		b.gap(o.Since.Add(time.Duration(i)*time.Minute), o.Since.Add(time.Duration(i)*time.Minute+time.Second), "the daemon was started")
	}
	return b.Report()
}

// The HTML page of a day with very many events is small enough to mail, and states what
// it leaves out.
func TestBadDay(t *testing.T) {
	r := badDay(t)
	var told uint64
	for _, k := range r.Kinds {
		told += k.Count
	}
	if r.Events != 2*badKinds*badTimes || told+r.MoreEvents != r.Events || len(r.Kinds) != maxKinds || len(r.Timeline) > maxLanes {
		t.Errorf("%d events, %d in %d kinds and %d more; %d lanes", r.Events, told, len(r.Kinds), r.MoreEvents, len(r.Timeline))
	}
	page := pageOf(t, r)
	if len(page) > largestPage {
		t.Errorf("%d bytes", len(page))
	}
	t.Logf("%d bytes", len(page))
	for _, want := range []string{"more kinds are not shown.", "events are of further kinds.", "more rows are not shown.", "more gaps are not shown."} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is not said", want)
		}
	}
	if text := textOf(t, r, 80); strings.Count(text, "\n") > 150 {
		t.Errorf("%d lines of text", strings.Count(text, "\n"))
	} else {
		fits(t, text, 80)
	}
}
