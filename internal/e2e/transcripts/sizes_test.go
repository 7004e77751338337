package transcripts

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// TestSizes measures the sizes of a pod's series that docs/fleet.md states.
func TestSizes(t *testing.T) {
	need.Target(t, "transcripts", os.Getenv("NODESKOOP_TRANSCRIPTS") != "")
	n := newNode(t)
	const pods = 10
	for i := range pods {
		n.server(fmt.Sprintf("web-%d", i), "tcp", 8080, "httpd", "-f", "-p", "8080")
	}
	config := strings.TrimPrefix(n.env[len(os.Environ())], "NODESKOOP_CONFIG=")
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	for name, more := range map[string]string{
		"defaults":          "",
		"skip_zero":         "[metrics]\nskip_zero = true\n",
		"no compat_names":   "compat_names = false\n",
		"exclude, -fd, -io": "[metrics]\nexclude = [\"kubeskoop_tcpext_tcpackskipped*\", \"kubeskoop_qdisc_*\"]\n[probes]\nenabled = [\"default\", \"-fd\", \"-io\"]\n",
	} {
		file := filepath.Join(n.dir, "sizes.toml")
		text := more + string(b)
		if strings.HasPrefix(more, "[") {
			text = string(b) + more
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(n.dir, "sizes.prom")
		_ = os.Remove(out)
		var log testkit.Log
		daemon := n.start("exec nodeskoop run --config "+file, &log, &log)
		written := func() []byte {
			b, _ := os.ReadFile(filepath.Join(n.dir, "nodeskoop.prom"))
			return b
		}
		testkit.Eventually(t, "the textfile has the pods", func() bool { return strings.Contains(string(written()), `k8s_pod="web-9"`) })
		b := written()
		_ = daemon.Process.Signal(os.Interrupt)
		_ = daemon.Wait()
		var series, bytes int
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, `k8s_pod="web-`) {
				series++
				bytes += len(line)
			}
		}
		t.Logf("%s: a pod has %.1f series, %.1f kB; the file has %.1f kB", name, float64(series)/pods, float64(bytes)/pods/1000, float64(len(b))/1000)
	}
}
