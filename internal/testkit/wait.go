package testkit

import (
	"testing"
	"time"

	"nodeskoop/internal/testkit/need"
)

// Patience is how long a test waits for what has to come. It is no measure of
// anything: a busy machine may need most of it, and only a failure uses it up.
const Patience = 30 * time.Second

// Within waits until ok reports true, and reports whether it did before the
// limit.
func Within(limit time.Duration, ok func() bool) bool {
	end := time.Now().Add(limit)
	longest := 20 * time.Millisecond
	if need.InVM() {
		longest = 300 * time.Millisecond // to look costs much there, and to wait nothing
	}
	for pause := time.Millisecond; !ok(); pause = min(2*pause, longest) {
		if time.Now().After(end) {
			return false
		}
		time.Sleep(pause)
	}
	return true
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
