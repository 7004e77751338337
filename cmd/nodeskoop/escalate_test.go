package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"nodeskoop/collect/escalate"
	"nodeskoop/internal/testkit"
)

// escalateEnv sets how long a test's daemon watches closer.
const escalateEnv = "NODESKOOP_TEST_ESCALATE"

// withEscalation runs the program in this process with a shorter run of the probes on
// standby, and shorter windows. The released program has no such setting.
func withEscalation(length string) int {
	d, err := time.ParseDuration(length)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailure
	}
	escalateOptions = escalate.Options{For: d, Window: 2 * time.Second}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return run(ctx, os.Args, os.Stdout, os.Stderr)
}

// watched is a daemon whose probes on standby are some of traffic.
type watched struct {
	*node
	p *program
}

// None of the enabled probes waits for RTNL, which other work of the machine may hold.
const escalateSome = "'packetloss','tcp','tcpext','tcpsummary','udp','softnet']\nescalate = ['socketlatency','kernellatency','net_softirq'"

func newWatched(t *testing.T) *watched { return &watched{node: newNode(t, escalateSome, "")} }

func (w *watched) start(length string) {
	w.t.Helper()
	w.p = begin(w.t, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Env = "/proc/self/exe", append(os.Environ(), escalateEnv+"="+length)
	}, "run", "--config", w.cfg)
}

// end ends the daemon.
func (w *watched) end(s syscall.Signal) {
	w.p.signal(s)
	<-w.p.Done()
	if s == syscall.SIGKILL {
		must(w.t, os.Remove(w.file())) // not to be mistaken for the next daemon's
	}
}

// next waits for a cycle, in which no counter may be missing or have fallen.
func (w *watched) next(what string) map[string]*dto.MetricFamily {
	w.t.Helper()
	fams := w.cycles(1)
	w.seen(what, fams)
	return fams
}

// gauge returns a gauge about a probe; -1 if it is missing.
func gaugeOf(fams map[string]*dto.MetricFamily, name, probe string) float64 {
	for _, m := range fams[name].GetMetric() {
		for _, l := range m.Label {
			if l.GetName() == "probe" && l.GetValue() == probe {
				return m.GetGauge().GetValue()
			}
		}
	}
	return -1
}

// until waits for cycles, and does something before each of them, until the probe runs or
// rests.
func (w *watched) until(what string, runs float64, each func()) {
	w.t.Helper()
	testkit.Eventually(w.t, what, func() bool {
		each()
		return gaugeOf(w.next(what), "nodeskoop_probe_escalated", "socketlatency") == runs
	})
}

// late reads datagrams 150 ms after they arrived.
func (w *watched) late(n int) {
	w.t.Helper()
	server := w.host.Packets("udp4", "127.0.0.1:0")
	defer server.Close()
	c := w.host.Dial("udp4", server.LocalAddr().String())
	defer c.Close()
	buf := make([]byte, 64)
	for range n {
		if _, err := c.Write([]byte("late")); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(150 * time.Millisecond)
		if _, _, err := server.ReadFrom(buf); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *watched) lateReads() float64 {
	return w.last["kubeskoop_socketlatency_read100ms,n1,hostNetwork,hostNetwork"]
}

// told counts the lines of the log that begin a closer watch, and that end one.
func (w *watched) told() (began, ended int) {
	return strings.Count(w.p.logged(), `msg="watching closer" `), strings.Count(w.p.logged(), `msg="watching closer has ended" `)
}

// unread is a socket that nobody reads, and whose buffer is full.
func (w *watched) unread() (more func()) {
	full := w.host.Packets("udp4", "127.0.0.1:0")
	w.t.Cleanup(func() { _ = full.Close() })
	must(w.t, full.(*net.UDPConn).SetReadBuffer(4096))
	c := w.host.Dial("udp4", full.LocalAddr().String())
	w.t.Cleanup(func() { _ = c.Close() })
	return func() {
		for range 20 { // fewer than the sign of lost packets needs
			_, _ = c.Write(make([]byte, 1000))
		}
	}
}

// nobody sends datagrams to a closed port.
func (w *watched) nobody() {
	c := w.host.Dial("udp4", "127.0.0.1:9")
	defer c.Close()
	for range 400 {
		_, _ = c.Write([]byte("nobody listens"))
	}
}

// TestEscalation: after real losses the listed probes run and count exactly what was
// caused; then their counters stand still, over a restart, too, and go on with the next
// sign.
func TestEscalation(t *testing.T) {
	w := newWatched(t)
	w.start("20s")
	losses := w.unread()
	w.until("datagrams are lost", 1, losses)
	if began, ended := w.told(); began != 1 || ended != 0 {
		t.Fatalf("%d beginnings and %d ends are told:\n%s", began, ended, w.p.logged())
	}
	for _, want := range []string{`probes="kernellatency, net_softirq, socketlatency"`, `because="node: `, " datagrams found the receive buffer full ", " until="} {
		if !strings.Contains(w.p.logged(), want) {
			t.Errorf("the log lacks %s:\n%s", want, w.p.logged())
		}
	}
	w.late(5)
	testkit.Eventually(t, "the late reads are counted", func() bool { w.next("on"); return w.lateReads() >= 5 })
	if got := w.lateReads(); got != 5 {
		t.Errorf("%v late reads, want 5", got)
	}
	// A reload leaves all as it is.
	w.p.signal(syscall.SIGHUP)
	testkit.Eventually(t, "the daemon reloads", func() bool { return strings.Contains(w.p.logged(), "msg=reloaded") })
	if fams := w.next("reloaded"); gaugeOf(fams, "nodeskoop_probe_escalated", "socketlatency") != 1 || gaugeOf(fams, "nodeskoop_probe_up", "socketlatency") != 1 {
		if _, ended := w.told(); ended == 0 {
			t.Errorf("after a reload the probe does not run:\n%s", w.p.logged())
		}
	}

	w.until("the time ends", 0, losses)
	off := func(what string) {
		t.Helper()
		w.late(3)
		for range 3 {
			fams := w.next(what)
			if up := gaugeOf(fams, "nodeskoop_probe_up", "socketlatency"); up != -1 {
				t.Errorf("%s: up is %v", what, up)
			}
			if gaugeOf(fams, "nodeskoop_probe_escalated", "socketlatency") != 0 || gaugeOf(fams, "nodeskoop_probe_up", "udp") != 1 {
				t.Errorf("%s: %v", what, fams["nodeskoop_probe_escalated"])
			}
		}
		if got := w.lateReads(); got != 5 {
			t.Errorf("%s: %v late reads, want 5", what, got)
		}
	}
	off("the time is over")
	// The same sign is there all the time, and is told once.
	for range 5 {
		losses()
		w.next("the same sign")
	}
	if began, ended := w.told(); began != 1 || ended != 1 {
		t.Errorf("%d beginnings and %d ends are told:\n%s", began, ended, w.p.logged())
	}
	w.end(syscall.SIGKILL)
	w.start("20s")
	off("after a kill")
	if began, _ := w.told(); began != 0 {
		t.Errorf("after a restart:\n%s", w.p.logged())
	}

	w.until("another sign", 1, w.nobody)
	w.late(2)
	testkit.Eventually(t, "they go on", func() bool { w.next("on again"); return w.lateReads() >= 7 })
	if got := w.lateReads(); got != 7 {
		t.Errorf("%v late reads, want 7", got)
	}
	w.until("the time ends again", 0, func() {})
	// The budget of this hour is spent, also after a restart.
	for range 2 {
		for range 8 {
			w.nobody()
			losses()
			w.next("without a budget")
		}
		if got := w.lateReads(); got != 7 {
			t.Errorf("%v late reads, want 7", got)
		}
		began, ended := w.told()
		w.end(syscall.SIGTERM)
		if began != ended || began > 1 {
			t.Errorf("%d beginnings and %d ends are told:\n%s", began, ended, w.p.logged())
		}
		w.start("20s")
	}
}

// TestEscalationGoesOnAfterAKill: a run that a kill interrupts begins again, and ends when
// it would have ended.
func TestEscalationGoesOnAfterAKill(t *testing.T) {
	w := newWatched(t)
	w.start("25s")
	w.until("losses", 1, w.unread())
	began := time.Now()
	w.late(2)
	testkit.Eventually(t, "the late reads are counted", func() bool { w.next("on"); return w.lateReads() >= 2 })
	w.end(syscall.SIGKILL)
	w.start("25s")
	w.until("it runs again", 1, func() {})
	if !strings.Contains(w.p.logged(), `because="a sign before the restart"`) {
		t.Errorf("the log:\n%s", w.p.logged())
	}
	w.late(2)
	w.until("it ends", 0, func() {})
	if got := w.lateReads(); got != 4 {
		t.Errorf("%v late reads, want 4", got)
	}
	t.Logf("it ended %v after the sign", time.Since(began))
}

// TestHealthyTrafficIsNotWatchedCloser: a node whose traffic is well never runs them, and
// says nothing.
func TestHealthyTrafficIsNotWatchedCloser(t *testing.T) {
	w := newWatched(t)
	w.start("20s")
	l := w.host.Listen("tcp4", "127.0.0.1:0")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 1<<16)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	data := make([]byte, 1<<16)
	for range 20 {
		for range 20 {
			c := w.host.Dial("tcp4", l.Addr().String())
			for range 10 {
				if _, err := c.Write(data); err != nil {
					t.Fatal(err)
				}
				for left := len(data); left > 0; {
					n, err := c.Read(make([]byte, left))
					if err != nil {
						t.Fatal(err)
					}
					left -= n
				}
			}
			_ = c.Close()
		}
		fams := w.next("healthy")
		for _, probe := range []string{"socketlatency", "kernellatency", "net_softirq"} {
			if got := gaugeOf(fams, "nodeskoop_probe_escalated", probe); got != 0 {
				t.Errorf("%s: escalated is %v", probe, got)
			}
		}
		if fams["kubeskoop_socketlatency_read100ms"] != nil || fams["nodeskoop_socketlatency_seconds"] != nil {
			t.Error("a probe that never ran has values")
		}
	}
	if s := w.p.logged(); strings.Contains(s, "closer") || strings.Contains(s, "level=ERROR") {
		t.Errorf("the log:\n%s", s)
	}
}
