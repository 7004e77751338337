package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// ErrTimer means that the timer of script mode writes the textfile.
var ErrTimer = errors.New("nodeskoop-collect.timer is active")

// systemdRuns exists if systemd is the init system (sd_booted(3)).
const systemdRuns = "/run/systemd/system"

// askSystemd limits how long systemctl may take. A manager busy for longer has
// bigger problems than the textfile.
const askSystemd = 5 * time.Second

// timerHolds fails if the timer of script mode is active, since its samples would
// replace the daemon's textfile at path. Only systemd knows: between two samples
// the timer has no process and no lock. If systemd cannot be asked, the daemon
// starts.
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
