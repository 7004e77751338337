package testkit

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeskoop/internal/testkit/need"
)

// Patience is how long a test waits for something that must happen. It measures nothing: a
// busy machine may need most of it, and only a failure uses all of it.
const Patience = 30 * time.Second

// Within waits until ok returns true, and returns false if it does not within limit. It
// calls ok for a quarter of the time at most, so that a slow ok leaves CPU time for what
// the test waits for. In a VM, whose CPU is emulated, ok gets 5% of the CPU at most: a wait
// there otherwise costs several seconds of this machine's CPU per second.
func Within(limit time.Duration, ok func() bool) bool {
	end := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		asked, used := time.Now(), usedCPU()
		if ok() {
			return true
		}
		now := time.Now()
		if now.After(end) {
			return false
		}
		rest := 3 * now.Sub(asked)
		if need.InVM() {
			rest = max(rest, 20*(usedCPU()-used))
		}
		time.Sleep(max(pause, min(rest, time.Second)))
	}
}

// usedCPU is the CPU time of this process and of those that it has waited for.
func usedCPU() (d time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return d
}

// Eventually waits until ok returns true, and fails the test if it does not. what completes
// the message "it never came true that ...".
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !Within(Patience, ok) {
		t.Fatalf("it never came true that %s", what)
	}
}

// Await waits until f returns nil, and otherwise fails the test with the last error.
func Await(t testing.TB, f func() error) {
	t.Helper()
	var err error
	if !Within(Patience, func() bool { err = f(); return err == nil }) {
		t.Fatalf("after %v: %v", Patience, err)
	}
}
