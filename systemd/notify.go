// Package systemd talks to systemd: what the service manager is told, and how
// log lines reach the journal with their priority.
package systemd

import (
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// Ready tells the service manager that the service works, and a line of
// status for `systemctl status`. Outside systemd it does nothing.
func Ready(status string) { notify(daemon.SdNotifyReady + "\nSTATUS=" + status) }

// Status tells the service manager a line of status.
func Status(status string) { notify("STATUS=" + status) }

// Stopping tells the service manager that the service is about to end.
func Stopping() { notify(daemon.SdNotifyStopping) }

// Reloading tells the service manager that the configuration is being read
// again; Ready ends it.
func Reloading() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
}

// Alive tells the service manager's watchdog that sampling goes on.
func Alive() { notify(daemon.SdNotifyWatchdog) }

// notify ignores failures: without a service manager nobody listens, and with
// one there is nobody else to tell.
func notify(state string) { _, _ = daemon.SdNotify(false, state) }
