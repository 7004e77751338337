package main

import (
	"encoding/json"
	"maps"
	"os/exec"
	"strings"
	"testing"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// TestDemo: `make demo` causes the events that it announces, with the programs that it
// asks for. TestFaults proves the cause that the demo leaves to diagnose, closed-port.
func TestDemo(t *testing.T) {
	need.Root(t)
	need.Program(t, "ip", "nft", "busybox", "bash", "unshare")
	p := start(t, "events", "--config", "/dev/null", "--json", "--all")
	testkit.Eventually(t, "it watches", func() bool { return strings.Contains(p.logged(), "Watching ") })
	for _, probe := range []string{"packetloss", "socketlatency", "tcpreset", "tcpretrans"} {
		need.Kernel(t, !strings.Contains(p.logged(), probe), "it cannot run the probe "+probe)
	}

	// What is missing so far, as an event with the service's port.
	missing := map[[2]string]bool{
		{"TCPRESET_NOSOCK", "7"}: true, {"TCPRESET_RECEIVE", "7"}: true, {"PacketLoss", "7"}: true,
		{"PacketLoss", "9"}: true, {"SOCKETLAT_READSLOW", "80"}: true, {"TCPRetrans", "81"}: true,
	}
	look := func() bool {
		for line := range strings.Lines(p.printed()) {
			var e map[string]string
			if json.Unmarshal([]byte(line), &e) == nil && (strings.HasPrefix(e["KUBESKOOP_SADDR"], "10.99.0.") || strings.HasPrefix(e["KUBESKOOP_SADDR"], "fd99::")) {
				delete(missing, [2]string{e["KUBESKOOP_EVENT"], e["KUBESKOOP_SPORT"]})
				delete(missing, [2]string{e["KUBESKOOP_EVENT"], e["KUBESKOOP_DPORT"]})
			}
		}
		return len(missing) == 0
	}
	// Namespaces outside pods share a limit on events. Other tests on this machine may
	// use it up, so the demo may run several times.
	for range 4 {
		cmd := exec.Command("unshare", "--net", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /run && exec packaging/demo")
		cmd.Dir = "../.."
		demo := testkit.Start(t, cmd)
		testkit.Eventually(t, "the demo asks for diagnose", func() bool { return strings.Contains(demo.Log.String(), "diagnose") || demo.Ended() })
		found := testkit.Within(testkit.Patience/4, look)
		demo.Stop()
		if code := demo.ProcessState.ExitCode(); code != 0 {
			t.Fatalf("the demo ended with %d:\n%s", code, demo.Log)
		}
		if found {
			return
		}
	}
	for kind := range maps.Keys(missing) {
		t.Errorf("no event %s about port %s", kind[0], kind[1])
	}
}
