package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// unitCapabilities returns the unit's capabilities, without CAP_, in lower case.
func unitCapabilities(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../../systemd/nodeskoop.service")
	if err != nil {
		t.Fatal(err)
	}
	var caps []string
	for _, m := range regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindAllStringSubmatch(string(b), -1) {
		for _, c := range strings.Fields(m[1]) {
			caps = append(caps, strings.ToLower(strings.TrimPrefix(c, "CAP_")))
		}
	}
	return caps
}

// probesWith runs `nodeskoop probes` with exactly these capabilities.
func probesWith(t *testing.T, caps []string, config string) map[string]session.Probe {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	set := "-all"
	for _, c := range caps {
		set += ",+" + c
	}
	out, err := exec.Command("setpriv", "--bounding-set="+set, "--inh-caps=-all", "--no-new-privs",
		path, "probes", "--json", "--config", config).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("nodeskoop probes with %v: %v\n%s", caps, err, exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	var rows []session.Probe
	if err := json.Unmarshal(out, &rows); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	byName := map[string]session.Probe{}
	for _, r := range rows {
		byName[r.Probe] = r
	}
	return byName
}

// TestProbesNameTheCapabilityTheyLack removes the unit's capabilities, one and two
// at a time. A probe that no longer works must name a removed one, and no unrelated
// cause.
func TestProbesNameTheCapabilityTheyLack(t *testing.T) {
	need.Root(t)
	need.Program(t, "setpriv", "unshare", "sleep")
	all := unitCapabilities(t)
	if len(all) != 8 {
		t.Fatalf("the unit grants %v; this test knows 8", all)
	}
	// A process of another user, whose network namespace the probes have to enter.
	other := exec.Command("unshare", "--net", "--", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	netns := fmt.Sprintf("/proc/%d/ns/net", other.Process.Pid)
	testkit.Eventually(t, "another user's process in a namespace of its own", func() bool {
		there, err := os.Readlink(netns)
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", other.Process.Pid))
		return err == nil && there != own && strings.TrimSpace(string(comm)) == "sleep"
	})
	host := filepath.Join(t.TempDir(), "host.toml")
	away := filepath.Join(t.TempDir(), "away.toml")
	for file, ns := range map[string]string{host: "/proc/self/ns/net", away: netns} {
		if err := os.WriteFile(file, []byte("host_netns = "+config.Literal(ns)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tracing := []string{"biolatency", "flow", "net_softirq", "netiftxlatency", "packetloss", "socketlatency", "tcpreset", "tcpretrans"}
	for _, test := range []struct {
		without []string
		config  string
		fail    []string // probes that must fail, unless they fail with all capabilities too
		lack    []string // these probes work with a limitation
	}{
		{nil, host, nil, nil},
		{[]string{"sys_ptrace"}, host, []string{"io"}, nil},
		// Iterators need fewer capabilities than reading each process's files.
		{[]string{"sys_ptrace", "sys_admin", "bpf"}, host, append([]string{"fd", "io"}, tracing...), nil},
		{[]string{"dac_read_search", "dac_override", "sys_admin", "perfmon"}, host, append([]string{"fd"}, tracing...), nil},
		{[]string{"sys_admin", "bpf"}, host, tracing, nil},
		{[]string{"sys_admin", "perfmon"}, host, tracing, nil},
		{[]string{"sys_admin", "net_admin"}, host, []string{"flow"}, nil},
		{[]string{"sys_admin"}, away, []string{"qdisc", "tcpsummary"}, nil},
		{[]string{"net_admin"}, host, nil, nil},
		{[]string{"syslog"}, host, nil, []string{"packetloss"}},
		{all, host, append([]string{"fd", "io"}, tracing...), nil},
	} {
		t.Run("without "+strings.Join(test.without, " "), func(t *testing.T) {
			before := probesWith(t, all, test.config)
			after := probesWith(t, slices.DeleteFunc(slices.Clone(all), func(c string) bool { return slices.Contains(test.without, c) }), test.config)
			named := func(text string) bool {
				return slices.ContainsFunc(test.without, func(c string) bool { return strings.Contains(text, "CAP_"+strings.ToUpper(c)) })
			}
			for name, r := range after {
				said := r.Reason + strings.Join(r.Limitations, "\n")
				if strings.Contains(strings.ToLower(said), "memlock") {
					t.Errorf("%s speaks of a memory limit: %s", name, said)
				}
				if before[name].Works && !r.Works && !named(r.Reason) {
					t.Errorf("%s does not name the capability: %s", name, r.Reason)
				}
			}
			for _, name := range test.fail {
				if before[name].Works && after[name].Works {
					t.Errorf("%s works all the same", name)
				}
			}
			for _, name := range test.lack {
				if r := after[name]; before[name].Works && !named(strings.Join(r.Limitations, "\n")) {
					t.Errorf("%s does not say what it misses: %q %s", name, r.Limitations, r.Reason)
				}
			}
		})
	}
}

// TestCountsNeedNoMoreCapabilities: with the capabilities that the catalogue lists for
// the eBPF probes, counters by namespace are assigned to their owner. Entering a
// namespace would need one capability more.
func TestCountsNeedNoMoreCapabilities(t *testing.T) {
	need.Root(t)
	need.Program(t, "setpriv")
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "none.toml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	works := probesWith(t, unitCapabilities(t), config)
	for _, p := range catalog.Probes() {
		i := slices.IndexFunc(p.Metrics, func(m catalog.Metric) bool {
			return m.Scope == catalog.PerNetns && m.Type == catalog.Counter && len(m.Labels) == 0
		})
		if p.Source != catalog.EBPF || i < 0 || !works[p.Name].Works {
			continue
		}
		set := "-all,+sys_ptrace"
		for _, c := range p.Capabilities {
			set += ",+" + strings.ToLower(strings.TrimPrefix(c.Name, "CAP_"))
		}
		out, err := exec.Command("setpriv", "--bounding-set="+set, "--inh-caps=-all", "--no-new-privs", path, "collect", "--config", config, "--probe", p.Name).CombinedOutput()
		host := regexp.MustCompile("(?m)^" + p.Metrics[i].Name + `\{.*k8s_pod="hostNetwork"`)
		if err != nil || !host.Match(out) || strings.Contains(string(out), "left out") {
			t.Errorf("%s with %s: %v\n%s", p.Name, set, err, out)
		}
	}
}
