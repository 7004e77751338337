package hang_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"nodeskoop/internal/testkit"
	"nodeskoop/internal/testkit/hang"
)

// waits checks that f does not return before release, and returns after it.
func waits(t *testing.T, release func(), f func()) {
	t.Helper()
	began, done := make(chan struct{}), make(chan struct{})
	go func() { close(began); f(); close(done) }()
	<-began
	select {
	case <-done:
		t.Error("it did not wait")
	case <-time.After(300 * time.Millisecond):
	}
	release()
	select {
	case <-done:
	case <-time.After(testkit.Patience):
		t.Error("it goes on waiting")
	}
}

func TestRTNLIsHeld(t *testing.T) {
	waits(t, hang.RTNL(t, 5*time.Second), func() { _, _ = netlink.LinkByName("lo") })
}

func TestOpenHangs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	waits(t, hang.Open(t, file), func() { _, _ = os.ReadFile(file) })
}
