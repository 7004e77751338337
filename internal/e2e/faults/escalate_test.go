package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeskoop/collect/catalog"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

const (
	// escalatesWithin is how long a fault may last before the daemon watches closer: two
	// windows of 10 s, the rest of the one before, and a cycle.
	escalatesWithin = 45 * time.Second
	// explainsIn is how long the probes then run before their events are counted.
	explainsIn = 15 * time.Second
)

// watch is a daemon on the node, with the released budget and thresholds.
type watch struct {
	p    *testkit.Process
	file string
}

// watchNode starts the daemon. It has no journal, so its events are in its log.
func (l *lab) watchNode(t *testing.T) *watch {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "nodeskoop.toml")
	text := fmt.Sprintf("node_name = \"node-7\"\ninterval = \"5s\"\nhost_netns = %q\n[pods]\nsockets = [%q]\n[textfile]\ndir = %q\n[state]\ndir = %q\n[history]\nenabled = false\n", l.c.Netns, l.c.Socket, dir, filepath.Join(dir, "state"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	w := &watch{file: filepath.Join(dir, "nodeskoop.prom")}
	cmd := exec.Command(l.nodeskoop, "run", "--config", config)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	if err := l.c.Do(func() (err error) { w.p, err = testkit.TryStart(t, cmd); return err }); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the daemon has tried the probes on standby", func() bool {
		b, err := os.ReadFile(w.file)
		return err == nil && strings.Contains(string(b), "nodeskoop_probe_escalated{")
	})
	return w
}

// because is why the daemon watches closer; "" if it does not.
func (w *watch) because() string {
	_, rest, ok := strings.Cut(w.p.Log.String(), `msg="watching closer" `)
	if !ok {
		return ""
	}
	_, rest, _ = strings.Cut(rest, `because="`)
	why, _, _ := strings.Cut(rest, `"`)
	return why
}

// explained counts the events of probes that run only while the daemon watches closer.
func (w *watch) explained() string {
	n := map[string]int{}
	for line := range strings.Lines(w.p.Log.String()) {
		var fields map[string]string
		if !strings.HasPrefix(line, `{"MESSAGE":`) || json.Unmarshal([]byte(line), &fields) != nil {
			continue
		}
		if p := catalog.ProbeByName(fields["KUBESKOOP_PROBE"]); p != nil && p.Escalate {
			whose := strings.TrimPrefix(fields["K8S_NAMESPACE"]+"/"+fields["K8S_POD"], "hostNetwork/")
			n[fields["KUBESKOOP_EVENT"]+" of "+whose]++
		}
	}
	var list []string
	for what := range n {
		list = append(list, what)
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}

// TestEscalation shows which of the faults that NODESKOOP_ESCALATE names (all, or names as
// in NODESKOOP_FAULTS, and "healthy") make the daemon watch closer, why, and which events of
// the probes that run then are about it. No healthy scene may. NODESKOOP_ESCALATE_DOC is the
// page to write.
func TestEscalation(t *testing.T) {
	asked := os.Getenv("NODESKOOP_ESCALATE")
	need.Target(t, "test-escalation", asked != "")
	l := newLab(t)
	l.settle(t)
	var page strings.Builder
	var list []fault
	calmOnes := 0
	for _, what := range strings.Split(asked, ",") {
		switch what {
		case "all":
			list, calmOnes = append(list, faults...), len(calm)
		case "healthy":
			calmOnes = len(calm)
		default:
			list = append(list, byName(t, what))
		}
	}
	for _, f := range list {
		if f.machine && os.Getenv("NODESKOOP_FAULTS_MACHINE") == "" && asked == "all" {
			continue
		}
		t.Run(f.name(), func(t *testing.T) {
			w := l.watchNode(t)
			t.Cleanup(func() { l.clean(t) })
			_, p := f.make(&scene{l, t, 0})
			p.begun(t)
			before := p.begun(t)
			start := time.Now()
			why := ""
			for why == "" && time.Since(start) < escalatesWithin {
				time.Sleep(time.Second)
				why = w.because()
			}
			took := time.Since(start)
			explained := ""
			if why != "" {
				time.Sleep(explainsIn)
				explained = w.explained()
			}
			proved := p.held(t, before, time.Since(start))
			t.Logf("proof: %s; after %v: %q; events: %s", proved, took.Round(time.Second), why, explained)
			if why == "" {
				why = "no sign"
			}
			fmt.Fprintf(&page, "| %s | %s | %s |\n", f.name(), cell(why), cell(explained))
		})
	}
	for i := range calmOnes {
		t.Run("health: "+calm[i].name, func(t *testing.T) {
			w := l.watchNode(t)
			t.Cleanup(func() { l.clean(t) })
			calm[i].make(&scene{l, t, 0})
			time.Sleep(escalatesWithin)
			if why := w.because(); why != "" {
				t.Errorf("a node in good health is watched closer: %s", why)
			}
		})
	}
	if file := os.Getenv("NODESKOOP_ESCALATE_DOC"); file != "" {
		text := "| fault | sign | events of the probes that then run |\n|---|---|---|\n" + page.String()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("\n%s", page.String())
}
