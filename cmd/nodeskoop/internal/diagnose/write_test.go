package diagnose

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/clipperhouse/displaywidth"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/nasty"
)

// sample is a report of three findings.
func sample() *Report {
	all := []observation{seen("IpOutNoRoutes", "shop/api-0", "", 40), seen("tcp.lost", "shop/db-0", "198.51.100.9", 70), seen("TcpOutSegs", "shop/db-0", "", 3000)}
	for _, c := range cases {
		if c.cause == "accept-queue-full" {
			all = append(all, c.is...)
		}
	}
	r := &Report{Version: "0.1.0", Begin: begin, Seconds: 10.04, Pods: 12, Findings: evaluate(all, 10*time.Second),
		NotLooked: []NotLooked{{"memory of TCP", "read net.ipv4.tcp_mem: permission denied"}}}
	fillNextWith(r.Findings, map[string]string{Node: "1", web: "4711", client: "815"}, map[string]string{web: webAddr})
	return r
}

func TestGoldenReport(t *testing.T) {
	var b bytes.Buffer
	if err := sample().Write(&b, 0); err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "report.txt", b.Bytes())
	text, err := json.MarshalIndent(sample(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "report.json", append(text, '\n'))
	b.Reset()
	if err := (&Report{Begin: begin, Seconds: 10, Pods: 1}).Write(&b, 0); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "Nothing found: the node and 1 pod, watched for 10 s.\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for line := range strings.Lines(b.String()) {
		if displaywidth.String(line) > plainWidth+1 {
			t.Errorf("%q is wider than %d", line, plainWidth)
		}
	}
}

// TestReportIsSafe: names of pods, devices and processes cannot affect a terminal,
// and each finding keeps its lines.
func TestReportIsSafe(t *testing.T) {
	for _, name := range nasty.Names {
		pod := "shop/" + name
		r := &Report{Begin: begin, Seconds: 10, Pods: 1, Findings: evaluate([]observation{
			{signal: "fd.used", owner: pod, value: 100, what: name}, {signal: "queue.drops", owner: pod, value: 100, what: name},
			{signal: "queue.packets", owner: pod, value: 100, what: name}, {signal: "drop.rule", owner: pod, peer: pod, value: 100, what: name}}, time.Second),
			NotLooked: []NotLooked{{name, name}}}
		fillNextWith(r.Findings, map[string]string{pod: "7"}, nil)
		var b bytes.Buffer
		if err := r.Write(&b, 0); err != nil {
			t.Fatal(err)
		}
		if x := nasty.Acts(b.String()); x >= 0 {
			t.Errorf("%U in %q", x, b.String())
		}
		if len(r.Findings) != 3 {
			t.Errorf("of %q: %s", name, names(r.Findings))
		}
	}
}

// TestSourceOfTheOtherEnd: for a number of the other end, the command enters that end.
// If the end is not on this node, no other process takes its place.
func TestSourceOfTheOtherEnd(t *testing.T) {
	for pids, want := range map[*map[string]string]string{
		{web: "4711", client: "815"}: "nsenter -t 4711 -n ss -tln",
		{client: "815"}:              "nsenter -t PID -n ss -tln",
	} {
		list := evaluate([]observation{{signal: "tcp.loopback_only", owner: client, peer: web, value: 9, what: "8080", blame: web}}, time.Second)
		fillNextWith(list, *pids, nil)
		if len(list) != 1 || len(list[0].Evidence) != 1 || list[0].Evidence[0].Source != want {
			t.Errorf("%+v, want %q", list, want)
		}
	}
	for _, c := range cases {
		list := evaluate(c.is, time.Second)
		fillNextWith(list, map[string]string{Node: "1"}, nil)
		for _, f := range list {
			for _, e := range f.Evidence {
				if strings.Contains(e.Source, "PEERPID") {
					t.Errorf("%s: %s", f.Cause, e.Source)
				}
			}
		}
	}
}

func TestPlaced(t *testing.T) {
	for _, c := range []struct{ command, pid, peer, device, want string }{
		{"nsenter -t PID -n tracepath -n PEER", "7", far, "", "nsenter -t 7 -n tracepath -n 192.0.2.7"},
		{"ethtool -k DEVICE", "7", "", "a;reboot", "ethtool -k 'a;reboot'"},
		{"ethtool -k DEVICE", "", "", "8:0 riops=5", "ethtool -k DEVICE"},
		{"nsenter -t PID -n dig @PEER", "", web, "", "nsenter -t PID -n dig @PEER"},
		{"cat /proc/PID/stack # PIDS", "7", "", "", "cat /proc/7/stack # PIDS"},
	} {
		if got := placed(c.command, c.pid, c.peer, c.device); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestConcerns: for one pod, the report has findings about an end of its traffic, and
// about the node alone.
func TestConcerns(t *testing.T) {
	all := append(append(append([]observation{}, cases[0].is...), seen("cpu.softirq", Node, "", 90)), seen("IpOutNoRoutes", "shop/db-0", "", 9))
	var got []string
	for _, f := range evaluate(all, time.Second) {
		if f.concerns(client) {
			got = append(got, f.Cause)
		}
	}
	if strings.Join(got, " ") != "policy-drop-pod softirq-cpu-busy" {
		t.Errorf("%v", got)
	}
}
