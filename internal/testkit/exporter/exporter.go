// Package exporter runs node_exporter for tests.
package exporter

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// Program is Debian's name of node_exporter.
const Program = "prometheus-node-exporter"

// Exporter is a node_exporter that listens on a port chosen by the kernel.
type Exporter struct {
	*testkit.Process
	URL string // address of its metrics page
}

// Textfile returns the flags for node_exporter's textfile collector on a folder.
func Textfile(dir string) []string {
	return []string{"--collector.textfile", "--collector.textfile.directory=" + dir}
}

// Start runs node_exporter with no collectors other than those in flags, and returns when
// it listens. At the end of the test it fails the test if node_exporter exited by itself or
// logged an error.
func Start(t testing.TB, flags ...string) *Exporter {
	t.Helper()
	need.Program(t, Program)
	e, err := TryStart(t, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if e.Ended() {
			t.Errorf("node_exporter ended by itself:\n%s", e.Log)
		}
		if strings.Contains(strings.ToLower(e.Log.String()), "level=error") {
			t.Errorf("node_exporter complained:\n%s", e.Log)
		}
	})
	return e
}

// TryStart is Start for another goroutine than the test's, or for a node_exporter that the
// test itself ends.
func TryStart(t testing.TB, flags ...string) (*Exporter, error) {
	p, err := testkit.TryStart(t, exec.Command(Program, append([]string{
		"--web.listen-address=127.0.0.1:0", "--web.disable-exporter-metrics", "--collector.disable-defaults"}, flags...)...))
	if err != nil {
		return nil, err
	}
	addr := ""
	if !testkit.Within(testkit.Patience, func() bool { addr = Address(p.Log.String()); return addr != "" || p.Ended() }) || addr == "" {
		return nil, fmt.Errorf("node_exporter does not listen:\n%s", p.Log)
	}
	return &Exporter{p, "http://" + addr + "/metrics"}, nil
}

var listening = regexp.MustCompile(`msg="Listening on" address=(\S+)`)

// Address returns the listening address from node_exporter's log; "" before it listens.
func Address(log string) string {
	if m := listening.FindStringSubmatch(log); m != nil {
		return m[1]
	}
	return ""
}

// Scrape fetches node_exporter's metrics.
func (e *Exporter) Scrape() ([]byte, error) {
	r, err := http.Get(e.URL)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s\n%.2000s", e.URL, r.Status, b)
	}
	return b, nil
}

// Families returns the scraped families by name.
func (e *Exporter) Families() (map[string]*dto.MetricFamily, error) {
	b, err := e.Scrape()
	if err != nil {
		return nil, err
	}
	p := expfmt.NewTextParser(model.LegacyValidation)
	return p.TextToMetricFamilies(bytes.NewReader(b))
}
