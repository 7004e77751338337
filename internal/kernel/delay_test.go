package kernel

import (
	"testing"
	"time"
)

func TestParseSchedstat(t *testing.T) {
	for _, c := range []struct {
		text string
		want time.Duration
		ok   bool
	}{
		{"123456 5000000 17\n", 5 * time.Millisecond, true},
		{"0 0 0\n", 0, true},
		{"", 0, false},
		{"1 2\n", 0, false},
		{"1 x 3\n", 0, false},
		{"1 -2 3\n", 0, false},
		{"1 99999999999999999999 3\n", 0, false},
	} {
		if got, ok := parseSchedstat(c.text); ok != c.ok || ok && got != c.want {
			t.Errorf("%q: %v %v, want %v %v", c.text, got, ok, c.want, c.ok)
		}
	}
}

func TestWaited(t *testing.T) {
	before := map[int]time.Duration{1: time.Second, 2: time.Minute, 3: time.Second}
	now := map[int]time.Duration{1: 3 * time.Second, 3: 0, 4: time.Millisecond}
	if got, want := Waited(before, now), 2*time.Second+time.Millisecond; got != want {
		t.Errorf("%v, want %v: thread 2 has ended, 3 is another one, 4 is new", got, want)
	}
	if got := Waited(nil, nil); got != 0 {
		t.Error(got)
	}
}

func FuzzParseSchedstat(f *testing.F) {
	f.Add("123456 5000000 17\n")
	f.Fuzz(func(t *testing.T, s string) {
		if d, ok := parseSchedstat(s); ok && d < 0 {
			t.Errorf("%q: %v", s, d)
		}
	})
}

func TestClocks(t *testing.T) {
	boot, mono := SinceBoot(), Monotonic()
	if mono <= 0 || boot < mono-time.Second {
		t.Errorf("%v since the boot, of which %v awake", boot, mono)
	}
}
