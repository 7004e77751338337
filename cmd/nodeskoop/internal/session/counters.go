package session

import (
	"errors"
	"log/slog"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect"
	"nodeskoop/output"
)

// Counters is the file of the state with which counters continue after a restart.
type Counters struct {
	log  *slog.Logger
	file *output.StateFile // nil if disabled
	// another process may hold the file without a warning
	beside  bool
	failing bool
	cut     bool
}

// KeepCounters restores the counters of r from an earlier run, and stores them from
// now on. beside means that another process may do the latter.
func (s *Session) KeepCounters(r *collect.Runner, beside bool) *Counters {
	k := s.NewCounters(r, s.Config)
	k.beside = beside
	if k.file == nil {
		return k
	}
	file := k.file
	// Lock before reading: a concurrent writer would otherwise overwrite the file
	// with older counters.
	k.lock()
	data, err := file.Read(collect.MaxState)
	if err == nil && data != nil {
		err = r.Recall(data)
	}
	switch {
	case errors.Is(err, collect.ErrOtherMachine):
		s.Log.Info("counters are reset: the saved ones are of another boot or container", "state", file.Path())
	case err != nil:
		s.Log.Warn("counters are reset: the saved ones cannot be used", "state", file.Path(), "error", err)
	}
	return k
}

// NewCounters stores the counters of r as the configuration says.
func (s *Session) NewCounters(r *collect.Runner, cfg *config.Config) *Counters {
	k := &Counters{log: s.Log}
	if !cfg.State.Counters {
		return k
	}
	file, err := output.NewStateFile(cfg.StateDir())
	if err == nil {
		err = r.Keep()
	}
	if err != nil {
		s.Log.Warn("counters are not saved; the next start loses the counts of deleted interfaces and exited processes", "error", err)
		return k
	}
	k.file = file
	return k
}

func (k *Counters) lock() {
	err := k.file.Lock()
	switch {
	case err == nil:
		k.failing = false
	case errors.Is(err, output.ErrStateInUse) && k.beside:
	default:
		k.fail(err)
	}
}

// fail logs once that storing the counters failed.
func (k *Counters) fail(err error) {
	if !k.failing {
		k.log.Warn("saving the counters failed; until it works, a restart loses the counts of deleted interfaces and exited processes",
			"error", err, "hint", "give it a folder of its own with state.dir, or set state.counters = false")
	}
	k.failing = true
}

// Keep stores the counters of r's last cycle. Call it before publishing the cycle's
// values, so that the next run never starts below a published value.
func (k *Counters) Keep(r *collect.Runner) {
	if k.file == nil {
		return
	}
	data, cut := r.Kept()
	if (cut > 0) != k.cut {
		if k.cut = cut > 0; k.cut {
			k.log.Warn("the saved state is full; counters of some targets may fall at the next start", "targets", cut, "bytes", collect.MaxState)
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
		k.log.Info("counters are saved again", "state", k.file.Path())
	}
}

// KeepAtEnd stores changes since r's last cycle: after a clean shutdown every event is
// written or lost, and the account includes it.
func (k *Counters) KeepAtEnd(r *collect.Runner) {
	r.KeepAtEnd()
	k.Keep(r)
}

// Close releases the file for other processes.
func (k *Counters) Close() {
	if k.file != nil {
		k.file.Close()
	}
}
