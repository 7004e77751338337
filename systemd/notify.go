// Package systemd sends notifications to the service manager, and formats log lines
// with the priority that journald reads.
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

// Ready notifies the service manager that the service is ready, with a status line
// for `systemctl status`. Outside systemd it does nothing.
func Ready(status string) {
	notify(readiness, daemon.SdNotifyReady+"\nSTATUS="+oneLine(status))
}

// Status sends a status line to the service manager.
func Status(text string) { notify(status, "STATUS="+oneLine(text)) }

// Stopping notifies the service manager that the service is stopping. It waits up
// to a second until that is sent.
func Stopping() {
	notify(readiness, daemon.SdNotifyStopping)
	manager.flush()
}

// Reloading notifies the service manager that the configuration is being reloaded;
// Ready ends that state.
func Reloading() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	notify(readiness, fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
}

// WatchdogInterval is the maximum time between calls of Alive, a fraction of
// systemd's timeout; 0 if the watchdog is off.
func WatchdogInterval() time.Duration {
	d, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0
	}
	return d / 4
}

// Starting extends the start timeout to d from now.
func Starting(d time.Duration) {
	notify(alive, fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds()))
}

// Alive notifies the service manager's watchdog.
func Alive() { notify(alive, daemon.SdNotifyWatchdog) }

// oneLine keeps a status on one line, since a second line would be another message,
// and escapes control characters, because `systemctl status` does not.
func oneLine(s string) string { return quote.SafeLine(s) }

// A manager that does not read its socket must not block the daemon, because its
// watchdog would then end the daemon. One goroutine sends the messages that others
// post.
const (
	// attempt is how long one message may wait for room in the socket.
	attempt = time.Second
	// retryNotify is the pause before the next attempt.
	retryNotify = time.Second
	// flushFor is how long the last message may delay the end.
	flushFor = time.Second
)

// topic groups messages: a newer message replaces an unsent one of the same topic.
type topic uint8

const (
	readiness topic = iota // READY, RELOADING, STOPPING: never dropped, and in order
	status
	alive // worthless later, so never retried
)

type message struct {
	topic topic
	text  string
}

type notifier struct {
	mu      sync.Mutex
	waiting []message
	running bool
	idle    chan struct{} // closed while no message waits
}

var manager notifier

// maxReadiness is the maximum number of queued state changes; older ones are
// obsolete.
const maxReadiness = 4

// notify posts a message. Failures are ignored: without a service manager there is
// no receiver, and with one there is no other place to report them.
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

// run sends queued messages, and ends when there are none.
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

// flush waits until the queue is empty, for a limited time.
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

// send sends one message (sd_notify(3)). The kernel blocks the sender while the
// receiver's queue is full.
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
