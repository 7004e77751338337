package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	prometheus = "http://127.0.0.1:9090/api/v1/"
	rulesDir   = "/etc/prometheus/rules/"
)

// shipped lists the package's files with a suffix.
func (s *suite) shipped(suffix string) []string {
	s.Helper()
	var list []string
	for _, f := range strings.Fields(s.run("dpkg", "-L", "nodeskoop")) {
		if strings.HasSuffix(f, suffix) {
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		s.Fatalf("the package has no *%s", suffix)
	}
	return list
}

// ask queries Prometheus and decodes the answer.
func (s *suite) ask(path string, into any) error {
	b, err := s.get(prometheus + path)
	if err != nil {
		return err
	}
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// query returns the current number of series of an expression.
func (s *suite) query(expr string) (int, error) {
	var data struct {
		ResultType string
		Result     json.RawMessage
	}
	if err := s.ask("query?query="+url.QueryEscape(expr), &data); err != nil {
		return 0, fmt.Errorf("%s: %w", expr, err)
	}
	if data.ResultType == "scalar" {
		return 1, nil
	}
	var series []json.RawMessage
	err := json.Unmarshal(data.Result, &series)
	return len(series), err
}

// alert loads the shipped rules and makes one alert fire, by losing events: journald
// does not accept them.
func (s *suite) alert() {
	t := s.T
	for _, file := range s.shipped(".rules.yml") {
		out, err := s.try("promtool", "check", "rules", file)
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		s.rules = append(s.rules, rulesDir+filepath.Base(file))
		s.write(rulesDir+filepath.Base(file), s.read(file))
	}
	s.run("systemctl", "reload", "prometheus")
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct{ Name, Health, LastError string }
		}
	}
	s.until("Prometheus evaluates the shipped rules", 30*time.Second, func() error {
		if err := s.ask("rules", &rules); err != nil {
			return err
		}
		n := 0
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				if r.Health == "err" {
					t.Fatalf("rule %s: %s", r.Name, r.LastError)
				}
				if g.Name != "nodeskoop-fleet" && r.Health != "ok" { // the fleet's rules are evaluated only once a minute
					return fmt.Errorf("%s is %s", r.Name, r.Health)
				}
				n++
			}
		}
		if n == 0 {
			return errors.New("it has none")
		}
		return nil
	})

	s.configure("journal.rate", "100000", "journal.burst", "100000")
	before := accountsOf(parse(t, []byte(s.read(textfile))))["PacketLoss"]
	s.dropping(s.web, func() {
		s.run("systemctl", "kill", "-s", "STOP", "systemd-journald")
		defer s.run("systemctl", "kill", "-s", "CONT", "systemd-journald")
		s.until("events are lost while journald stands still", longWindow, func() error {
			// The kernel's bucket for the pod may still be empty from the earlier
			// limit, and then needs some seconds to refill.
			s.client.Container("main").Exec(causeProgram, "datagrams", v4(s.web, 9), "10000", "100")
			if a := accountsOf(parse(t, []byte(s.read(textfile))))["PacketLoss"]; a.lost == before.lost {
				return fmt.Errorf("before %+v, now %+v", before, a)
			}
			return nil
		})
	})
	a := s.accounted()["PacketLoss"]
	t.Logf("while journald stood still: %v seen = %v written + %v suppressed + %v lost", a.seen-before.seen, a.written-before.written, a.suppressed-before.suppressed, a.lost-before.lost)
	var alerts struct {
		Alerts []struct {
			Labels map[string]string
			State  string
		}
	}
	s.until("the alert NodeskoopEventsLost fires", 20*time.Second, func() error {
		if err := s.ask("alerts", &alerts); err != nil {
			return err
		}
		for _, a := range alerts.Alerts {
			if a.Labels["alertname"] == "NodeskoopEventsLost" && a.Labels["k8s_node"] == node && a.State == "firing" {
				return nil
			}
		}
		return fmt.Errorf("alerts: %v", alerts.Alerts)
	})
	s.configure("journal.rate", "1", "journal.burst", "20")
}

// dashboard has the relevant parts of a dashboard's file.
type dashboard struct {
	Title      string
	Panels     []panel
	Templating struct {
		List []variable
	}
}

type panel struct {
	Title   string
	Type    string
	Targets []struct{ Expr string }
	Panels  []panel
}

type variable struct {
	Name, Type string
	Query      any
	IncludeAll bool
	AllValue   string
}

var labelValues = regexp.MustCompile(`^label_values\((?:(.+), *)?([a-z_0-9]+)\)$`)

// values returns the choices that Grafana would offer for a variable.
func (s *suite) values(query string) ([]string, error) {
	m := labelValues.FindStringSubmatch(strings.TrimSpace(query))
	if m == nil {
		return nil, fmt.Errorf("the query of a variable is %q", query)
	}
	path := "label/" + m[2] + "/values"
	if m[1] != "" {
		path += "?match[]=" + url.QueryEscape(m[1])
	}
	var values []string
	err := s.ask(path, &values)
	return values, err
}

// substitute fills in variables as Grafana does.
func substitute(expr string, values map[string]string) string {
	return regexp.MustCompile(`\$\{?([a-zA-Z_]+)(?::[a-z]+)?\}?`).ReplaceAllStringFunc(expr, func(v string) string {
		name := regexp.MustCompile(`[a-zA-Z_]+`).FindString(v)
		if value, ok := values[name]; ok {
			return value
		}
		return v
	})
}

// targets lists the queries of panels and of nested panels.
func targets(panels []panel) map[string][]string {
	out := map[string][]string{}
	for _, p := range panels {
		for _, t := range p.Targets {
			if t.Expr != "" {
				out[p.Title] = append(out[p.Title], t.Expr)
			}
		}
		for title, exprs := range targets(p.Panels) {
			out[title] = append(out[title], exprs...)
		}
	}
	return out
}

// exempt says why an expression cannot have data on this machine: its probe has no
// hook in this kernel, or the kernel's statistics are off.
func (s *suite) exempt(expr string) string {
	unsupported := s.unsupported()
	for _, m := range table(s.T, "metrics.tsv") {
		if _, ok := unsupported[m["probe"]]; ok && strings.Contains(expr, m["metric"]) {
			return "no " + m["probe"] + " on this kernel"
		}
	}
	if strings.Contains(expr, "ALERTS{") {
		return "alerts fire in trouble alone"
	}
	if strings.Contains(expr, "nodeskoop_bpf_run") {
		if b, err := os.ReadFile("/proc/sys/kernel/bpf_stats_enabled"); err != nil || strings.TrimSpace(string(b)) != "1" {
			return "kernel.bpf_stats_enabled is not 1"
		}
	}
	return ""
}

// dashboards sends Prometheus every query of the shipped dashboards.
func (s *suite) dashboards() {
	t := s.T
	// The fleet's rules are evaluated once a minute. Panels look back in steps of a
	// multiple of 15 s, the last of which may precede the first evaluation.
	s.until("Prometheus has what the rules record", 2*time.Minute, func() error {
		if n, err := s.query("max_over_time(k8s_namespace:kubeskoop_packetloss_total:rate5m[5m:15s])"); err != nil || n == 0 {
			return fmt.Errorf("%d series (%v)", n, err)
		}
		return nil
	})
	// nodeskoop_series_left_out has series only while a cap leaves out series.
	s.configure("probes.flow.max_series", "1")
	defer s.configure("probes.flow.max_series", "1000")
	s.until("Prometheus has what a cap left out", 15*time.Second, func() error {
		s.client.Container("main").Exec(causeProgram, "exchange", v4(s.web, 80), "3")
		s.client.Container("main").Exec(causeProgram, "exchange", v6(s.web, 8080), "3")
		if n, err := s.query("nodeskoop_series_left_out"); err != nil || n == 0 {
			return fmt.Errorf("%d series (%v)", n, err)
		}
		return nil
	})
	for _, file := range s.shipped(".json") {
		var d dashboard
		if err := json.Unmarshal([]byte(s.read(file)), &d); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		values := map[string]string{"__rate_interval": "5m", "__interval": "15s", "__range": "5m"}
		for _, v := range d.Templating.List {
			query, _ := v.Query.(string)
			if v.Type == "custom" {
				values[v.Name], _, _ = strings.Cut(query, ",")
			}
			if v.Type != "query" {
				continue
			}
			if m, ok := v.Query.(map[string]any); ok {
				query, _ = m["query"].(string)
			}
			offered, err := s.values(substitute(query, values))
			if err != nil || len(offered) == 0 {
				t.Errorf("%s: variable %s offers %q: %v", d.Title, v.Name, offered, err)
				continue
			}
			switch {
			case v.IncludeAll && v.AllValue != "":
				values[v.Name] = v.AllValue
			case v.IncludeAll:
				values[v.Name] = strings.Join(offered, "|")
			case slices.Contains(offered, "shop"):
				values[v.Name] = "shop"
			default:
				values[v.Name] = offered[0]
			}
		}
		asked, quiet, exempt := 0, 0, map[string]int{}
		for title, exprs := range targets(d.Panels) {
			for _, template := range exprs {
				expr := substitute(template, values)
				if why := s.exempt(expr); why != "" {
					exempt[why]++
					continue
				}
				asked++
				n, err := s.query(expr)
				// A panel that shows values above 0 may be empty, but the series
				// behind it must exist.
				if bare := regexp.MustCompile(` *> *0\b`).ReplaceAllString(expr, ""); err == nil && n == 0 && bare != expr {
					quiet++
					n, err = s.query(bare)
				}
				if err != nil || n == 0 {
					t.Errorf("%s, panel %q: no data (%v) for %s", d.Title, title, err, expr)
				}
			}
		}
		if asked == 0 {
			t.Errorf("%s asks nothing", file)
		}
		t.Logf("%s: %d queries, %d of them show only what is above 0 and nothing was; left out: %v", d.Title, asked, quiet, exempt)
	}
}

// The metrics shown by the original's dashboards, without those of rdma.
var (
	originalGauges = strings.Fields(`
		tcpsummary_tcptimewaitconn tcpsummary_tcpestablishedconn tcpsummary_tcpclosewaitconn tcpsummary_tcpsynsentconn
		tcpsummary_tcpsynrecvconn tcpsummary_tcptxqueue tcpsummary_tcprxqueue`)
	originalCounters = strings.Fields(`
		netdev_rxbytes netdev_txbytes netdev_txerrors netdev_rxerrors netdev_txpackets netdev_rxpackets
		tcp_passiveopens tcp_activeopens
		tcpext_listendrops tcpext_listenoverflows tcpext_tcpsynretrans tcpext_tcprcvqdrop tcpext_pfmemallocdrop tcpext_tcpbacklogdrop
		udp_rcvbuferrors udp_sndbuferrors udp_noports udp_inerrors`)
)

// panelsOf returns the original's queries for one selector.
func panelsOf(selector string) []string {
	list := []string{"kubeskoop_sock_inuse{" + selector + "} + kubeskoop_sock_orphan{" + selector + "}"}
	for _, m := range originalGauges {
		list = append(list, "kubeskoop_"+m+"{"+selector+"}")
	}
	for _, m := range originalCounters {
		list = append(list, "rate(kubeskoop_"+m+"{"+selector+"}[1m])")
	}
	return list
}

// originalPanels runs the queries of the original's dashboards: unchanged with
// pods.host_label = "", and by default with the host's label inserted.
func (s *suite) originalPanels() {
	t := s.T
	asked := 0
	demand := func(when string, exprs ...string) {
		t.Helper()
		asked += len(exprs)
		// A rate needs two samples.
		if err := s.awaits(15*time.Second, func() error {
			var empty []string
			for _, expr := range exprs {
				if n, err := s.query(expr); err != nil {
					return err
				} else if n == 0 {
					empty = append(empty, expr)
				}
			}
			if len(empty) > 0 {
				return fmt.Errorf("no data for\n%s", strings.Join(empty, "\n"))
			}
			return nil
		}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	const pod = `k8s_namespace="shop",k8s_pod="web-0"`
	loss := "sum(rate(kubeskoop_packetloss_total{k8s_node=" + strconv.Quote(node) + "}[1m]))"
	for _, v := range []struct{ query, want string }{
		{"label_values(k8s_namespace)", "shop"},
		{`label_values({k8s_namespace="shop"}, k8s_pod)`, "web-0"},
		{"label_values(kubeskoop_netdev_rxbytes, k8s_node)", node},
	} {
		if offered, err := s.values(v.query); err != nil || !slices.Contains(offered, v.want) {
			t.Errorf("%s offers %q (%v), want %s among them", v.query, offered, err, v.want)
		}
	}
	demand("pods dashboard", panelsOf(pod)...)
	demand("nodes dashboard with the label hostNetwork", append(panelsOf(`k8s_node="`+node+`",k8s_pod="hostNetwork"`), loss)...)
	if n, err := s.query(`kubeskoop_netdev_rxbytes{k8s_pod=""}`); err != nil || n != 0 {
		t.Errorf(`by default %d series have k8s_pod="" (%v)`, n, err)
	}

	s.configure("pods.host_label", `""`)
	host, others := `k8s_node="`+node+`",k8s_pod=""`, `k8s_node="`+node+`",k8s_pod!=""`
	demand("nodes dashboard as it is", append(panelsOf(host), loss,
		"rate(kubeskoop_netdev_rxbytes{"+others+"}[1m])", "rate(kubeskoop_netdev_txbytes{"+others+"}[1m])",
		"kubeskoop_sock_inuse{"+others+"} + kubeskoop_sock_orphan{"+others+"}")...)
	demand("pods dashboard with an empty label for the host", panelsOf(pod)...)
	s.until("only pods have a pod's name", 15*time.Second, func() error {
		if n, err := s.query(`kubeskoop_netdev_rxbytes{k8s_pod="hostNetwork"}`); err != nil || n != 0 {
			return fmt.Errorf("%d series of hostNetwork (%v)", n, err)
		}
		return nil
	})
	s.configure("pods.host_label", `"hostNetwork"`)
	t.Logf("%d queries of the original have data", asked)
}
