// Package systemd talks to systemd: what the service manager is told, and how
// log lines reach the journal with their priority.
package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"nodeskoop/internal/quote"
)

// Ready tells the service manager that the service works, and a line of
// status for `systemctl status`. Outside systemd it does nothing.
func Ready(status string) {
	notify(readiness, daemon.SdNotifyReady+"\nSTATUS="+oneLine(status))
}

// Status tells the service manager a line of status.
func Status(text string) { notify(status, "STATUS="+oneLine(text)) }

// Stopping tells the service manager that the service is about to end. It waits
// until that is sent, for a second at most.
func Stopping() {
	notify(readiness, daemon.SdNotifyStopping)
	manager.flush()
}

// Reloading tells the service manager that the configuration is being read
// again; Ready ends it.
func Reloading() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	notify(readiness, fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
}

// WatchdogInterval is how often Alive must be called at least, several times
// as often as systemd expects it; 0 where it expects nothing.
func WatchdogInterval() time.Duration {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return d / 4
}

// Starting tells the service manager that the start goes on, and may take d
// from now.
func Starting(d time.Duration) {
	notify(alive, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// Alive tells the service manager's watchdog that sampling goes on.
func Alive() { notify(alive, daemon.SdNotifyWatchdog) }

// oneLine keeps a status one line, as the next would be another message, and
// safe to print: `systemctl status` shows it as it is.
func oneLine(s string) string { return quote.SafeLine(s) }

// A manager that does not read its socket must hold nothing up, the less so as
// it is the one whose watchdog ends a daemon that stands still. So one goroutine
// sends what the others leave here.
const (
	// attempt is how long one message may wait for room in the socket.
	attempt = time.Second
	// retryNotify is the pause before the next attempt.
	retryNotify = time.Second
	// flushFor is how long the last message may hold up the end.
	flushFor = time.Second
)

// topic says which messages stand for each other: a newer one takes the place
// of one that has not been sent.
type topic uint8

const (
	readiness topic = iota // READY, RELOADING, STOPPING: never lost, and in order
	status
	alive // worth nothing later: not tried again
)

type message struct {
	topic topic
	text  string
}

type notifier struct {
	mu      sync.Mutex
	waiting []message
	running bool
	idle    chan struct{} // closed when nothing waits
}

var manager notifier

// maxReadiness is how many changes of state wait at most: what is older means
// nothing any more.
const maxReadiness = 4

// notify leaves a message to be sent. Failures are ignored: without a service
// manager nobody listens, and with one there is nobody else to tell.
func notify(t topic, text string) { manager.post(t, text) }

func (n *notifier) post(t topic, text string) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	states := 0
	n.waiting = slices.DeleteFunc(n.waiting, func(m message) bool {
		if m.topic == readiness {
			states++
		}
		return m.topic == t && t != readiness
	})
	if t == readiness && states >= maxReadiness {
		n.waiting = slices.Delete(n.waiting, 0, 1+slices.IndexFunc(n.waiting, func(m message) bool { return m.topic == readiness }))
	}
	n.waiting = append(n.waiting, message{t, text})
	if !n.running {
		n.running, n.idle = true, make(chan struct{})
		go n.run()
	}
}

// run sends what waits, and ends when nothing does.
func (n *notifier) run() {
	for {
		n.mu.Lock()
		if len(n.waiting) == 0 {
			n.running = false
			close(n.idle)
			n.mu.Unlock()
			return
		}
		m := n.waiting[0]
		n.waiting = slices.Delete(n.waiting, 0, 1)
		n.mu.Unlock()
		err := send(m.text)
		if err == nil || m.topic == alive || !errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		n.mu.Lock()
		if m.topic == readiness || !slices.ContainsFunc(n.waiting, func(o message) bool { return o.topic == m.topic }) {
			n.waiting = slices.Insert(n.waiting, 0, m)
		}
		n.mu.Unlock()
		time.Sleep(retryNotify)
	}
}

// flush waits until nothing waits to be sent, for a bounded time.
func (n *notifier) flush() {
	n.mu.Lock()
	running, idle := n.running, n.idle
	n.mu.Unlock()
	if !running {
		return
	}
	t := time.NewTimer(flushFor)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
	}
}

// send sends one message (sd_notify(3)). The kernel makes a sender wait for as
// long as the receiver's queue is full.
func send(text string) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: os.Getenv("NOTIFY_SOCKET"), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetWriteDeadline(time.Now().Add(attempt)); err != nil {
		return err
	}
	_, err = conn.Write([]byte(text))
	return err
}
