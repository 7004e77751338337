package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// ErrTimer is what Run returns an error of where the timer of script mode holds the
// textfile.
var ErrTimer = errors.New("nodeskoop-collect.timer is active")

// systemdRuns is there where systemd is the machine's manager (sd_booted(3)).
const systemdRuns = "/run/systemd/system"

// askSystemd is how long systemctl may take. A manager that is busy for longer has
// other worries than the textfile.
const askSystemd = 5 * time.Second

// timerHolds fails if the timer of script mode is active: a sample of it would
// replace the textfile at path, which the daemon writes. systemd knows that and
// nobody else: between two samples the timer has no process and no lock. What it
// cannot be asked is no reason not to start.
func timerHolds(ctx context.Context, running, systemctl, path string) error {
	if fi, err := os.Lstat(running); err != nil || !fi.IsDir() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askSystemd)
	defer cancel()
	cmd := exec.CommandContext(ctx, systemctl, "--quiet", "is-active", "nodeskoop-collect.timer")
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return nil
	}
	return fmt.Errorf("not started: %w and writes the same textfile, %s: run systemctl disable --now nodeskoop-collect.timer first, or leave the daemon stopped", ErrTimer, path)
}
