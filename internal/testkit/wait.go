package testkit

import (
	"testing"
	"time"
)

// Patience is how long a test waits for something that must happen. It measures nothing: a
// busy machine may need most of it, and only a failure uses all of it.
const Patience = 30 * time.Second

// Within waits until ok returns true, and returns false if it does not within limit. It
// calls ok for a quarter of the time at most, so that a slow ok leaves CPU time for what
// the test waits for.
func Within(limit time.Duration, ok func() bool) bool {
	end := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		asked := time.Now()
		if ok() {
			return true
		}
		now := time.Now()
		if now.After(end) {
			return false
		}
		time.Sleep(max(pause, min(3*now.Sub(asked), time.Second)))
	}
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
