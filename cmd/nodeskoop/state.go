package main

import (
	"cmp"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nodeskoop/collect"
	"nodeskoop/output"
)

// defaultStateDir is where the state is without systemd, which tells by
// $STATE_DIRECTORY where it made the folder of StateDirectory=.
const defaultStateDir = "/var/lib/nodeskoop"

// stateDir is the folder of the state.
func (c *Config) stateDir() string {
	given, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	return cmp.Or(c.text("state.dir"), given, defaultStateDir)
}

// counters are what has to be known for the counters to go on after a restart,
// in a file.
type counters struct {
	log  *slog.Logger
	file *output.StateFile // nil: they are not kept
	// beside: while another process keeps them, this one says nothing of it.
	beside  bool
	failing bool
	cut     bool
}

// keepCounters lets the counters of r go on from what an earlier run kept, and
// be kept. beside says that it is in order if another process does the latter.
func (s *setup) keepCounters(r *collect.Runner, beside bool) *counters {
	k := s.newCounters(r, s.cfg)
	k.beside = beside
	if k.file == nil {
		return k
	}
	file := k.file
	// Before it is read: who writes it meanwhile would write what is older.
	k.lock()
	data, err := file.Read(collect.MaxState)
	if err == nil && data != nil {
		err = r.Recall(data)
	}
	switch {
	case errors.Is(err, collect.ErrOtherMachine):
		s.log.Info("counters are reset: those that were kept are of another boot or container", "state", file.Path())
	case err != nil:
		s.log.Warn("counters are reset: those that were kept cannot be used", "state", file.Path(), "error", err)
	}
	return k
}

// newCounters lets the counters of r be kept as a configuration says.
func (s *setup) newCounters(r *collect.Runner, cfg *Config) *counters {
	k := &counters{log: s.log}
	if !cfg.flag("state.counters") {
		return k
	}
	file, err := output.NewStateFile(cfg.stateDir())
	if err == nil {
		err = r.Keep()
	}
	if err != nil {
		s.log.Warn("counters are not kept; the next start loses what deleted interfaces and ended processes had counted", "error", err)
		return k
	}
	k.file = file
	return k
}

func (k *counters) lock() {
	err := k.file.Lock()
	switch {
	case err == nil:
		k.failing = false
	case errors.Is(err, output.ErrStateInUse) && k.beside:
	default:
		k.fail(err)
	}
}

// fail says once that keeping the counters does not work.
func (k *counters) fail(err error) {
	if !k.failing {
		k.log.Warn("counters cannot be kept; until they can, a restart loses what deleted interfaces and ended processes had counted, and it is tried again each cycle",
			"error", err, "hint", "give it a folder of its own with state.dir, or set state.counters = false")
	}
	k.failing = true
}

// keep writes what the last cycle of r left. It comes before the values of the
// cycle are published: whenever the program ends, no reader has seen more than
// the next run begins with.
func (k *counters) keep(r *collect.Runner) {
	if k.file == nil {
		return
	}
	data, cut := r.Kept()
	if (cut > 0) != k.cut {
		if k.cut = cut > 0; k.cut {
			k.log.Warn("there is more to keep than the state has room for; counters of some targets may fall at the next start", "targets", cut, "bytes", collect.MaxState)
		}
	}
	if err := k.file.Lock(); err != nil {
		if !k.beside || !errors.Is(err, output.ErrStateInUse) {
			k.fail(err)
		}
		return
	}
	if err := k.file.Write(data); err != nil {
		k.fail(err)
		return
	}
	if k.failing {
		k.failing = false
		k.log.Info("counters are kept again", "state", k.file.Path())
	}
}

func (k *counters) close() {
	if k.file != nil {
		k.file.Close()
	}
}

// state is where the counters are kept.
func (k *checker) state() finding {
	const name = "state folder"
	if !k.cfg.flag("state.counters") {
		return finding{name, good, "counters are not kept over restarts (state.counters = false)", ""}
	}
	dir := k.path(k.cfg.stateDir())
	do := "run it as root, or set state.dir to a folder that this user may write"
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		parent := filepath.Dir(dir)
		if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
			return finding{name, warning, dir + " is not there, and cannot be made: " + err.Error() + "; counters fall at a restart", do}
		}
		return finding{name, good, dir + " is not there yet", ""}
	case err != nil:
		return finding{name, warning, err.Error() + "; counters fall at a restart", do}
	case !fi.IsDir():
		return finding{name, warning, dir + " is not a folder; counters fall at a restart", "set state.dir to a folder"}
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		if errors.Is(err, unix.EROFS) {
			do = "mount it writable; in a unit StateDirectory=nodeskoop (systemctl edit nodeskoop)"
		}
		return finding{name, warning, "cannot write in " + dir + ": " + err.Error() + "; counters fall at a restart", do}
	}
	return finding{name, good, dir + " can be written", ""}
}
