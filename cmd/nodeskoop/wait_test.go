package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
	"nodeskoop/internal/testkit/pods"
)

// TestWaitForContainerd: collect and pods wait for a containerd that is slow or not
// there yet. If it does not answer, and a machine has a containerd, the exit code says
// that pods are missing.
func TestWaitForContainerd(t *testing.T) {
	need.Root(t)
	ctd := pods.New(t)
	cfg := conf(t, t.TempDir(), fmt.Sprintf("host_netns = %q\n[pods]\nsockets = [%q]\n", ctd.Netns, ctd.Socket))
	collect := []string{"collect", "--config", cfg, "--probe", "tcp"}
	list := []string{"pods", "--config", cfg}
	type result struct {
		code      int
		out, errs string
	}
	begin := func(args ...string) <-chan result {
		c := make(chan result, 1)
		go func() {
			var r result
			r.code, r.out, r.errs = call(t, args...)
			c <- r
		}()
		return c
	}
	const host, ofPod = `k8s_namespace="hostNetwork"`, `k8s_pod="web-0"`
	hasPod := func(what string, c <-chan result, text string) {
		t.Helper()
		testkit.Eventually(t, "it ends: "+what, func() bool { return len(c) > 0 })
		if r := <-c; r.code != 0 || !strings.Contains(r.out, text) || strings.Contains(r.errs, "missing") {
			t.Errorf("%s: exit %d, %q\n%s", what, r.code, r.errs, r.out)
		}
	}

	if code, out, errs := call(t, collect...); code != 0 || !strings.Contains(out, host) || strings.Contains(errs, "missing") {
		t.Errorf("collect without containerd: exit %d, %q", code, errs)
	}
	if code, _, errs := call(t, list...); code != exitFailure || strings.Contains(errs, "--wait") {
		t.Errorf("pods without containerd: exit %d, %q", code, errs)
	}
	if code, out, errs := call(t, append(collect, "--wait", "500ms")...); code != exitPartial || !strings.Contains(out, host) || !strings.Contains(errs, "there is no containerd socket") {
		t.Errorf("collect that waits in vain: exit %d, %q", code, errs)
	}

	ctd.Run()
	ctd.RunPod(pods.PodSpec{Namespace: "shop", Name: "web-0", Containers: []pods.ContainerSpec{{Name: "main"}}})
	ctd.Stop()
	late := begin(append(collect, "--wait", "1m")...)
	if testkit.Within(time.Second, func() bool { return len(late) > 0 }) {
		t.Error("collect does not wait for a containerd that is down")
	}
	ctd.Run()
	hasPod("collect, for a containerd that starts", late, ofPod)

	thaw := ctd.Freeze(ctd.PID())
	if code, out, errs := call(t, collect...); code != exitPartial || !strings.Contains(out, host) || strings.Contains(out, ofPod) ||
		!strings.Contains(errs, "the values of pods are missing") || !strings.Contains(errs, "--wait 30s") {
		t.Errorf("collect beside a containerd that is silent: exit %d, %q", code, errs)
	}
	if code, out, errs := call(t, list...); code != exitPartial || out != "" || !strings.Contains(errs, "--wait 30s") {
		t.Errorf("pods beside a containerd that is silent: exit %d, %q %q", code, out, errs)
	}
	slow := begin(append(list, "--wait", "1m")...)
	if testkit.Within(3*time.Second, func() bool { return len(slow) > 0 }) {
		t.Error("pods does not wait for a containerd that is silent")
	}
	thaw()
	hasPod("pods, for a containerd that is slow", slow, "web-0")
}
