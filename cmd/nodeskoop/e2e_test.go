package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/exporter"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

// scrape requests node_exporter's metrics.
func scrape(t *testing.T, e *exporter.Exporter) map[string]*dto.MetricFamily {
	t.Helper()
	fams, err := e.Families()
	if err != nil {
		t.Fatal(err)
	}
	return fams
}

// value returns a pod's value; ok is false if there is no such series.
func value(fams map[string]*dto.MetricFamily, name, namespace, pod string) (v float64, ok bool) {
	f := fams[name]
	if f == nil {
		return 0, false
	}
	for _, m := range f.Metric {
		l := map[string]string{}
		for _, x := range m.Label {
			l[x.GetName()] = x.GetValue()
		}
		if l["k8s_namespace"] == namespace && l["k8s_pod"] == pod {
			return m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue(), true
		}
	}
	return 0, false
}

// End to end with real components: containerd's pods, the daemon, its textfile, and
// node_exporter.
func TestFromPodsToTheScrape(t *testing.T) {
	need.Root(t)
	ctd := pods.Start(t)
	web := ctd.RunPod(pods.PodSpec{Namespace: "shop", Name: "web-0", Labels: map[string]string{"app": `we"b\`},
		Containers: []pods.ContainerSpec{{Name: "main", Command: []string{"sh", "-c", "httpd -p 8080; sleep 100000"}}}})
	ctd.RunPod(pods.PodSpec{Namespace: "kube-system", Name: "agent", HostNetwork: true,
		Containers: []pods.ContainerSpec{{Name: "main", Command: []string{"sleep", "100000"}}}})
	ctd.RunPlain(pods.PlainSpec{Namespace: "default", ID: "lone"})

	dir := t.TempDir()
	cfg := conf(t, dir, fmt.Sprintf(`
node_name = "n1"
interval = "1s"
host_netns = %q
[probes]
enabled = ["default", "packetloss", "tcpreset", "tcpretrans"]
[probes.conntrack]
pods = true
[probes.ipvs]
pods = true
[textfile]
dir = %q
[pods]
sockets = [%q]
[pods.labels]
app = "${labels:app}"
`, ctd.Netns, dir, ctd.Socket))
	file := filepath.Join(dir, "nodeskoop.prom")
	p := start(t, "run", "--config", cfg, "--foreground-events")
	e := exporter.Start(t, exporter.Textfile(dir)...)
	testkit.Eventually(t, "the pods have series", func() bool {
		_, a := value(parseProm(t, file), "kubeskoop_tcp_insegs", "shop", "web-0")
		_, b := value(parseProm(t, file), "kubeskoop_tcp_insegs", "default", "lone")
		_, c := value(parseProm(t, file), "kubeskoop_fdopenfd", "kube-system", "agent")
		return a && b && c
	})

	// The host has every metric of the enabled probes, and a pod has those that are
	// per namespace or pod; the labels are correct.
	fams := scrape(t, e)
	if v := fams["node_textfile_scrape_error"].Metric[0].GetGauge().GetValue(); v != 0 {
		t.Errorf("node_textfile_scrape_error %v", v)
	}
	enabled, _ := config.SelectProbes([]string{"default", "packetloss", "tcpreset", "tcpretrans"})
	for _, m := range catalog.Metrics() {
		if m.Probe() == "" || !slices.Contains(enabled, m.Probe()) || len(m.Labels) > 0 {
			continue
		}
		host, pod, hostPod := "hostNetwork", m.Scope == catalog.PerNetns || m.Scope == catalog.PerPod, m.Scope == catalog.PerPod
		if _, ok := value(fams, m.Name, host, host); !ok {
			t.Errorf("%s has no series of the host", m.Name)
		}
		for _, c := range []struct {
			namespace, pod string
			want           bool
		}{{"shop", "web-0", pod}, {"default", "lone", pod}, {"kube-system", "agent", hostPod}} {
			if _, ok := value(fams, m.Name, c.namespace, c.pod); ok != c.want {
				t.Errorf("%s: series of %s/%s: %v, want %v", m.Name, c.namespace, c.pod, ok, c.want)
			}
		}
		if f := fams[m.Name]; f != nil {
			typ := map[catalog.Type]dto.MetricType{catalog.Counter: dto.MetricType_COUNTER, catalog.Gauge: dto.MetricType_GAUGE, catalog.Histogram: dto.MetricType_HISTOGRAM}[m.Type]
			if f.GetType() != typ || f.GetHelp() != m.Help {
				t.Errorf("%s: type %v, help %q", m.Name, f.GetType(), f.GetHelp())
			}
		}
	}
	for _, m := range fams["kubeskoop_tcp_insegs"].Metric {
		for _, l := range m.Label {
			if l.GetName() == "app" && l.GetValue() != `we"b\` && l.GetValue() != "" {
				t.Errorf("label app is %q", l.GetValue())
			}
		}
	}

	// Traffic inside the pod counts for the pod, exactly as in its kernel counters.
	main := web.Container("main")
	for range 7 {
		main.Exec("sh", "-c", "wget -q -O /dev/null http://127.0.0.1:8080/ || true")
	}
	want := snmp(t, main.PID, "Tcp", "PassiveOpens")
	if want < 7 {
		t.Fatalf("the pod accepted %v connections", want)
	}
	testkit.Eventually(t, "the pod's connections are in the scrape", func() bool {
		v, _ := value(scrape(t, e), "kubeskoop_tcp_passiveopens", "shop", "web-0")
		return v == want
	})

	// An event inside the pod belongs to the pod.
	main.Exec("sh", "-c", "nc -w 1 127.0.0.1 7 || true")
	testkit.Eventually(t, "the reset in the pod is an event of the pod", func() bool {
		for _, line := range strings.Split(p.printed(), "\n") {
			if strings.Contains(line, "TCPRESET_NOSOCK") && strings.Contains(line, "shop/web-0") && strings.Contains(line, "127.0.0.1:7 -> 127.0.0.1:") {
				return true
			}
		}
		return false
	})
	testkit.Eventually(t, "the loss in the pod is counted as the pod's", func() bool {
		v, _ := value(scrape(t, e), "kubeskoop_packetloss_total", "shop", "web-0")
		return v >= 1
	})

	// A removed pod loses its series; a new one gets them soon.
	web.Remove()
	ctd.RunPod(pods.PodSpec{Namespace: "shop", Name: "web-1", Containers: []pods.ContainerSpec{{Name: "main", Command: []string{"sleep", "100000"}}}})
	testkit.Eventually(t, "the series follow the pods", func() bool {
		f := parseProm(t, file)
		_, gone := value(f, "kubeskoop_tcp_insegs", "shop", "web-0")
		_, come := value(f, "kubeskoop_tcp_insegs", "shop", "web-1")
		return !gone && come
	})

	// The commands show the same.
	bin, _ := binary()
	out, err := exec.Command(bin, "pods", "--json", "--config", cfg).Output()
	var rows []podRow
	if err != nil || json.Unmarshal(out, &rows) != nil || len(rows) != 3 {
		t.Fatalf("pods: %v\n%s", err, out)
	}
	for _, r := range rows {
		if len(r.Processes) == 0 || r.HostNetwork != (r.Pod == "agent") || (r.Netns == 0) != r.HostNetwork {
			t.Errorf("%+v", r)
		}
		if r.Pod == "web-1" && len(r.Addresses) < 2 {
			t.Errorf("web-1 has addresses %v, want IPv4 and IPv6", r.Addresses)
		}
	}
	check, err := exec.Command(bin, "check", "--config", cfg).CombinedOutput()
	if err != nil || !strings.Contains(string(check), "3 known, 1 of them in the host's network") {
		t.Errorf("check: %v\n%s", err, check)
	}

	// While containerd is down, the pods' series continue.
	ctd.Kill()
	testkit.Eventually(t, "it is seen that containerd is away", func() bool {
		v, ok := value(parseProm(t, file), "nodeskoop_containerd_up", "hostNetwork", "hostNetwork")
		return ok && v == 0
	})
	if _, ok := value(parseProm(t, file), "kubeskoop_tcp_insegs", "shop", "web-1"); !ok {
		t.Error("a pod lost its series when containerd ended")
	}
	ctd.Run()
	testkit.Eventually(t, "containerd is back", func() bool {
		v, _ := value(parseProm(t, file), "nodeskoop_containerd_up", "hostNetwork", "hostNetwork")
		return v == 1
	})
	if strings.Contains(p.logged(), "level=ERROR") {
		t.Errorf("errors were logged:\n%s", p.logged())
	}
}

// snmp reads a counter of a process's namespace without the probes.
func snmp(t *testing.T, pid int, group, name string) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/snmp", pid))
	if err != nil {
		t.Fatal(err)
	}
	var head []string
	for _, l := range strings.Split(string(b), "\n") {
		f := strings.Fields(l)
		if len(f) == 0 || f[0] != group+":" {
			continue
		}
		if head == nil {
			head = f
			continue
		}
		v, err := strconv.ParseFloat(f[slices.Index(head, name)], 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	t.Fatalf("no %s.%s", group, name)
	return 0
}
