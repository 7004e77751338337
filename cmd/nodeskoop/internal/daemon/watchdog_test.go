package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/cmd/nodeskoop/internal/session"
	"nodeskoop/collect"
	"nodeskoop/collect/owner"
	"nodeskoop/internal/testkit"
	"nodeskoop/systemd"
)

// manager listens on a socket like systemd.
type manager struct {
	t *testing.T
	c *net.UnixConn
}

func newManager(t *testing.T) *manager {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return &manager{t, c}
}

// next returns the next message, "" if none comes in time.
func (m *manager) next(within time.Duration) string {
	buf := make([]byte, 4096)
	_ = m.c.SetReadDeadline(time.Now().Add(within))
	n, err := m.c.Read(buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// watched runs a daemon without probes; between supplies the loop's work between
// two cycles. The daemon logs to log; aborted is closed when it ends itself.
func watched(t *testing.T, patience time.Duration, ready bool, between <-chan func()) (log *testkit.Log, aborted <-chan struct{}) {
	r, err := collect.NewRunner(collect.Options{Interval: time.Hour, HostNetns: "/proc/self/ns/net"})
	if err != nil {
		t.Fatal(err)
	}
	log = new(testkit.Log)
	ended := make(chan struct{})
	d := &daemon{Session: &session.Session{Log: slog.New(slog.NewTextHandler(log, nil))}, runner: r, patience: patience, abort: func() { close(ended) }}
	d.ready.Store(ready)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { d.watchdog(ctx); done <- struct{}{} }()
	go func() { r.Run(ctx, func([]*dto.MetricFamily) {}, between); done <- struct{}{} }()
	t.Cleanup(func() {
		cancel()
		<-done
		<-done
		r.Close()
	})
	return log, ended
}

func TestWatchdogIsFedWhileTheLoopWaits(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(200*time.Millisecond.Microseconds()))
	watched(t, 100*time.Millisecond, true, nil)
	// Far beyond the patience, within one interval.
	for i := range 10 {
		if got := m.next(30 * time.Second); got != "WATCHDOG=1" {
			t.Fatalf("message %d: %q", i, got)
		}
	}
}

func TestWatchdogStarvesWhenTheLoopHangs(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(200*time.Millisecond.Microseconds()))
	entered, release := make(chan struct{}), make(chan struct{})
	between := make(chan func(), 1)
	between <- func() { close(entered); <-release }
	log, aborted := watched(t, 100*time.Millisecond, true, between)
	<-entered
	defer close(release)
	// Messages sent before the patience ended may still arrive; after that none may
	// come for several watchdog timeouts.
	quiet := false
	for range 100 {
		if m.next(time.Second) == "" {
			quiet = true
			break
		}
	}
	if !quiet {
		t.Error("the watchdog is fed although the sampling loop hangs")
	}
	// The daemon ends itself, and logs in one line where it hangs.
	select {
	case <-aborted:
	case <-time.After(testkit.Patience):
		t.Errorf("the daemon does not end:\n%s", log)
	}
	for _, want := range []string{"although the daemon has CPU", "daemon.TestWatchdogStarvesWhenTheLoopHangs.func1 watchdog_test.go:", " < collect.(*Runner).Run runner.go:", "the daemon ends itself"} {
		if strings.Count(log.String(), want) != 1 {
			t.Errorf("the log does not say %q once", want)
		}
	}
	if strings.Contains(log.String(), "testing.tRunner") || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("the log has more than the goroutine that hangs:\n%s", log)
	}
}

func TestStartMayTakeAsLongAsItGetsOn(t *testing.T) {
	m := newManager(t)
	watched(t, 100*time.Millisecond, false, nil)
	for range 3 {
		if got := m.next(30 * time.Second); !strings.HasPrefix(got, "EXTEND_TIMEOUT_USEC=") {
			t.Fatalf("before the first textfile it says %q", got)
		}
	}
}

func TestProbesDoNotHoldTheWatchdogUp(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", fmt.Sprint(200*time.Millisecond.Microseconds()))
	release := make(chan struct{})
	hangs := collect.Factory{Name: "tcp", New: func(collect.Env) (collect.Probe, error) { return hanging{release}, nil }}
	r, err := collect.NewRunner(collect.Options{Interval: time.Millisecond, Timeout: 300 * time.Millisecond, HostNetns: "/proc/self/ns/net", Enabled: []string{"tcp"}}, hangs)
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{Session: &session.Session{Log: slog.New(slog.DiscardHandler)}, runner: r, patience: 100 * time.Millisecond,
		abort: func() { t.Error("the daemon ends itself") }}
	d.ready.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	cycles, done, fed := make(chan struct{}, 100), make(chan struct{}), make(chan struct{})
	go func() {
		d.watchdog(ctx) // its last message must not reach the next test's socket
		close(fed)
	}()
	go func() {
		r.Run(ctx, func([]*dto.MetricFamily) {
			select {
			case cycles <- struct{}{}:
			default:
			}
		}, nil)
		close(done)
	}()
	// The first cycle takes longer than the patience, which does not count as
	// hanging.
	for i := range 8 {
		if got := m.next(30 * time.Second); got != "WATCHDOG=1" {
			t.Fatalf("message %d: %q", i, got)
		}
	}
	<-cycles
	close(release)
	cancel()
	<-done
	<-fed
	r.Close()
}

// hanging is a probe that does not return.
type hanging struct{ release chan struct{} }

func (h hanging) Granularity() collect.Granularity { return collect.EachNetns }
func (h hanging) Sample(*collect.View) error       { <-h.release; return nil }
func (h hanging) Close() error                     { return nil }

func TestStatusIsOneLine(t *testing.T) {
	m := newManager(t)
	r, err := collect.NewRunner(collect.Options{Interval: time.Hour, HostNetns: "/proc/self/ns/net"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d := &daemon{Session: &session.Session{Log: slog.New(slog.DiscardHandler)}, runner: r, pods: owner.NoPods{}, refused: fmt.Errorf("a.toml:1: bad\na.toml:2: worse")}
	name, value := "n", 1.0
	fams := []*dto.MetricFamily{{Name: &name, Metric: []*dto.Metric{{Gauge: &dto.Gauge{Value: &value}}, {Gauge: &dto.Gauge{Value: &value}}}}}
	if got, want := d.status(fams), "configuration refused, the previous one stays in effect: a.toml:1: bad\na.toml:2: worse; 2 series, 0 pods (containerd does not answer), 0 of 0 probes work"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	systemd.Status(d.status(fams))
	if got := m.next(30 * time.Second); strings.Count(got, "\n") != 0 || !strings.HasPrefix(got, "STATUS=configuration refused") {
		t.Errorf("sent %q", got)
	}
}
