package collect

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func supportedSeries(name string) string {
	return "nodeskoop_probe_supported{node1,hostNetwork,hostNetwork," + name + "}"
}

// TestUnsupportedIsNotFailed: an unsupported probe is neither up nor down. It is logged
// once, in one line for all probes that lack the same feature, and checked again without a
// log line, even if the reason is another then. A probe that is supported and fails is an error.
func TestUnsupportedIsNotFailed(t *testing.T) {
	root, _ := fakeProc(t)
	var log bytes.Buffer
	lacks, attempts := true, 0
	none := func(name string) Factory {
		return Factory{name, func(Env) (Probe, error) {
			if lacks {
				return nil, fmt.Errorf("load: %w", &UnsupportedError{Reason: "this kernel has no type information", Detail: "the verifier's words"})
			}
			return fnProbe{granularity: EachNetns, sample: func(*View) error { return nil }}, nil
		}}
	}
	r := newRunner(t, Options{ProcRoot: root, Service: true, Log: slog.New(slog.NewTextHandler(&log, nil))},
		probe("tcp", EachNetns, readValue(mInsegs)), none("packetloss"), none("tcpreset"),
		Factory{"flow", func(Env) (Probe, error) { return nil, fmt.Errorf("load: %w", unix.ENOMEM) }},
		probe("softnet", EachNetns, func(*View) error {
			// Which program the kernel refuses first may differ.
			attempts++
			return fmt.Errorf("read: %w", &UnsupportedError{Reason: fmt.Sprintf("this kernel has no softnet: program %d", attempts)})
		}))
	for range 3 {
		got := values(r.Cycle())
		for name, want := range map[string]float64{"tcp": 1, "packetloss": 0, "tcpreset": 0, "softnet": 0, "flow": 1} {
			if v := got[supportedSeries(name)]; v != want {
				t.Errorf("nodeskoop_probe_supported of %s is %v, want %v", name, v, want)
			}
			if want == 0 {
				absent(t, got, up(name))
			}
		}
		want(t, got, up("tcp"), 1)
		want(t, got, up("flow"), 0)
	}
	said := log.String()
	for text, n := range map[string]int{
		"left out, as this machine cannot run them: packetloss, tcpreset: this kernel has no type information": 1,
		"left out, as this machine cannot run them: softnet: this kernel has no softnet":                       1,
		"program 1": 1, "program 2": 0,
		"level=ERROR": 1, "probe failed; it is tried again": 1, "the verifier's words": 0, "level=WARN": 0,
	} {
		if got := strings.Count(said, text); got != n {
			t.Errorf("%q is said %d times, want %d:\n%s", text, got, n, said)
		}
	}
	for _, s := range r.Status() {
		if un := s.Name == "packetloss" || s.Name == "tcpreset" || s.Name == "softnet"; s.Unsupported != un || s.Up != (s.Name == "tcp") || (s.Err == nil) != s.Up {
			t.Errorf("%+v", s)
		}
	}

	// It is seldom checked again, since a module may have been loaded.
	for _, in := range r.instances {
		if in.info.Name == "packetloss" {
			if wait := time.Until(in.retry); wait < minLookAgain/2 || wait > maxLookAgain {
				t.Errorf("the next look is in %v", wait)
			}
			in.retry = time.Time{}
		}
	}
	log.Reset()
	r.Cycle()
	if log.Len() > 0 {
		t.Errorf("another look says\n%s", &log)
	}
	lacks = false
	for _, in := range r.instances {
		in.retry = time.Now().Add(-time.Second)
	}
	got := values(r.Cycle())
	want(t, got, up("packetloss"), 1)
	want(t, got, supportedSeries("packetloss"), 1)
	if !strings.Contains(log.String(), "level=INFO msg=\"probe works now: this machine has what it needs\" probe=packetloss") {
		t.Errorf("it says\n%s", &log)
	}
}

// TestOnceSaysNothingOfLater: a process that ends after one sample announces no retry.
func TestOnceSaysNothingOfLater(t *testing.T) {
	root, _ := fakeProc(t)
	var log bytes.Buffer
	r := newRunner(t, Options{ProcRoot: root, Log: slog.New(slog.NewTextHandler(&log, nil))},
		Factory{"flow", func(Env) (Probe, error) { return nil, unix.EMFILE }})
	r.Cycle()
	if said := log.String(); !strings.Contains(said, `msg="probe failed" probe=flow`) || strings.Contains(said, "again") {
		t.Errorf("it says\n%s", said)
	}
}
