package top

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/vt"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/event"
	"nodeskoop/collect/owner"
	"nodeskoop/collect/trace"
	"nodeskoop/internal/kernel"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/nasty"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/nsnet"
)

func TestShortNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.04: "<0.1", 0.5: "0.5", 9.94: "9.9", 9.96: "10", 999: "999", 9999: "9999", 9999.9: "10.0k", 12345: "12.3k",
		99_960: "100k", 123_456: "123k", 999_499: "999k", 999_600: "1.0M", 1.5e9: "1.5G", 2e12: "2.0T", 3e15: "3.0P", 4e18: "4.0E",
	} {
		if got := short(v); got != want || len(got) > 5 {
			t.Errorf("short(%v) = %q, want %q", v, got, want)
		}
	}
}

func columnAt(t *testing.T, name string) int {
	t.Helper()
	for i, c := range columns {
		if c.Name == name {
			return i
		}
	}
	t.Fatalf("no column %s", name)
	return 0
}

func TestTopColumnsAreTheCatalogues(t *testing.T) {
	keys := map[rune]string{'q': "end", '?': "help", 'h': "help", '/': "filter", '<': "", '>': "", 'r': "reverse", ' ': "pause", 'n': "name"}
	for _, c := range columns {
		if other, taken := keys[c.key]; taken {
			t.Errorf("the key %c of %s is that of %q", c.key, c.Name, other)
		}
		keys[c.key] = c.Name
		if len(c.head) > c.cells() || c.shows == "" || c.unit != perSecond && c.unit != rightNow {
			t.Errorf("%+v", c)
		}
		for _, name := range c.metrics {
			if name == resetsSum || name == hostDropsSum {
				continue
			}
			m := catalog.MetricByName(name)
			if m == nil || m.Probe() != c.probe || m.Scope != catalog.PerNetns || (m.Type == catalog.Gauge) != c.gauge() {
				t.Errorf("%s: the metric %s is %+v", c.Name, name, m)
			}
		}
	}
}

// A rate comes from an uninterrupted counter of one pod, or is missing.
func TestTopRates(t *testing.T) {
	drops, slow, queue := columnAt(t, "drops"), columnAt(t, "socket_slow"), columnAt(t, "tx_queue")
	name := podName{"shop", "web"}
	values := func(drops, read, write, queue float64) *counters {
		c := &counters{sandbox: "one", netns: 7, values: newAmounts()}
		for metric, v := range map[string]float64{
			"kubeskoop_packetloss_total":       drops,
			"kubeskoop_socketlatency_read1ms":  read,
			"kubeskoop_socketlatency_write1ms": write,
			"kubeskoop_tcpsummary_tcptxqueue":  queue,
			"kubeskoop_tcpretrans_total":       1,
			"kubeskoop_kernellatency_rxslow":   1,
			"kubeskoop_kernellatency_txslow":   1,
			"kubeskoop_tcpsummary_tcprxqueue":  0,
			"kubeskoop_netdev_rxbytes":         1,
			"kubeskoop_netdev_txbytes":         1,
			"kubeskoop_netdev_rxpackets":       1,
			"kubeskoop_netdev_txpackets":       1,
			resetsSum:                          0,
			hostDropsSum:                       drops / 2,
		} {
			c.values.set(metric, v)
		}
		return c
	}
	was := values(10, 5, 6, 100)
	other := values(30, 5, 6, 100)
	other.sandbox = "two"
	without := values(10, 5, 6, 100)
	without.values.set("kubeskoop_socketlatency_write1ms", math.NaN())
	for _, c := range []struct {
		name string
		last map[podName]*counters
		seen int
		now  *counters
		want [3]string // drops, socket latency, queue
	}{
		{"twice", map[podName]*counters{name: was}, 3, values(30, 6, 8, 70), [3]string{"10", "1.5", "70"}},
		{"nothing", map[podName]*counters{name: was}, 3, was, [3]string{"0", "0", "100"}},
		{"the first sample", nil, 3, was, [3]string{"-", "-", "100"}},
		{"a new pod", map[podName]*counters{{"shop", "db"}: was}, 3, was, [3]string{"-", "-", "100"}},
		{"another of the same name", map[podName]*counters{name: was}, 3, other, [3]string{"-", "-", "100"}},
		{"one counter was reset", map[podName]*counters{name: was}, 3, values(4, 5, 6, 100), [3]string{"-", "0", "100"}},
		{"one of two was reset, hidden by the other", map[podName]*counters{name: was}, 3, values(10, 2, 20, 100), [3]string{"0", "-", "100"}},
		{"one of two is missing now", map[podName]*counters{name: was}, 3, without, [3]string{"0", "-", "100"}},
		{"one of two was missing", map[podName]*counters{name: without}, 3, was, [3]string{"0", "-", "100"}},
		{"loaded while the last sample was taken", map[podName]*counters{name: was}, 2, values(30, 6, 8, 70), [3]string{"-", "-", "70"}},
	} {
		s := &Sampler{columns: columns, last: c.last, seen: map[string]int{}}
		for _, col := range columns {
			s.seen[col.Name] = c.seen
		}
		r := s.row(name, c.now, 2*time.Second, false)
		for i, at := range []int{drops, slow, queue} {
			if got := r.cells[at].text(&columns[at]); got != c.want[i] {
				t.Errorf("%s: %s is %s, want %s", c.name, columns[at].Name, got, c.want[i])
			}
		}
		// Suppressed events make a number a lower bound.
		at := columnAt(t, hostDrops)
		whole, held := r.cells[at].text(&columns[at]), s.row(name, c.now, 2*time.Second, true)
		if got := held.cells[at].text(&columns[at]); got != strings.Replace(whole+"+", "-+", "-", 1) {
			t.Errorf("%s: losses on the host, of which some were held back: %s, without %s", c.name, got, whole)
		}
	}
}

func TestReasons(t *testing.T) {
	for _, c := range []struct {
		now, last map[string]float64
		second    float64
		want      []reason
	}{
		{map[string]float64{"A": 100, "B": 9}, map[string]float64{"A": 99, "B": 2}, 2, []reason{{"B", 9, 3.5}, {"A", 100, 0.5}}},
		{map[string]float64{"A": 2, "B": 2}, nil, 1, []reason{{"A", 2, 2}, {"B", 2, 2}}},
		{map[string]float64{"A": 2, "none": 0}, map[string]float64{"A": 2}, 1, []reason{{"A", 2, 0}}},
		{map[string]float64{"A": 2, "B": 1}, map[string]float64{"A": 3}, 1, []reason{{"B", 1, 1}, {"A", 2, -1}}}, // the counter was reset
		{map[string]float64{"A": 2}, map[string]float64{"A": 1}, 0, []reason{{"A", 2, -1}}},
		{nil, nil, 1, nil},
	} {
		if got := reasonsOf(c.now, c.last, c.second); !slices.Equal(got, c.want) {
			t.Errorf("%v after %v: %v, want %v", c.now, c.last, got, c.want)
		}
	}
}

// table creates a sample of rows: drops per second by name; -1 means unknown.
func table(rows map[string]float64) *Table {
	t := &Table{at: time.Unix(0, 0), interval: time.Second, columns: columns}
	for name, v := range rows {
		r := row{host: name == "host", cells: make([]cell, len(columns))}
		if !r.host {
			r.namespace, r.pod, _ = strings.Cut(name, "/")
		}
		for i := range r.cells {
			r.cells[i] = cell{known: v >= 0, count: v, second: v}
		}
		t.rows = append(t.rows, r)
	}
	return t
}

func TestTopOrder(t *testing.T) {
	rows := table(map[string]float64{"host": 3, "shop/web": 9, "shop/db": -1, "infra/dns": 9})
	filter := func(pods ...string) session.Filter {
		w, err := session.NewFilter(pods, nil)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for _, c := range []struct {
		order Order
		want  string
	}{
		{Order{Column: "drops"}, "infra/dns shop/web host shop/db"},
		{Order{Column: "drops", Reverse: true}, "host infra/dns shop/web shop/db"},
		{Order{Column: "pod"}, "host infra/dns shop/db shop/web"},
		{Order{Column: "pod", Reverse: true}, "shop/web shop/db infra/dns host"},
		{Order{Column: "drops", Filter: "SHOP/"}, "shop/web shop/db"},
		{Order{Column: "drops", Filter: "nothing"}, ""},
		{Order{Column: "drops", Pods: filter("web", "host")}, "shop/web host"},
		{Order{Column: "drops", Pods: filter("infra/web")}, ""},
	} {
		var got []string
		for _, r := range c.order.apply(rows) {
			got = append(got, r.name())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v, want %s", c.order, got, c.want)
		}
	}
}

// deviceCounters returns the four counters of eth0, independently of the probe.
func deviceCounters(t *testing.T, s *nsnet.Space) [4]float64 {
	t.Helper()
	var links []struct {
		Stats64 struct {
			RX, TX struct{ Bytes, Packets float64 }
		} `json:"stats64"`
	}
	if err := json.Unmarshal([]byte(s.Run("ip", "-s", "-j", "link", "show", "eth0")), &links); err != nil {
		t.Fatal(err)
	}
	x := links[0].Stats64
	return [4]float64{x.RX.Bytes, x.TX.Bytes, x.RX.Packets, x.TX.Packets}
}

// newSampler creates a Sampler of pods, and of a host with the namespace in a file.
func newSampler(t testing.TB, pods owner.Pods, hostFile string) *Sampler {
	t.Helper()
	host, err := kernel.Inode(hostFile)
	if err != nil {
		t.Fatal(err)
	}
	events := newTally()
	hub := event.NewHub(event.HubOptions{HostLabel: hostLabel, HostNetns: host, Pods: pods, NodeAddrs: func() ([]netip.Addr, error) { return kernel.AddrsOf(hostFile) }}, events)
	tracer := trace.New(trace.Options{Hub: hub, Limits: session.OnlookerEvents})
	r, err := collect.NewRunner(collect.Options{Enabled: Probes(), Probes: session.WithoutStacks(nil), HostLabel: hostLabel, HostNetns: hostFile, Pods: pods}, session.Factories(tracer)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		if err := tracer.Close(); err != nil {
			t.Error(err)
		}
		ctx, stop := context.WithTimeout(context.Background(), 20*time.Second)
		defer stop()
		if err := hub.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return &Sampler{runner: r, tracer: tracer, pods: pods, status: func() error { return nil }, host: host, files: hostFiles{hostFile, "/proc"}, columns: columns, events: events, lost: func() uint64 { return hub.Counts(packetLoss).Lost }}
}

// top shows exactly the traffic caused between two samples.
func TestTopCountsWhatWasCaused(t *testing.T) {
	need.Program(t, "nft")
	a, b := nsnet.New(t), nsnet.New(t)
	nsnet.Connect(a, b)
	b.Run("nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 9 drop")
	pods := &nsnet.Pods{List: []*owner.Pod{a.Pod("a"), b.Pod("b")}}
	s := newSampler(t, pods, "/proc/self/ns/net")

	first := s.sample()
	for _, row := range first.rows {
		for i, c := range row.cells {
			if c.known != columns[i].gauge() {
				t.Errorf("the first sample of %s: %s is known: %v", row.name(), columns[i].Name, c.known)
			}
		}
	}
	for _, x := range first.troubles {
		if x.failed {
			t.Fatalf("probe %s: %s", x.probe, x.text)
		}
	}

	listener := b.Listen("tcp", "10.0.0.2:80")
	out := a.Dial("udp", "10.0.0.2:9")
	const drops, refused, written = 40, 7, 12345
	for try := 1; ; try++ {
		before := deviceCounters(t, b)
		start := s.sample()
		quiet := deviceCounters(t, b) == before

		for i := range drops {
			fmt.Fprintf(out, "%d", i)
		}
		for range refused {
			a.Do(func() {
				if c, err := net.Dial("tcp", "10.0.0.2:7"); err == nil {
					c.Close()
					t.Error("a closed port accepts connections")
				}
			})
		}
		// Unread data wait in b's receive queue.
		client := a.Dial("tcp", "10.0.0.2:80")
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Write(make([]byte, written)); err != nil {
			t.Fatal(err)
		}
		// Everything is acknowledged, so everything has arrived.
		testkit.Eventually(t, "the data have arrived", func() bool {
			rows := strings.Fields(a.Run("ss", "-Htn", "dport", "=", ":80"))
			return len(rows) > 2 && rows[2] == "0"
		})

		after := deviceCounters(t, b)
		end := s.sample()
		quiet = quiet && deviceCounters(t, b) == after
		server.Close()
		client.Close()
		if !quiet {
			// The kernel sent a packet of its own during a sample.
			if try == 5 {
				t.Fatal("the namespaces never keep quiet")
			}
			continue
		}
		if end.interval != end.at.Sub(start.at) || end.interval <= 0 {
			t.Fatalf("an interval of %v between %v and %v", end.interval, start.at, end.at)
		}
		want := map[string]map[string]float64{
			"test/a": {"resets": refused, hostDrops: 0},
			"test/b": {"drops": drops + refused, "resets": refused, "rx_queue": written, "retransmits": 0, hostDrops: 0,
				"rx_bytes": after[0] - before[0], "tx_bytes": after[1] - before[1], "rx_packets": after[2] - before[2], "tx_packets": after[3] - before[3]},
		}
		for _, row := range end.rows {
			for name, w := range want[row.name()] {
				c := row.cells[columnAt(t, name)]
				if !c.known || c.count != w {
					t.Errorf("%s of %s: %+v, want %v", name, row.name(), c, w)
				}
				if columns[columnAt(t, name)].gauge() {
					continue
				}
				if rate := w / end.interval.Seconds(); c.second != rate {
					t.Errorf("%s of %s: %v a second, want %v in %v", name, row.name(), c.second, w, end.interval)
				}
			}
			if row.name() == "test/b" && row.reason != "NETFILTER_DROP" {
				t.Errorf("the leading reason is %q", row.reason)
			}
			delete(want, row.name())
		}
		if len(want) > 0 {
			t.Errorf("no rows of %v", want)
		}
		break
	}

	// Another pod of the same name: its values are unknown until the next sample.
	again := b.Pod("b")
	again.ID = "b2"
	pods.List[1] = again
	for _, known := range []bool{false, true} {
		for _, row := range s.sample().rows {
			if c := row.cells[columnAt(t, "drops")]; row.name() == "test/b" && c.known != known {
				t.Errorf("the pod that replaced b: drops known: %v, want %v", c.known, known)
			}
		}
	}
}

// screenOf runs a view on an in-memory terminal.
func screenOf(t *testing.T, columns, rows int, v *View) (tables chan *Table, text func() string, keys func(string), ended chan struct{}) {
	t.Helper()
	mock := vt.NewMockTerm(vt.MockOptSize{X: vt.Col(columns), Y: vt.Row(rows)})
	screen, err := tcell.NewTerminfoScreenFromTty(mock)
	if err != nil {
		t.Fatal(err)
	}
	if err := screen.Init(); err != nil {
		t.Fatal(err)
	}
	v.Screen = screen
	tables, ended = make(chan *Table), make(chan struct{})
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		defer close(ended)
		v.loop(ctx, tables)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
		screen.Fini()
	})
	text = func() string {
		var b strings.Builder
		for y := range vt.Row(rows) {
			line := ""
			for x := range vt.Col(columns) {
				c := mock.GetCell(vt.Coord{X: x, Y: y}).C
				if c == "" {
					c = " "
				}
				line += c
			}
			b.WriteString(strings.TrimRight(line, " ") + "\n")
		}
		return b.String()
	}
	return tables, text, func(s string) { mock.SendRaw([]byte(s)) }, ended
}

// until waits for the screen to satisfy ok.
func until(t *testing.T, text func() string, what string, ok func(string) bool) {
	t.Helper()
	testkit.Await(t, func() error {
		if screen := text(); !ok(screen) {
			return fmt.Errorf("%s: the screen is\n%s", what, screen)
		}
		return nil
	})
}

// names returns the first words of the table's rows.
func names(text string) string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		if f := strings.Fields(line); len(f) > 3 && (f[0] == "host" || strings.Contains(f[0], "/")) {
			out = append(out, f[0])
		}
	}
	return strings.Join(out, " ")
}

func TestTopScreen(t *testing.T) {
	v := &View{Order: Order{Column: "drops"}, Interval: time.Second}
	tables, text, keys, ended := screenOf(t, 150, 12, v)
	until(t, text, "before the first sample", func(s string) bool { return strings.Contains(s, "loading the probes") })
	first := table(map[string]float64{"host": -1, "shop/web": -1, "shop/db": -1})
	first.troubles = []trouble{{"kernellatency", "the process lacks CAP_BPF", true, true}, {"socketlatency", "does not see writes", false, false}}
	tables <- first
	until(t, text, "the first sample", func(s string) bool {
		return names(s) == "host shop/db shop/web" && strings.Contains(s, "no kernellatency here: the process lacks CAP_BPF") && strings.Contains(s, "limited on this kernel: socketlatency")
	})
	tables <- table(map[string]float64{"host": 1, "shop/web": 5, "shop/db": 3})
	until(t, text, "the second", func(s string) bool { return names(s) == "shop/web shop/db host" })
	keys("r")
	until(t, text, "reversed", func(s string) bool { return names(s) == "host shop/db shop/web" })
	keys("r")
	keys("n")
	until(t, text, "by name", func(s string) bool { return names(s) == "host shop/db shop/web" })
	keys(">")
	until(t, text, "by the next column", func(s string) bool { return names(s) == "shop/web shop/db host" })
	keys("/")
	keys("SHOP/d")
	until(t, text, "a filter", func(s string) bool { return names(s) == "shop/db" && strings.Contains(s, "filter: SHOP/d_") })
	keys("\x7f")
	until(t, text, "a shorter filter", func(s string) bool { return names(s) == "shop/web shop/db" })
	keys("\r")
	until(t, text, "the filter is kept", func(s string) bool { return strings.Contains(s, `filter "SHOP/"`) && strings.Contains(s, "q end") })
	keys("?")
	until(t, text, "the keys", func(s string) bool { return strings.Contains(s, "open the page of the selected pod") })
	keys("?")
	keys("\x1b")
	until(t, text, "no filter", func(s string) bool { return names(s) == "shop/web shop/db host" })
	keys(" ")
	until(t, text, "paused", func(s string) bool { return strings.Contains(s, "PAUSED") })
	tables <- table(map[string]float64{"host": 99})
	keys("p") // selecting another column redraws the old table
	until(t, text, "still paused", func(s string) bool { return names(s) == "shop/web shop/db host" })
	keys(" ")
	until(t, text, "no longer paused", func(s string) bool { return !strings.Contains(s, "PAUSED") })
	many := map[string]float64{}
	for i := range 40 {
		many[fmt.Sprintf("shop/web-%02d", i)] = float64(100 - i)
	}
	tables <- table(many)
	until(t, text, "many pods", func(s string) bool {
		return strings.HasPrefix(names(s), "shop/web-00 shop/web-01") && strings.Contains(s, "40 of 40 rows")
	})
	// The selection moves down and scrolls the window; Enter opens the selected
	// row.
	opened := make(chan podName, 1)
	v.open = func(name *podName) {
		if name != nil {
			opened <- *name
		}
	}
	keys("\x1b[B\r")
	if name := <-opened; name != (podName{"shop", "web-01"}) {
		t.Errorf("Enter opens %v", name)
	}
	until(t, text, "a page that is not sampled yet", func(s string) bool {
		return strings.HasPrefix(s, "shop/web-01") && strings.Contains(s, "reading the details")
	})
	x := table(many)
	x.page = pageOfTest(podName{"shop", "web-01"})
	tables <- x
	until(t, text, "a page", func(s string) bool { return strings.Contains(s, "DROPS") && strings.Contains(s, "10.244.0.17") })
	keys("\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~")
	until(t, text, "the end of the page", func(s string) bool { return strings.Contains(s, "PROCESSES") && strings.Contains(s, "nginx") })
	keys("\x1b")
	until(t, text, "the table, as it was", func(s string) bool { return strings.HasPrefix(names(s), "shop/web-00 shop/web-01 ") })
	keys("\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~\x1b[6~")
	until(t, text, "the end", func(s string) bool { return strings.HasSuffix(names(s), "shop/web-39") })
	keys("\x1b[H")
	until(t, text, "the beginning", func(s string) bool { return strings.HasPrefix(names(s), "shop/web-00 shop/web-01 ") })
	keys("q")
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("q does not end it")
	}
}

func TestTopOnSmallScreens(t *testing.T) {
	rows := table(map[string]float64{"host": 1, "shop/web": 12345, strings.Repeat("n", 63) + "/" + strings.Repeat("p", 200): 7})
	rows.troubles = []trouble{{"packetloss", strings.Repeat("why ", 100), true, true}}
	for _, size := range [][2]int{{1, 1}, {19, 30}, {20, 5}, {40, 6}, {80, 24}, {300, 60}} {
		v := &View{Order: Order{Column: "drops"}, Interval: time.Second}
		tables, text, keys, _ := screenOf(t, size[0], size[1], v)
		tables <- rows
		until(t, text, fmt.Sprint(size), func(s string) bool {
			return strings.Contains(s, "top ") || strings.Contains(s, "too small") || size[0] < 10
		})
		keys("?")
	}
}

func TestTopJSONAndPlain(t *testing.T) {
	x := table(map[string]float64{"host": 2, "shop/web": -1})
	var b bytes.Buffer
	if err := x.WriteJSON(&b, Order{Column: "drops"}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	var host, web map[string]any
	if len(lines) != 2 || json.Unmarshal([]byte(lines[0]), &host) != nil || json.Unmarshal([]byte(lines[1]), &web) != nil {
		t.Fatalf("%s", b.String())
	}
	if host["host"] != true || host["drops"] != 2.0 || host["drops_per_second"] != 2.0 || web["pod"] != "web" || web["drops"] != nil {
		t.Errorf("%s", b.String())
	}
	if _, there := web["rx_bytes_per_second"]; !there {
		t.Error("what is not known is left out, not null")
	}
	b.Reset()
	if err := x.Write(&b, Order{Column: "drops"}, 0); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); strings.Contains(got, "\x1b") || names(got) != "host shop/web" {
		t.Errorf("%q", got)
	}
}

// A plain table is as wide as the terminal, and names the columns left out.
func TestPlainTableFits(t *testing.T) {
	x := nodeOf(30, 38)
	for _, width := range []int{20, 40, 80, 120, 200} {
		var b bytes.Buffer
		if err := x.Write(&b, Order{Column: "tx_bytes"}, width); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if n := column.Width(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%d columns: a line takes %d: %q", width, n, line)
			}
		}
		if !strings.Contains(b.String(), "TX-B") || strings.Contains(b.String(), "no room for") != (width == 80 || width == 120) {
			t.Errorf("%d columns:\n%s", width, b.String())
		}
	}
}

// The name of a pod cannot affect a terminal.
func TestTopIsSafe(t *testing.T) {
	x := &Table{at: time.Now(), interval: time.Second, columns: columns[:2]}
	for _, n := range nasty.Names {
		x.rows = append(x.rows, row{namespace: n, pod: n, cells: make([]cell, 2), reason: n})
	}
	for name, write := range map[string]func(*bytes.Buffer) error{
		"table": func(b *bytes.Buffer) error { return x.Write(b, Order{Column: "pod"}, 0) },
		"JSON":  func(b *bytes.Buffer) error { return x.WriteJSON(b, Order{Column: "pod"}) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		if r := nasty.Acts(b.String()); r >= 0 {
			t.Errorf("top's %s: %U in %q", name, r, b.String())
		}
	}
}

// Head, rows, footer and log of top contain no raw control characters, whatever
// fails.
func TestTopScreenIsSafe(t *testing.T) {
	for _, n := range nasty.Names {
		log := new(Log)
		log.lines = append(log.lines, "time=x level=WARN msg=\""+n+"\"")
		v := &View{Order: Order{Column: "drops", Filter: ""}, Interval: time.Second, Log: log}
		x := table(map[string]float64{"host": 1})
		x.rows = append(x.rows, row{namespace: n, pod: n, cells: make([]cell, len(x.columns)), reason: n})
		x.containerd = errors.New("dial " + n)
		x.troubles = []trouble{{"kernellatency", n, true, true}}
		tables, text, _, _ := screenOf(t, 80, 24, v)
		tables <- x
		until(t, text, fmt.Sprintf("%q", n), func(s string) bool {
			return strings.Contains(s, "pods are not shown: dial") && strings.Contains(s, "no kernellatency here") && strings.Contains(s, "2 of 2 rows") && strings.Contains(s, "q end")
		})
		for _, line := range v.frame(80, 24) {
			for _, s := range line {
				if r := nasty.Acts(s.text); r >= 0 || strings.Contains(s.text, "\n") {
					t.Errorf("%q: %U on the screen: %q", n, r, s.text)
				}
			}
		}
	}
}
