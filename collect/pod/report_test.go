package pod

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"nodeskoop/internal/testkit"
)

// A containerd that is first absent and then silent is logged in two lines, however often
// it is tried.
func TestAbsentThenSilentIsLoggedOnceEach(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	log := &logbook{}
	ctx, cancel := context.WithCancel(context.Background())
	x := watch(ctx, Options{Sockets: []string{socket}, HostNetns: "/proc/self/ns/net", Log: slog.New(slog.NewTextHandler(log, nil))}, usual)
	defer func() { cancel(); x.Wait() }()
	if err := x.Sync(ctx); err == nil {
		t.Fatal("an absent containerd is in sync")
	}
	if log.count("no containerd found") != 1 || log.count("level=WARN") != 1 {
		t.Errorf("a socket that was named and is absent: %q", log.lines())
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the listener never accepts
	testkit.Eventually(t, "containerd's silence is logged", func() bool { return log.count("containerd does not answer") > 0 })
	if log.count("it hangs, or the machine is overloaded") != 1 {
		t.Errorf("the reason: %q", log.lines())
	}
	// A few more rounds.
	was := x.Status().Err
	testkit.Within(6*time.Second, func() bool { return x.Status().Err != was })
	if n := len(log.lines()); n != 2 {
		t.Errorf("%d lines: %q", n, log.lines())
	}
}
