package install

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"nodeskoop/internal/testkit/pods"
	"nodeskoop/internal/testkit/unseen"
)

const (
	troubleLasts = 12 // seconds: longer than the first merging window
	troubleEach  = 8  // per second
)

// trouble is something that goes wrong repeatedly.
type trouble struct {
	name string
	// match are the fields of its entries.
	match []string
	// begin causes the trouble for some seconds, and returns how often it occurred
	// by an independent count. more is the number of occurrences that cannot be
	// decided.
	begin func() (caused, more int)

	began        time.Time
	caused, more int
}

// TestTroubles: each of ten troubles is reported within two seconds, and again
// while it lasts, in few entries with exact counts.
func TestTroubles(t *testing.T) {
	const (
		mostEntries = 12
		soon        = 2 * time.Second
		// The last window of a trouble may be twice as long as the first.
		settles = 90 * time.Second
	)
	duration(t, "quiet", "NODESKOOP_QUIET")
	h := bootHealthy(t)
	h.edit("probes.enabled", `["default", "socketlatency"]`)
	h.run("systemctl", "restart", unit)
	troubles := h.troubles()
	for i := range troubles {
		tr := &troubles[i]
		tr.began = time.Now()
		tr.caused, tr.more = tr.begin()
		if tr.caused == 0 {
			t.Errorf("%s: nothing was caused", tr.name)
		}
	}
	told := func(tr trouble) (entries []entry, n int) {
		for _, e := range h.journal(tr.match...) {
			entries = append(entries, e)
			n += e.occurrences()
		}
		return entries, n
	}
	_ = h.awaits(settles, func() error {
		for _, tr := range troubles {
			if _, n := told(tr); n < tr.caused {
				return fmt.Errorf("%s", tr.name)
			}
		}
		return nil
	})
	h.sampled()
	text := h.read(textfile)
	account := accountsOf(parse(t, []byte(text)))
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "trouble\tevent\tcaused\ttold\tentries\ttold after\tlast after\tof its type suppressed, lost")
	for _, tr := range troubles {
		event := strings.TrimPrefix(tr.match[0], "KUBESKOOP_EVENT=")
		entries, n := told(tr)
		a := account[event]
		if len(entries) == 0 {
			t.Errorf("%s: caused %d times, never told", tr.name, tr.caused)
			fmt.Fprintf(w, "%s\t%s\t%d\t0\t0\t\t\t%v, %v\n", tr.name, event, tr.caused, a.suppressed, a.lost)
			continue
		}
		last := entries[len(entries)-1]
		after := entries[0].time().Sub(begin(entries))
		caused := strconv.Itoa(tr.caused)
		if tr.more > 0 {
			caused += fmt.Sprintf(" to %d", tr.caused+tr.more)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d ms\t%.0f s\t%v, %v\n", tr.name, event, caused, n, len(entries), after.Milliseconds(),
			last.time().Sub(tr.began).Seconds(), a.suppressed, a.lost)
		if n < tr.caused || n > tr.caused+tr.more {
			t.Errorf("%s: caused %s times, told %d times; all of this type: %v", tr.name, caused, n, h.toldByPod(tr.match[0]))
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, "nodeskoop_bpf_missed_total") || strings.HasPrefix(line, "nodeskoop_event") && strings.Contains(line, event) ||
					strings.HasPrefix(line, "kubeskoop_tcpretrans_total") {
					t.Log(strings.TrimSpace(line))
				}
			}
		}
		if after > soon {
			t.Errorf("%s: told %v after the kernel saw it, want at most %v", tr.name, after, soon)
		}
		if len(entries) < 2 || len(entries) > mostEntries {
			t.Errorf("%s: %d entries, want 2 to %d", tr.name, len(entries), mostEntries)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d s each, %d a second:\n%s", troubleLasts, troubleEach, &table)
}

// toldByPod is how often the journal tells of an event, by pod.
func (h *healthy) toldByPod(event string) map[string]int {
	pods := map[string]int{}
	for _, e := range h.journal(event) {
		pods[e.text("K8S_POD")] += e.occurrences()
	}
	return pods
}

// begin is the kernel's time of the first occurrence in the entries.
func begin(entries []entry) time.Time {
	first := entries[0].micros("KUBESKOOP_TIMESTAMP_US")
	for _, e := range entries {
		for _, field := range []string{"KUBESKOOP_TIMESTAMP_US", "KUBESKOOP_FIRST_US"} {
			if at := e.micros(field); e.text(field) != "" && at.Before(first) {
				first = at
			}
		}
	}
	return first
}

func ofPod(event string, p *pods.Pod, more ...string) []string {
	return append([]string{"KUBESKOOP_EVENT=" + event, "K8S_NAMESPACE=" + p.Namespace, "K8S_POD=" + p.Name}, more...)
}

// inNetns runs the program of causes in a pod's network namespace, without starting
// a container.
func (h *healthy) inNetns(p *pods.Pod, args ...string) string {
	h.Helper()
	return h.in(p, "/srv"+causeProgram, args...)
}

// steadily causes something for a while in a pod's network namespace, and returns
// the program's own count.
func (h *healthy) steadily(p *pods.Pod, what string, perSecond int, args ...string) (caused, perhaps int) {
	h.Helper()
	out := h.inNetns(p, append([]string{"steadily", what, strconv.Itoa(troubleLasts), strconv.Itoa(perSecond)}, args...)...)
	return h.counts(out)
}

var steadyCounts = regexp.MustCompile(`caused ([0-9]+)\nperhaps ([0-9]+)\n`)

func (h *healthy) counts(out string) (caused, perhaps int) {
	h.Helper()
	m := steadyCounts.FindStringSubmatch(out)
	if m == nil {
		h.Fatalf("the program that causes trouble says no number:\n%s", out)
	}
	caused, _ = strconv.Atoi(m[1])
	perhaps, _ = strconv.Atoi(m[2])
	return caused, perhaps
}

// rise returns the increase of a counter of a pod's kernel tables while do runs.
func (h *healthy) rise(p *pods.Pod, group, name string, do func()) int {
	h.Helper()
	was := h.snmp(p, group, name)
	do()
	return h.snmp(p, group, name) - was
}

// troubles starts a pod or two for each trouble, so that each trouble's entries are
// about different pods.
func (h *healthy) troubles() []trouble {
	h.Helper()
	serve := func(name string, command ...string) *pods.Pod {
		return h.pod("trouble", name, false, nil, append([]string{causeProgram}, command...)...)
	}
	idle := func(name string) *pods.Pod { return h.pod("trouble", name, false, nil) }
	client := idle("client")
	firewall, closed, stray, silent, nobody := idle("firewall"), idle("closed"), serve("stray", "serve", "0.0.0.0:80"), idle("silent"), idle("nobody")
	server, aborts, waits := serve("server", "serve", "0.0.0.0:80"), idle("aborts"), idle("waits")
	deaf := serve("deaf", "deaf", "0.0.0.0:9")
	reader, sender := idle("reader"), idle("sender")
	// Resolve neighbours before anything is counted.
	h.inNetns(aborts, "exchange", v4(server, 80), "1")

	list := []trouble{{
		name: "a firewall drops", match: ofPod("PacketLoss", firewall),
		begin: func() (int, int) {
			return h.dropping(firewall, func() { h.steadily(client, "datagrams", troubleEach, v4(firewall, 9)) }), 0
		},
	}, {
		name: "connections to a closed port", match: ofPod("TCPRESET_NOSOCK", closed),
		begin: func() (int, int) {
			return h.rise(closed, "Tcp", "OutRsts", func() { h.steadily(client, "refused", troubleEach, v4(closed, 7)) }), 0
		},
	}, {
		name: "connections that are aborted", match: ofPod("TCPRESET_ACTIVE", aborts),
		begin: func() (int, int) {
			return h.rise(aborts, "Tcp", "OutRsts", func() { h.steadily(aborts, "abort", troubleEach, v4(server, 80)) }), 0
		},
	}, {
		name: "segments of no connection", match: ofPod("TCPRESET_PROCESS", stray),
		begin: func() (int, int) {
			return h.rise(stray, "Tcp", "OutRsts", func() { h.steadily(client, "stray", troubleEach, v4(stray, 80)) }), 0
		},
	}, {
		name: "nobody answers", match: ofPod("TCPRetrans", waits),
		begin: func() (int, int) {
			h.in(silent, "nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }; add rule inet t in tcp dport 81 drop")
			refused := 0 // attempts count as retransmissions, whether or not the node sends them
			unseen := unseen.Retransmissions(h)
			tried := h.rise(waits, "Tcp", "RetransSegs", func() {
				refused = h.rise(waits, "TcpExt", "TCPRetransFail", func() { h.steadily(waits, "unanswered", 4, v4(silent, 81)) })
			})
			hidden := unseen()
			if refused > 0 || hidden > 0 {
				h.Logf("nobody answers: of %d retransmissions, the node itself refused %d, and this kernel ran no BPF program for %d", tried, refused, hidden)
			}
			return tried - refused - hidden, 0
		},
	}, {
		name: "a full buffer of UDP", match: ofPod("PacketLoss", deaf),
		begin: func() (int, int) {
			return h.rise(deaf, "Udp", "RcvbufErrors", func() { h.steadily(client, "datagrams", troubleEach, v4(deaf, 9)) }), 0
		},
	}, {
		name: "datagrams for nobody", match: ofPod("PacketLoss", nobody),
		begin: func() (int, int) {
			return h.rise(nobody, "Udp", "NoPorts", func() { h.steadily(client, "datagrams", troubleEach, v4(nobody, 9)) }), 0
		},
	}, {
		name: "data is read late", match: ofPod("SOCKETLAT_READSLOW", reader),
		begin: func() (int, int) { return h.steadily(reader, "readlate", troubleEach) },
	}, {
		name: "data is sent late", match: ofPod("SOCKETLAT_SENDSLOW", sender),
		begin: func() (int, int) { return h.steadily(sender, "sendlate", troubleEach) },
	}}
	if d := h.makeSlowDisk("disk", h.diskPod); d != nil {
		list = append(list, trouble{
			name: "a slow disk", match: []string{"KUBESKOOP_EVENT=BIOLAT_100MS", "KUBESKOOP_COMM=" + slowReader, "KUBESKOOP_DISK=" + filepath.Base(d.device)},
			begin: func() (int, int) {
				d.limit("read", 4)
				return h.counts(d.run("/srv"+causeProgram, "steadily", "readslowly", strconv.Itoa(troubleLasts), "1", d.device))
			},
		})
	}
	return list
}

// diskPod is the pod whose control group has a slow disk.
func (h *healthy) diskPod(string) *pods.Container {
	h.Helper()
	return h.pod("trouble", "disk", false, nil).Container("main")
}
