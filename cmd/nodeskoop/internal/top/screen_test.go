package top

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/gdamore/tcell/v3"

	"nodeskoop/cmd/nodeskoop/internal/column"
	"nodeskoop/collect/catalog"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/nasty"
	"nodeskoop/internal/testkit/terminal"
)

// screenEnv makes the test binary draw a node on its terminal: with as many pods
// as the value says, or with the pods named nastyPods.
const screenEnv = "NODESKOOP_TEST_TOP_PODS"

const nastyPods = "nasty"

// nastyNode is a node whose pods have names that attack a terminal.
func nastyNode() *Table {
	t := nodeOf(0, 0)
	for i, n := range nasty.Names {
		t.rows = append(t.rows, row{namespace: n, pod: n, cells: make([]cell, len(columns)), reason: n, netns: uint64(i)})
	}
	slices.SortFunc(t.rows, byName)
	t.containerd = errors.New("dial " + nasty.Names[0])
	return t
}

func TestMain(m *testing.M) {
	if n := os.Getenv(screenEnv); n != "" {
		os.Exit(drawNode(n))
	}
	os.Exit(m.Run())
}

// drawNode draws a node until a signal ends it. Each SIGUSR1 draws the next sample.
func drawNode(pods string) int {
	n := 0
	fmt.Sscan(pods, &n)
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer screen.Fini()
	sample := make(chan os.Signal, 1)
	signal.Notify(sample, syscall.SIGUSR1)
	tables, opened := make(chan *Table), make(chan *podName, 1)
	v := &View{Screen: screen, Order: Order{Column: "drops"}, Interval: time.Second, open: func(name *podName) { opened <- name }}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		number, t := 0, nodeOf(n, 0)
		if pods == nastyPods {
			t = nastyNode()
		}
		for {
			tables <- t
			select {
			case <-sample:
				number++
				t = nodeOf(n, number)
			case name := <-opened:
				t = nodeOf(n, number)
				if name != nil {
					t.page = pageOfTest(*name)
				}
			}
		}
	}()
	v.loop(ctx, tables)
	return 0
}

var workloads = []string{
	"kube-system/coredns", "kube-system/kube-proxy", "monitoring/prometheus-node-exporter", "shop/web", "shop/checkout-worker",
	"shop/db", "batch/svc11", "ingress-nginx/ingress-nginx-controller", "logging/fluent-bit", "日本語の名前空間/画像処理の仕事",
}

const podLetters = "bcdfghjklmnpqrstvwxz2456789"

// nodeOf returns a sample of a node with that many realistically named pods. Each
// sample changes the numbers of a tenth of them.
func nodeOf(pods, number int) *Table {
	t := &Table{at: time.Date(2026, 11, 27, 22, 41, number, 0, time.Local), interval: time.Second, columns: columns}
	suffix := func(seed, n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = podLetters[(seed*31+i*i*7+i*seed)%len(podLetters)]
		}
		return string(b)
	}
	for i := range pods + 1 {
		r := row{host: i == pods, cells: make([]cell, len(columns)), netns: uint64(4026532000 + i)}
		if !r.host {
			namespace, name, _ := strings.Cut(workloads[i%len(workloads)], "/")
			r.namespace, r.pod = namespace, name+"-"+suffix(i, 10)+"-"+suffix(i+7, 5)
		}
		for j := range r.cells {
			value := float64((i*37 + j*101) % 1000 * i)
			if i%10 == number%10 {
				value += 5000 * float64(number%2+1)
			}
			if j < 6 {
				value = 0
				if i%9 == 4 {
					value = float64(i*(j+1)) / 8
				}
			}
			r.cells[j] = cell{known: true, count: value, second: value}
		}
		if r.cells[0].second > 0 {
			r.reason = []string{"NETFILTER_DROP", "NO_SOCKET", "TCP_INVALID_SEQUENCE"}[i/9%3]
		}
		if i == 14 {
			r.cells[1].least = true
		}
		t.rows = append(t.rows, r)
	}
	slices.SortFunc(t.rows, byName)
	t.troubles = []trouble{{"kernellatency", "does not see packets of raw sockets", false, false}}
	return t
}

// pageOfTest is a page with every possible part.
func pageOfTest(name podName) *page {
	addr := netip.MustParseAddr
	at := time.Date(2026, 11, 27, 22, 41, 38, 0, time.Local)
	r := row{namespace: name.namespace, pod: name.pod, cells: make([]cell, len(columns))}
	for i := range r.cells {
		r.cells[i] = cell{known: true, count: float64(i), second: float64(i)}
	}
	typ := catalog.EventByName
	return &page{
		name: name, at: at, begun: at.Add(-98 * time.Second), columns: columns, row: &r,
		pod: &owner.Pod{ID: "sandbox", Namespace: name.namespace, Name: name.pod, Netns: 4026532017,
			Addrs: []netip.Addr{addr("10.244.0.17"), addr("fd00::17")}, Started: at.Add(-3 * time.Hour)},
		reasons:   []reason{{"NETFILTER_DROP", 122, 5.5}, {"NO_SOCKET", 3, 0}, {"QDISC_DROP", 1, -1}},
		hostDrops: "17+",
		kinds: []kind{
			{kindKey{typ: typ("PacketLoss"), peer: "from shop/load-0 to :8080", reason: "NETFILTER_DROP", function: "nf_hook_slow"}, 122, at.Add(-time.Second), 0},
			{kindKey{typ: typ("PacketLoss"), host: true, peer: "to 192.0.2.7:443", reason: "NETFILTER_DROP", function: "nf_hook_slow"}, 17, at.Add(-2 * time.Second), 0},
			{kindKey{typ: typ("TCPRetrans"), peer: "to 192.0.2.7:443"}, 9, at.Add(-3 * time.Second), 0},
			{kindKey{typ: typ("SOCKETLAT_READSLOW"), peer: "from shop/load-0 to :8080", comm: "nginx"}, 2, at.Add(-time.Minute), 341 * time.Millisecond},
		},
		sockets: socketList{
			listeners: []listener{{netip.MustParseAddrPort("[::]:8080"), 3, 128}, {netip.MustParseAddrPort("127.0.0.1:9000"), 0, 4096}},
			peers: []peer{
				{addr: addr("10.244.0.21"), pod: "shop/load-0", port: 8080, inbound: true, connections: 112, rx: 12345},
				{addr: addr("192.0.2.7"), port: 443, connections: 2, tx: 1448},
				{addr: addr("2001:db8::7"), port: 443, connections: 1},
			},
		},
		processes: []process{{4711, "nginx"}, {4712, "nginx"}},
	}
}

// shown returns the text of a frame.
func shown(lines []line) string {
	var b strings.Builder
	for _, l := range lines {
		text := ""
		for _, s := range l {
			text += s.text
		}
		b.WriteString(strings.TrimRight(text, " ") + "\n")
	}
	return b.String()
}

var sizes = [][2]int{{40, 10}, {80, 24}, {120, 30}, {200, 50}}

// TestGoldenScreens compares screens of the usual sizes with golden files.
func TestGoldenScreens(t *testing.T) {
	t.Setenv("TZ", "UTC")
	for _, size := range sizes {
		width, height := size[0], size[1]
		for name, v := range map[string]*View{
			"table":     {Order: Order{Column: "drops"}},
			"sorted":    {Order: Order{Column: "tx_packets"}},
			"scrolled":  {Order: Order{Column: "drops"}, skip: 5},
			"help":      {Order: Order{Column: "drops"}, help: true},
			"page":      {Order: Order{Column: "drops"}, page: &podName{"shop", "web-7d9f8b6c44-x2k9p"}, shown: pageOfTest(podName{"shop", "web-7d9f8b6c44-x2k9p"})},
			"page-last": {Order: Order{Column: "drops"}, page: &podName{"shop", "web-7d9f8b6c44-x2k9p"}, shown: pageOfTest(podName{"shop", "web-7d9f8b6c44-x2k9p"}), pageScroll: 1 << 20},
		} {
			v.Interval, v.table = time.Second, nodeOf(60, 38)
			lines := v.frame(width, height)
			for i, l := range lines {
				n := 0
				for _, s := range l {
					n += column.Width(s.text)
				}
				if n > width && !strings.HasPrefix(name, "page") {
					t.Errorf("%s, %dx%d: line %d takes %d columns", name, width, height, i, n)
				}
			}
			if len(lines) > height {
				t.Errorf("%s, %dx%d: %d lines", name, width, height, len(lines))
			}
			var cut strings.Builder // cut like the screen
			for l := range strings.Lines(shown(lines)) {
				cut.WriteString(strings.TrimRight(column.Pad(strings.TrimSuffix(l, "\n"), width, true), " ") + "\n")
			}
			testkit.Golden(t, fmt.Sprintf("%s-%dx%d.txt", name, width, height), []byte(cut.String()))
		}
	}
}

// asDrawn returns a text as package terminal reports it: a wide character is
// followed by an empty cell, and combining marks are dropped.
func asDrawn(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.Is(unicode.M, r) {
			continue
		}
		b.WriteRune(r)
		if column.Width(string(r)) == 2 {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// awaitFrame waits until a terminal shows the view's frame.
func awaitFrame(t *testing.T, x *terminal.Terminal, v *View, what string, width, height int) {
	t.Helper()
	wanted := ""
	for l := range strings.Lines(shown(v.frame(width, height))) {
		wanted += strings.TrimRight(asDrawn(column.Pad(strings.TrimSuffix(l, "\n"), width, true)), " ") + "\n"
	}
	if err := x.Wait(testkit.Patience, func(s string) bool { return s == strings.TrimRight(wanted, "\n")+"\n" }); err != nil {
		t.Fatalf("%s at %dx%d: %v\nwant\n%s", what, width, height, err, wanted)
	}
}

// TestTopIsResized: in a real terminal each size shows the right frame, whatever
// the previous size, and keeps order, selection and page.
func TestTopIsResized(t *testing.T) {
	x, err := terminal.Start(80, 24, []string{screenEnv + "=60", "LC_ALL=C.UTF-8"}, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	v := &View{Order: Order{Column: "drops"}, Interval: time.Second, table: nodeOf(60, 0)}
	want := func(what string, width, height int) {
		t.Helper()
		awaitFrame(t, x, v, what, width, height)
	}
	resize := func(width, height int) {
		t.Helper()
		if err := x.Resize(width, height); err != nil {
			t.Fatal(err)
		}
	}
	keys := func(s string) {
		t.Helper()
		if err := x.Keys(s); err != nil {
			t.Fatal(err)
		}
	}
	want("the table", 80, 24)
	for _, size := range [][2]int{{40, 10}, {200, 50}, {19, 4}, {120, 30}, {80, 24}, {40, 10}} {
		resize(size[0], size[1])
		want("the table", size[0], size[1])
	}
	keys("\x1b[B\x1b[B\x1b[C\x1b[C") // two rows down, two columns to the right
	v.move(1)
	v.move(1)
	v.skip = 2
	want("the third row", 40, 10)
	resize(120, 30)
	want("the third row", 120, 30)
	keys("\r")
	v.enter()
	v.shown = pageOfTest(*v.page)
	want("a page", 120, 30)
	resize(40, 10)
	want("a page", 40, 10)
	keys("\x1b[6~")
	v.pageScroll += v.visible - 1
	want("further down", 40, 10)
	resize(200, 50)
	want("a page", 200, 50)
	keys("\x1b")
	v.page, v.shown = nil, nil
	want("the table", 200, 50)
	keys("q")
	if code, err := x.End(testkit.Patience); err != nil || code != 0 {
		t.Errorf("exit %d, %v", code, err)
	}
}

// TestTopWritesWhatChanged: a refresh writes only changed cells: with 200 unchanged
// pods only the time.
func TestTopWritesWhatChanged(t *testing.T) {
	x, err := terminal.Start(200, 50, []string{screenEnv + "=200", "LC_ALL=C.UTF-8"}, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	v := &View{Order: Order{Column: "drops"}, Interval: time.Second}
	sampled := func(n int) {
		t.Helper()
		v.table = nodeOf(200, n)
		awaitFrame(t, x, v, fmt.Sprintf("sample %d", n), 200, 50)
	}
	sampled(0)
	// The library redraws the screen once when it reports the terminal's size,
	// possibly after the first frame, so ignore the largest value.
	written := []int{x.Written()}
	const refreshes = 11
	for n := 1; n <= refreshes; n++ {
		if err := x.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		sampled(n)
		written = append(written, x.Written())
	}
	var refresh []int
	for i, w := range written[1:] {
		refresh = append(refresh, w-written[i])
	}
	slices.Sort(refresh)
	each := 0
	for _, n := range refresh[:refreshes-1] {
		each += n / (refreshes - 1)
	}
	t.Logf("200x50, 200 pods: %d bytes until the screen stands, %d for a refresh in which a tenth of the pods has other numbers (%d)", written[0], each, refresh)
	if each > 1500 {
		t.Errorf("a refresh writes %d bytes", each)
	}
}

// Names that attack a terminal arrive escaped at a real one.
func TestNastyNamesInATerminal(t *testing.T) {
	x, err := terminal.Start(120, 30, []string{screenEnv + "=" + nastyPods, "LC_ALL=C.UTF-8"}, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	v := &View{Order: Order{Column: "drops"}, Interval: time.Second, table: nastyNode()}
	awaitFrame(t, x, v, "nasty names", 120, 30)
	if r := nasty.Acts(x.Text()); r >= 0 {
		t.Errorf("%U on the screen:\n%s", r, x.Text())
	}
	for _, want := range []string{`\x1b[2J`, `\u202e`, `日 本`} {
		if !strings.Contains(x.Text(), want) {
			t.Errorf("no %s on the screen:\n%s", want, x.Text())
		}
	}
}

// In an ASCII locale, other characters mark cut text and scrolled windows.
func TestTopInASCII(t *testing.T) {
	x, err := terminal.Start(40, 10, []string{screenEnv + "=60", "LC_ALL=C"}, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if err := x.Wait(testkit.Patience, func(s string) bool {
		return strings.Contains(s, "\nshop/web-~gbnk-99rsd ") && strings.Contains(s, ">10\n")
	}); err != nil {
		t.Fatal(err)
	}
}

// Names are escaped on a page.
func TestTopPageIsSafe(t *testing.T) {
	for _, n := range nasty.Names {
		p := pageOfTest(podName{n, n})
		p.reasons = []reason{{n, 1, 1}}
		p.kinds = []kind{{kindKey{typ: packetLoss, peer: n, reason: n, function: n, comm: n}, 1, p.at, time.Second}}
		p.sockets.peers[0].pod = n
		p.processes = []process{{1, n}}
		p.processErr = fmt.Errorf("read %s: no", n)
		v := &View{Order: Order{Column: "drops"}, table: nodeOf(3, 0), page: &p.name, shown: p}
		for _, l := range v.frame(300, 200) {
			for _, s := range l {
				if r := nasty.Acts(s.text); r >= 0 || strings.Contains(s.text, "\n") {
					t.Errorf("%q: %U in %q", n, r, s.text)
				}
			}
		}
	}
}
