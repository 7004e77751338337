package testkit

import (
	"testing"
	"time"
)

// Patience is how long a test waits for what has to come. It is no measure of
// anything: a busy machine may need most of it, and only a failure uses it up.
const Patience = 30 * time.Second

// Within waits until ok reports true, and reports whether it did before the
// limit. What is slow to tell, or is asked on a slow machine, is asked less
// often: a quarter of the time is for asking, and the rest for what is awaited.
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

// Eventually waits until ok reports true. what completes the message of the
// failure: "it never came true that ...".
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !Within(Patience, ok) {
		t.Fatalf("it never came true that %s", what)
	}
}

// Await waits until f returns nil, and fails the test with the last error.
func Await(t testing.TB, f func() error) {
	t.Helper()
	var err error
	if !Within(Patience, func() bool { err = f(); return err == nil }) {
		t.Fatalf("after %v: %v", Patience, err)
	}
}
