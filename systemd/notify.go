// Package systemd talks to systemd: what the service manager is told, and how
// log lines reach the journal with their priority.
package systemd

import (
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"nodeskoop/collect"
)

// Ready tells the service manager that the service works, and a line of
// status for `systemctl status`. Outside systemd it does nothing.
func Ready(status string) { notify(daemon.SdNotifyReady + "\nSTATUS=" + oneLine(status)) }

// Status tells the service manager a line of status.
func Status(status string) { notify("STATUS=" + oneLine(status)) }

// Stopping tells the service manager that the service is about to end.
func Stopping() { notify(daemon.SdNotifyStopping) }

// Reloading tells the service manager that the configuration is being read
// again; Ready ends it.
func Reloading() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
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
func Starting(d time.Duration) { notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", d.Microseconds())) }

// Alive tells the service manager's watchdog that sampling goes on.
func Alive() { notify(daemon.SdNotifyWatchdog) }

// oneLine keeps a status one line, as the next would be another message, and
// safe to print: `systemctl status` shows it as it is.
func oneLine(s string) string { return collect.SafeLine(s) }

// notify ignores failures: without a service manager nobody listens, and with
// one there is nobody else to tell.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }
