package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/need"
)

// A daemon stopped for longer than the watchdog's timeout continues when resumed,
// and reports the missing samples in one line. SIGABRT, which systemd's watchdog
// sends, also leaves one line instead of all stacks.
func TestDaemonThatWasStopped(t *testing.T) {
	need.Root(t)
	need.Short(t)
	const away = 17 * time.Second // longer than the shortest reported gap
	dir := t.TempDir()
	p := begin(t, func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "WATCHDOG_USEC=2000000", "STATE_DIRECTORY="+t.TempDir())
	}, "run", "--config", daemonConf(t, dir, ""), "--probe", "tcp")
	file := filepath.Join(dir, "nodeskoop.prom")
	testkit.Eventually(t, "the textfile is there", func() bool { return cycleTime(t, file) > 0 })
	goesOn(t, file)
	p.signal(syscall.SIGSTOP)
	time.Sleep(away)
	p.signal(syscall.SIGCONT)
	testkit.Eventually(t, "the gap is told", func() bool { return strings.Contains(p.logged(), "no samples between") })
	goesOn(t, file)
	log := p.logged()
	for text, n := range map[string]int{"no samples between": 1, "the daemon stood still": 1, `level=WARN msg="no samples between`: 1, "makes no progress": 0, "level=ERROR": 0} {
		if got := strings.Count(log, text); got != n {
			t.Errorf("the log has %q %d times, want %d", text, got, n)
		}
	}
	seconds := 0.0
	for _, m := range parseProm(t, file)["nodeskoop_gap_seconds_total"].GetMetric() {
		seconds += m.GetCounter().GetValue()
	}
	if seconds < away.Seconds() || seconds > 2*away.Seconds()+testkit.Patience.Seconds() {
		t.Errorf("nodeskoop_gap_seconds_total is %v after %v", seconds, away)
	}

	before := len(p.logged())
	p.signal(syscall.SIGABRT)
	if code := p.ended(); code != 128+int(syscall.SIGABRT) {
		t.Errorf("exit code %d", code)
	}
	said := p.logged()[before:]
	if n := strings.Count(said, "\n"); n != 1 || !strings.Contains(said, "ended by SIGABRT") || !strings.Contains(said, "collect.(*Runner).Run runner.go:") {
		t.Errorf("SIGABRT leaves %d lines:\n%s", n, said)
	}
}
