package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nodeskoop/cmd/nodeskoop/internal/diagnose"
	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

func TestDiagnoseCommandLine(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--for 1s", "out of range: use 2s to 10m"},
		{"--for 1h", "out of range"},
		{"--for soon", "is not a duration"},
		{"--pod /x", "is not NAMESPACE/NAME"},
		{"--pod=", "--pod has an empty value"},
		{"--pod unknown", "unknown is no pod"},
		{"extra", "diagnose takes no argument"},
	} {
		code, out, errs := call(t, append([]string{"diagnose", "--config", "/dev/null"}, strings.Fields(c.args)...)...)
		if code != exitUsage || !strings.Contains(errs, c.want) || out != "" {
			t.Errorf("%s: exit %d, %q, %q; want exit 2 and %q", c.args, code, out, errs, c.want)
		}
	}
}

// A signal ends diagnose without findings, and its message says why there are none.
func TestDiagnoseInterrupted(t *testing.T) {
	need.Root(t)
	need.Short(t)
	for _, after := range []time.Duration{0, 3 * time.Second} { // while it loads the probes, and while it looks
		ctx, stop := context.WithTimeout(t.Context(), after)
		var out, errs bytes.Buffer
		code := run(ctx, []string{"nodeskoop", "diagnose", "--config", "/dev/null", "--for", "2m"}, &out, &errs)
		stop()
		if code != exitFailure || out.Len() > 0 || !strings.Contains(errs.String(), "nodeskoop: diagnose: interrupted before the 2m0s were over: causes are named from a whole observation only") {
			t.Errorf("after %v: exit %d, %s%s", after, code, out.String(), errs.String())
		}
	}
}

// TestDiagnoseWithFewProbes: what the probes that --probe leaves out would show is not
// looked at, which diagnose says, so that "nothing found" is not taken for more.
func TestDiagnoseWithFewProbes(t *testing.T) {
	need.Root(t)
	need.Short(t)
	for args, missing := range map[string]int{"": 0, "--probe=tcp": len(diagnose.Probes()), "--probe=tcp,conntrack": len(diagnose.Probes()) - 1} {
		code, out, errs := call(t, slices.DeleteFunc([]string{"diagnose", "--config", "/dev/null", "--json", "--for", "2s", args}, func(a string) bool { return a == "" })...)
		var d diagnosis
		if err := json.Unmarshal([]byte(out), &d); code != 0 || err != nil {
			t.Fatalf("%q: exit %d, %v: %s%s", args, code, err, out, errs)
		}
		n := 0
		for _, x := range d.NotLooked {
			if slices.Contains(diagnose.Probes(), strings.TrimPrefix(x.What, "probe ")) && x.Why == "it is not among the chosen probes" {
				n++
			}
		}
		if n != missing {
			t.Errorf("%q: %d probes are not looked at, want %d: %+v", args, n, missing, d.NotLooked)
		}
	}
}

// diagnosis is the part of diagnose's JSON that programs read.
type diagnosis struct {
	Version   string
	Begin     time.Time
	Seconds   float64
	Pods      int
	Findings  []struct{ Cause, Title, Pod, Blame string }
	NotLooked []struct{ What, Why string } `json:"not_looked"`
}

// TestDiagnose: a rule in a pod that drops what another pod sends is named, and
// only that pod is blamed. For an unrelated pod nothing is found.
func TestDiagnose(t *testing.T) {
	need.Root(t)
	need.Short(t)
	need.Program(t, "nft", "nsenter", "bash")
	ctd := pods.Start(t)
	run := func(name string, command ...string) *pods.Pod {
		return ctd.RunPod(pods.PodSpec{Namespace: "shop", Name: name, Containers: []pods.ContainerSpec{{Name: "main", Command: command}}})
	}
	web, idle := run("web-0", "sleep", "100000"), run("idle-0", "sleep", "100000")
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(web.PID), "-n", "nft", "add table inet np; add chain inet np input { type filter hook input priority 0; }; add rule inet np input udp dport 9 counter drop").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dir := t.TempDir()
	cfg := conf(t, dir, fmt.Sprintf("host_netns = %q\n[pods]\nsockets = [%q]\n", ctd.Netns, ctd.Socket))
	to := ""
	for _, a := range web.Addrs {
		if a.Is4() {
			to = a.String()
		}
	}
	client := run("client-0", "sleep", "100000")
	testkit.Start(t, exec.Command("nsenter", "-t", strconv.Itoa(client.PID), "-n", "bash", "-c", "while sleep 0.2; do echo > /dev/udp/"+to+"/9; done"))
	testkit.Eventually(t, "the rule drops packets", func() bool {
		out, err := exec.Command("nsenter", "-t", strconv.Itoa(web.PID), "-n", "nft", "list", "ruleset").CombinedOutput()
		return err == nil && !strings.Contains(string(out), "counter packets 0 ")
	})
	look := func(args ...string) (d diagnosis) {
		t.Helper()
		code, out, errs := call(t, append([]string{"diagnose", "--config", cfg, "--json", "--for", "5s"}, args...)...)
		if code != 0 {
			t.Fatalf("exit %d: %s", code, errs)
		}
		if err := json.Unmarshal([]byte(out), &d); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return d
	}
	d := look()
	if d.Pods != 3 || d.Seconds < 5 || d.Version == "" || d.Begin.IsZero() {
		t.Errorf("%+v", d)
	}
	// The machine may have problems of its own meanwhile.
	if len(d.Findings) == 0 || d.Findings[0].Cause != "policy-drop-pod" || d.Findings[0].Blame != "shop/web-0" || d.Findings[0].Pod != "shop/web-0" {
		t.Errorf("%+v", d.Findings)
	}
	for _, f := range d.Findings {
		if f.Blame != "shop/web-0" && f.Blame != "node" || strings.Contains(f.Title, idle.Name) {
			t.Errorf("%+v", f)
		}
	}
	if d := look("--pod", "idle-0"); slices.ContainsFunc(d.Findings, func(f struct{ Cause, Title, Pod, Blame string }) bool { return f.Blame != "node" }) {
		t.Errorf("of the pod that has nothing to do with it: %+v", d.Findings)
	}
	code, text, errs := call(t, "diagnose", "--config", cfg, "--for", "5s", "--pod", "shop/client-0")
	if code != 0 || !strings.Contains(text, "shop/web-0 drops packets (UDP port 9)") || !strings.Contains(text, "found at shop/client-0, watched for 5 s") {
		t.Errorf("exit %d: %s%s", code, text, errs)
	}
	code, text, errs = call(t, "diagnose", "--config", cfg, "--pod", "shop/web-1")
	if code != exitUsage || text != "" || !strings.Contains(errs, `no pod "shop/web-1" runs here; perhaps shop/web-0?`) {
		t.Errorf("exit %d: %q %q", code, text, errs)
	}
}
