// Package systemd talks to systemd: notifications to the service manager, and log lines
// with a priority.
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

// Ready notifies the service manager that the service is ready, with a line for `systemctl
// status`. Outside systemd it does nothing.
func Ready(status string) {
	notify(readiness, daemon.SdNotifyReady+"\nSTATUS="+oneLine(status))
}

// Status sets the status line of `systemctl status`.
func Status(text string) { notify(status, "STATUS="+oneLine(text)) }

// Stopping notifies the service manager that the service is stopping. It waits until that
// is sent, for a second at most.
func Stopping() {
	notify(readiness, daemon.SdNotifyStopping)
	manager.flush()
}

// Reloading notifies the service manager that a reload has started; Ready ends it.
func Reloading() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	notify(readiness, fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
}

// WatchdogInterval is how often Alive must be called, several times as often as systemd
// expects; 0: no watchdog.
func WatchdogInterval() time.Duration {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return d / 4
}

// Starting notifies the service manager that the start continues, and may take d from now.
func Starting(d time.Duration) {
	notify(alive, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// Alive notifies the service manager's watchdog that sampling continues.
func Alive() { notify(alive, daemon.SdNotifyWatchdog) }

// oneLine turns a status into one line, since the next line would be another message,
// without characters that affect a terminal: `systemctl status` prints it unchanged.
func oneLine(s string) string { return quote.SafeLine(s) }

// A service manager that does not read its socket must not delay anything, since its
// watchdog would kill a delayed daemon. So a goroutine sends the messages.
const (
	// attempt limits how long one message may wait for room in the socket.
	attempt = time.Second
	// retryNotify is the pause before the next attempt.
	retryNotify = time.Second
	// flushFor limits how long the last messages may delay the exit.
	flushFor = time.Second
)

// topic groups messages: a newer one replaces an unsent one of the same topic.
type topic uint8

const (
	readiness topic = iota // READY, RELOADING, STOPPING: kept in order, not replaced
	status
	alive // not retried: it is worthless later
)

type message struct {
	topic topic
	text  string
}

type notifier struct {
	mu      sync.Mutex
	waiting []message
	running bool
	idle    chan struct{} // closed when no message is waiting
}

var manager notifier

// maxReadiness is how many changes of state can wait; older ones are obsolete.
const maxReadiness = 4

// notify queues a message. Failures are ignored: without a service manager nobody listens,
// and with one there is nobody else to notify.
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

// run sends the waiting messages, and ends when there are none.
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

// flush waits until all messages are sent, for flushFor at most.
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

// send sends one message (sd_notify(3)). The kernel blocks a sender while the receiver's
// queue is full.
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
