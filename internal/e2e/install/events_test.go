package install

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/unseen"
)

// entry is one entry of the journal.
type entry map[string]any

func (e entry) text(field string) string {
	s, _ := e[field].(string)
	return s
}

// String lists the fields that nodeskoop writes.
func (e entry) String() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(e)) {
		if !strings.HasPrefix(k, "_") {
			fmt.Fprintf(&b, "\n\t%s=%v", k, e[k])
		}
	}
	return b.String()
}

// journal reads the events that match "FIELD=value".
func (s *suite) journal(matches ...string) []entry {
	s.Helper()
	out := s.run("journalctl", append([]string{"-b", "-q", "-a", "-t", "nodeskoop", "-o", "json"}, matches...)...)
	var list []entry
	for line := range strings.Lines(out) {
		e := entry{}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			s.Fatalf("journalctl prints %q: %v", line, err)
		}
		list = append(list, e)
	}
	return list
}

func (s *suite) podEvents(event string, p *pods.Pod, more ...string) []entry {
	s.Helper()
	return s.journal(append(more, "KUBESKOOP_EVENT="+event, "K8S_NAMESPACE="+p.Namespace, "K8S_POD="+p.Name)...)
}

// occurrences sums the occurrences of entries.
func occurrences(entries []entry) (n int) {
	for _, e := range entries {
		count, err := strconv.Atoi(e.text("KUBESKOOP_COUNT"))
		if err != nil {
			count = 1
		}
		n += count
	}
	return n
}

// windows is the maximum delay of the entry for occurrences in the first windows of
// a kind.
const windows = 45 * time.Second

// longWindow is the delay after a problem that lasted a minute or two, since
// the window doubles meanwhile.
const longWindow = 4 * time.Minute

// told waits until no events of some types are pending, or for as long as a few
// windows last.
func (s *suite) told(events ...string) {
	s.Helper()
	_ = s.awaits(windows, func() error {
		for _, event := range events {
			if a := accountsOf(parse(s.T, []byte(s.read(textfile))))[event]; a.pending > 0 {
				return fmt.Errorf("%v of %s are merged", a.pending, event)
			}
		}
		return nil
	})
}

// in runs a program of the machine in a pod's network namespace.
func (s *suite) in(p *pods.Pod, name string, args ...string) string {
	s.Helper()
	return s.run("nsenter", append([]string{"-t", strconv.Itoa(p.PID), "-n", name}, args...)...)
}

func v4(p *pods.Pod, port int) string { return fmt.Sprintf("%s:%d", p.Addrs[0], port) }
func v6(p *pods.Pod, port int) string { return fmt.Sprintf("[%s]:%d", p.Addrs[1], port) }

// expectation is the expected number of events after something was caused.
type expectation struct {
	event string
	pod   *pods.Pod
	count int
	// metric, unless empty, counts them too.
	metric string
	// also lists further fields that each entry must have.
	also map[string]string
}

// expect causes something, and checks that exactly the expected events are in the
// journal and in the metrics.
func (s *suite) expect(what string, do func(), want ...expectation) {
	s.Helper()
	s.expectCounted(what, func() []expectation { do(); return want }, want...)
}

// expectCounted is expect for causes whose number is only known afterwards.
func (s *suite) expectCounted(what string, do func() []expectation, of ...expectation) {
	t := s.T
	t.Helper()
	before := map[string]int{}
	metrics := map[string]float64{}
	key := func(w expectation) string { return w.event + " of " + w.pod.Name }
	for _, w := range of {
		before[key(w)] = len(s.podEvents(w.event, w.pod))
		if w.metric != "" {
			metrics[key(w)] = s.podValue(w.metric, w.pod.Namespace, w.pod.Name)
		}
	}
	want := do()
	for _, w := range want {
		var got []entry
		_ = s.awaits(windows, func() error {
			if got = s.podEvents(w.event, w.pod)[before[key(w)]:]; occurrences(got) < w.count {
				return errors.New("not yet")
			}
			return nil
		})
		if n := occurrences(got); n != w.count {
			t.Errorf("%s: the journal has %d times %s, want %d", what, n, key(w), w.count)
		}
		for _, e := range got {
			bad := ""
			for field, value := range w.also {
				if e.text(field) != value {
					bad += fmt.Sprintf(" %s=%s (want %s)", field, e.text(field), value)
				}
			}
			if bad != "" || e.text("MESSAGE") == "" || len(e.text("MESSAGE_ID")) != 32 || e.text("K8S_NODE") != node || e.text("_SYSTEMD_UNIT") != unit {
				t.Errorf("%s: %s:%s %v", what, key(w), bad, e)
				break
			}
		}
		if w.metric != "" {
			var now float64
			_ = s.awaits(10*time.Second, func() error {
				if now = s.podValue(w.metric, w.pod.Namespace, w.pod.Name); now-metrics[key(w)] < float64(w.count) {
					return errors.New("not yet")
				}
				return nil
			})
			if now-metrics[key(w)] != float64(w.count) {
				t.Errorf("%s: %s of %s/%s rose by %v, want %d", what, w.metric, w.pod.Namespace, w.pod.Name, now-metrics[key(w)], w.count)
			}
		}
		t.Logf("%-42s %d times %s in %d entries", what, occurrences(got), key(w), len(got))
	}
}

// snmp reads a counter of a pod's kernel tables, independently of nodeskoop.
func (s *suite) snmp(p *pods.Pod, group, name string) int {
	s.Helper()
	n, err := counter(s.in(p, "cat", "/proc/net/snmp", "/proc/net/netstat"), group, name)
	if err != nil {
		s.Fatal(err)
	}
	return n
}

// causeEvents causes each kind of event that can be caused, a known number of
// times.
func (s *suite) causeEvents() {
	t := s.T
	web, client := s.web, s.client
	exec := func(args ...string) {
		t.Helper()
		client.Container("main").Exec(append([]string{causeProgram}, args...)...)
	}
	inWeb := func(args ...string) {
		t.Helper()
		web.Container("main").Exec(append([]string{causeProgram}, args...)...)
	}
	const n = 7
	count := strconv.Itoa(n)
	unsupported := s.unsupported()
	// Resolve neighbours before anything is counted.
	exec("exchange", v4(web, 80), "1")
	exec("exchange", v6(web, 8080), "1")

	s.in(web, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in udp dport 9 counter drop; add rule inet t in tcp dport 81 drop")
	s.expect("a rule drops datagrams", func() {
		exec("datagrams", v4(web, 9), count, "100")
		exec("datagrams", v6(web, 9), count, "100")
	}, expectation{"PacketLoss", web, 2 * n, "kubeskoop_packetloss_netfilter", map[string]string{
		"KUBESKOOP_REASON": "NETFILTER_DROP", "KUBESKOOP_PROTOCOL": "UDP", "KUBESKOOP_DPORT": "9", "PRIORITY": "5",
		"KUBESKOOP_SRC_POD": "client-0", "KUBESKOOP_DST_POD": "web-0",
	}})
	for _, e := range s.podEvents("PacketLoss", web) {
		if stack := e.text("KUBESKOOP_STACK"); !strings.Contains(stack, "nf_hook_slow+0x") || !strings.Contains(e.text("KUBESKOOP_LOCATION"), "+0x") {
			t.Errorf("the functions of the kernel have no names in the unit's sandbox: location %q, stack\n%s", e.text("KUBESKOOP_LOCATION"), stack)
			break
		}
	}
	if out := s.in(web, "nft", "list", "chain", "inet", "t", "in"); !strings.Contains(out, fmt.Sprintf("packets %d ", 2*n)) {
		t.Errorf("the rule itself counted something else:\n%s", out)
	}

	s.expect("connections to a closed port", func() {
		exec("refused", v4(web, 7), count)
		exec("refused", v6(web, 7), count)
	},
		expectation{"TCPRESET_NOSOCK", web, 2 * n, "", map[string]string{"KUBESKOOP_SPORT": "7", "KUBESKOOP_DST_POD": "client-0"}},
		expectation{"TCPRESET_RECEIVE", client, 2 * n, "", map[string]string{"KUBESKOOP_DPORT": "7", "KUBESKOOP_DST_POD": "web-0"}})

	s.expect("connections aborted", func() {
		exec("abort", v4(web, 80), count)
		exec("abort", v6(web, 8080), count)
	},
		expectation{"TCPRESET_ACTIVE", client, 2 * n, "", map[string]string{"KUBESKOOP_DST_POD": "web-0"}},
		expectation{"TCPRESET_RECEIVE", web, 2 * n, "", map[string]string{"KUBESKOOP_DST_POD": "client-0"}})

	s.expect("acknowledgements of nothing", func() {
		exec("stray", v4(web, 80), count)
		exec("stray", v6(web, 8080), count)
	}, expectation{"TCPRESET_PROCESS", web, 2 * n, "", map[string]string{"KUBESKOOP_TCP_STATE": "LISTEN"}})

	s.expectCounted("connections that nobody answers", func() []expectation {
		unseen := unseen.Retransmissions(t)
		was := s.snmp(client, "Tcp", "RetransSegs")
		exec("unanswered", "3500", v4(web, 81), v6(web, 81))
		sent := s.snmp(client, "Tcp", "RetransSegs") - was - unseen()
		if sent < 4 {
			t.Errorf("the kernel retransmitted %d segments, want 4 or more", sent)
		}
		return []expectation{{"TCPRetrans", client, sent, "kubeskoop_tcpretrans_total", map[string]string{"KUBESKOOP_DPORT": "81", "KUBESKOOP_TCP_STATE": "SYN_SENT", "KUBESKOOP_DST_POD": "web-0"}}}
	}, expectation{event: "TCPRetrans", pod: client, metric: "kubeskoop_tcpretrans_total"})
	s.in(web, "nft", "delete table inet t")

	if _, no := unsupported["socketlatency"]; !no {
		s.expect("received data left unread", func() { inWeb("readlate", "3") },
			expectation{"SOCKETLAT_READSLOW", web, 6, "kubeskoop_socketlatency_read100ms", map[string]string{"KUBESKOOP_COMM": "cause"}})
		s.expect("written data kept waiting", func() { inWeb("sendlate") },
			expectation{"SOCKETLAT_SENDSLOW", web, 2, "kubeskoop_socketlatency_write100ms", map[string]string{"KUBESKOOP_COMM": "cause"}})
	}

	if _, no := unsupported["kernellatency"]; !no {
		s.causeHeld()
	}
	if _, no := unsupported["netiftxlatency"]; !no {
		// 1,442 bytes take 180 ms; the first packet finds the bucket full.
		s.in(client, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "64kbit", "burst", "1600", "limit", "100000")
		// The pod's kernel may send packets of its own, which wait as well.
		const metric = "kubeskoop_netiftxlat_qdiscslow100ms"
		before, all := s.podValue(metric, "shop", "client-0"), occurrences(s.podEvents("TXLAT_QDISC_100MS", client))
		exec("datagrams", v4(web, 9), "5", "1400")
		s.until("the packets in a slow queue are in the journal and in the metric", windows, func() error {
			ours := occurrences(s.podEvents("TXLAT_QDISC_100MS", client, "KUBESKOOP_DPORT=9", "KUBESKOOP_PROTOCOL=UDP", "KUBESKOOP_IFNAME=eth0", "KUBESKOOP_DST_POD=web-0"))
			now := occurrences(s.podEvents("TXLAT_QDISC_100MS", client))
			if v := s.podValue(metric, "shop", "client-0"); ours != 4 || v-before != float64(now-all) {
				return fmt.Errorf("%d of 4 datagrams are in the journal; in all it has %d more events, and %s rose by %v", ours, now-all, metric, v-before)
			}
			return nil
		})
		t.Logf("%-42s 4 times TXLAT_QDISC_100MS of client-0", "packets in a slow queue")
		s.in(client, "tc", "qdisc", "del", "dev", "eth0", "root")
	}
	if _, no := unsupported["biolatency"]; !no {
		s.causeSlowDisk()
	}
	if _, no := unsupported["net_softirq"]; !no {
		// The kernel's softirqs are late once the threshold is a microsecond.
		s.configure("probes.net_softirq.slow", `"1us"`)
		exec("datagrams", v4(web, 9), "200", "100")
		for _, event := range []string{"NETSOFTIRQ_SCHED_SLOW", "NETSOFTIRQ_EXCUTE_SLOW"} {
			s.until(event+" of the node", 10*time.Second, func() error {
				if len(s.journal("KUBESKOOP_EVENT="+event, "K8S_POD=hostNetwork")) == 0 {
					return errors.New("the journal has none")
				}
				return nil
			})
		}
		s.configure("probes.net_softirq.slow", `"10ms"`)
	}
	s.accounted()
	s.configure("journal.rate", "1", "journal.burst", "20")

	seen := map[string]bool{}
	for _, e := range s.journal() {
		seen[e.text("KUBESKOOP_EVENT")] = true
	}
	delete(seen, "")
	var missing []string
	for _, e := range table(t, "events.tsv") {
		if !seen[e["event"]] {
			missing = append(missing, e["event"])
		}
	}
	t.Logf("%d of 19 types of event are in the journal; not caused here: %s", len(seen), strings.Join(missing, ", "))
}

// patientTCP makes a pod's TCP wait 20 seconds for an acknowledgement, so that it does
// not retransmit a segment that the test holds back.
func (s *suite) patientTCP(from, to *pods.Pod) {
	s.Helper()
	for _, a := range to.Addrs {
		s.in(from, "ip", "route", "replace", fmt.Sprintf("%s/%d", a, a.BitLen()), "dev", "eth0", "rto_min", "20s")
	}
}

// causeHeld delays packets in a netfilter queue.
func (s *suite) causeHeld() {
	web, client := s.web, s.client
	const n = 3
	tables := func(p *pods.Pod, args ...string) {
		s.Helper()
		for _, program := range []string{"iptables", "ip6tables"} {
			s.in(p, program, append([]string{"-w", "-t", "mangle"}, args...)...)
		}
	}
	hold := func(p *pods.Pod, chain string) (stop func()) {
		s.Helper()
		tables(p, "-A", chain, "-p", "tcp", "--tcp-flags", "PSH", "PSH", "-j", "NFQUEUE", "--queue-num", "1")
		cmd := s.command("nsenter", "-t", strconv.Itoa(p.PID), "-n", "/srv"+causeProgram, "queue", "1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			s.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		queue := testkit.Hold(s, cmd)
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			s.Fatalf("the reader of the netfilter queue says %q: %v", line, err)
		}
		return func() {
			tables(p, "-F")
			_ = queue.End()
		}
	}
	exchange := func() {
		client.Container("main").Exec(causeProgram, "exchange", v4(web, 80), strconv.Itoa(n))
		client.Container("main").Exec(causeProgram, "exchange", v6(web, 8080), strconv.Itoa(n))
	}
	s.patientTCP(client, web)
	stop := hold(web, "PREROUTING")
	s.expect("received segments held in a queue", exchange,
		expectation{"RXKERNEL_SLOW", web, 2 * n, "kubeskoop_kernellatency_rxslow100ms", map[string]string{"KUBESKOOP_SRC_POD": "client-0", "KUBESKOOP_DST_POD": "web-0"}})
	stop()
	stop = hold(client, "OUTPUT")
	s.expect("sent segments held in a queue", exchange,
		expectation{"TXKERNEL_SLOW", client, 2 * n, "kubeskoop_kernellatency_txslow100ms", map[string]string{"KUBESKOOP_SRC_POD": "client-0", "KUBESKOOP_DST_POD": "web-0"}})
	stop()
}

// causeSlowDisk makes a container read a slow disk: a loop device backed by a throttled
// one.
func (s *suite) causeSlowDisk() {
	t := s.T
	var reader *pods.Container
	disk := s.makeSlowDisk("disk", func(device string) *pods.Container {
		reader = s.client.AddContainer(pods.ContainerSpec{Name: "disk", Mounts: map[string]string{causeProgram: "/srv" + causeProgram}, Devices: []string{device}})
		return reader
	})
	if disk == nil {
		return
	}
	upper := disk.device
	var took []int // durations of all reads, in milliseconds
	for i, c := range []struct {
		event            string
		perSecond, reads int
		// Durations of a read in milliseconds: the minimum for an event, and the
		// minimum at which the disk was slow rather than a CPU busy.
		least, clearly int
	}{{"BIOLAT_10MS", 40, 24, 10, 0}, {"BIOLAT_100MS", 4, 6, 100, 200}} {
		disk.limit("read", c.perSecond)
		of := []string{"KUBESKOOP_EVENT=" + c.event, "KUBESKOOP_DISK=" + filepath.Base(upper)}
		before := len(s.journal(of...))
		// Data that were read once are cached. A call takes at least as long as its
		// block I/O.
		clearly, perhaps := 0, 0
		out := reader.Exec(causeProgram, "reads", upper, strconv.Itoa(c.reads), strconv.Itoa(1<<17), strconv.Itoa(i<<16))
		for _, f := range strings.Fields(out) {
			ms, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			if c.clearly > 0 && ms >= c.clearly {
				clearly++
			}
			took = append(took, ms)
		}
		// If an earlier occurrence was merged, the same entry includes it.
		for _, ms := range took {
			if ms >= c.least {
				perhaps++
			}
		}
		var got []entry
		_ = s.awaits(windows, func() error {
			if got = s.journal(of...)[before:]; occurrences(got) < max(1, clearly) {
				return errors.New("not yet")
			}
			return nil
		})
		n := occurrences(got)
		if n == 0 || n < clearly || n > perhaps {
			t.Errorf("a slow disk: the journal has %d times %s, want %d to %d: the reads took (ms) %s", n, c.event, clearly, perhaps, strings.Join(strings.Fields(out), " "))
		}
		for _, e := range got {
			if e.text("KUBESKOOP_COMM") != "cause" || e.text("KUBESKOOP_LATENCY_NS") == "" {
				t.Errorf("a slow disk: %v", e)
			}
		}
		t.Logf("%-42s %d times %s", "a container reads a slow disk", n, c.event)
	}
	reader.Stop()
}

// account is nodeskoop's account of the events of one type.
type account struct{ seen, written, suppressed, lost, ignored, pending, entries float64 }

func accountsOf(f families) map[string]account {
	out := map[string]account{}
	if f["nodeskoop_events_seen_total"] == nil {
		return out
	}
	for _, m := range f["nodeskoop_events_seen_total"].Metric {
		for _, l := range m.Label {
			if l.GetName() == "event" {
				get := func(what string) float64 {
					v, _ := f.value("nodeskoop_events_"+what+"_total", "event", l.GetValue())
					return v
				}
				pending, _ := f.value("nodeskoop_events_pending", "event", l.GetValue())
				entries, _ := f.value("nodeskoop_event_entries_total", "event", l.GetValue())
				out[l.GetValue()] = account{get("seen"), get("written"), get("suppressed"), get("lost"), get("ignored"), pending, entries}
			}
		}
	}
	return out
}

// accounted checks that every event is accounted for: seen equals written,
// suppressed, lost, ignored and pending, and the entries that count as written are
// in the journal. It returns a reading for which this holds.
func (s *suite) accounted() map[string]account {
	t := s.T
	t.Helper()
	pid := s.property(unit, "MainPID")
	inJournal := func() map[string]float64 {
		n := map[string]float64{}
		for _, e := range s.journal("_PID="+pid, brief) {
			n[e.text("KUBESKOOP_EVENT")]++
		}
		return n
	}
	// The machine's other events continue, so each reading is compared with an
	// earlier and a later one of the other kind.
	journal0 := inJournal()
	first := accountsOf(parse(t, []byte(s.read(textfile))))
	var later map[string]account
	err := s.awaits(15*time.Second, func() error {
		s.nextCycles(2)
		later = accountsOf(parse(t, []byte(s.read(textfile))))
		for event, a := range later {
			if sum := a.written + a.suppressed + a.lost + a.ignored + a.pending; sum != a.seen || a.seen < first[event].seen {
				t.Fatalf("%s: %+v is not what was seen; before it was %+v", event, a, first[event])
			}
			if journal0[event] > a.entries {
				return fmt.Errorf("%s: the journal had %v entries before %v were written", event, journal0[event], a.entries)
			}
		}
		return nil
	})
	if err == nil {
		err = s.awaits(10*time.Second, func() error {
			journal := inJournal()
			for event, a := range later {
				if journal[event] < a.entries {
					return fmt.Errorf("%s: %v are written, and the journal has %v", event, a.entries, journal[event])
				}
			}
			return nil
		})
	}
	if err != nil {
		t.Errorf("the events are not all accounted for: %v", err)
	}
	return later
}

// explain checks that the catalog explains every type.
func (s *suite) explain() {
	t := s.T
	for _, e := range table(t, "events.tsv") {
		out, err := s.try("journalctl", "--dump-catalog", e["message_id"])
		if err != nil || !strings.Contains(out, "Subject:") || !strings.Contains(out, "Defined-By: nodeskoop") || len(out) < 300 {
			t.Errorf("the catalog's entry of %s (%v):\n%s", e["event"], err, out)
		}
	}
	shown := 0
	for _, e := range table(t, "events.tsv") {
		entries := s.journal("KUBESKOOP_EVENT=" + e["event"])
		if len(entries) == 0 {
			continue
		}
		shown++
		out := s.run("journalctl", "-b", "-q", "-x", "-t", "nodeskoop", "-n", "1", "KUBESKOOP_EVENT="+e["event"])
		if !strings.Contains(out, "░░ Subject:") || regexp.MustCompile(`@[A-Z0-9_]+@`).MatchString(out) {
			t.Errorf("journalctl -x shows no explanation of %s, or leaves a placeholder in it:\n%s", e["event"], out)
		}
		if e["event"] == "PacketLoss" {
			t.Logf("journalctl -x:\n%s", out)
		}
	}
	if shown == 0 {
		t.Error("the journal has no event to explain")
	}
}

// flood causes more events than the limit allows.
func (s *suite) flood() {
	t := s.T
	web := s.web
	const n = 5000
	send := func(count int) {
		s.client.Container("main").Exec(causeProgram, "datagrams", v4(web, 9), strconv.Itoa(count), "100")
	}
	before := s.podValue("kubeskoop_packetloss_netfilter", "shop", "web-0")
	entries := occurrences(s.podEvents("PacketLoss", web, filtered, brief))
	first := s.accounted()["PacketLoss"]
	if dropped := s.dropping(web, func() { send(n) }); dropped != n {
		t.Errorf("the rule dropped %d datagrams, want %d", dropped, n)
	}
	s.until("all drops are in the scrape", 10*time.Second, func() error {
		v, _ := s.scrape().value("kubeskoop_packetloss_netfilter", "k8s_namespace", "shop", "k8s_pod", "web-0")
		if v-before != n {
			return fmt.Errorf("%v of %d", v-before, n)
		}
		return nil
	})
	s.told("PacketLoss")
	a := s.accounted()["PacketLoss"]
	a.suppressed -= first.suppressed
	written := occurrences(s.podEvents("PacketLoss", web, filtered, brief)) - entries
	if written == 0 || written > n/2 || a.suppressed < n/2 {
		t.Errorf("%d drops: %d in the journal, and in all %+v", n, written, a)
	}
	// The pod's entries during and after the flood say how many events were
	// suppressed.
	told := 0.0
	if err := s.awaits(windows, func() error {
		send(1) // a datagram to a port without a listener is a loss, too
		told = 0
		for _, e := range s.podEvents("PacketLoss", web, "--output-fields=KUBESKOOP_SUPPRESSED") {
			k, _ := strconv.Atoi(e.text("KUBESKOOP_SUPPRESSED"))
			told += float64(k)
		}
		if told < a.suppressed {
			return fmt.Errorf("of %v suppressed events the journal tells of %v", a.suppressed, told)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	t.Logf("%d drops: %d in the journal; in all %+v, and the journal tells of %v suppressed", n, written, a, told)
}
