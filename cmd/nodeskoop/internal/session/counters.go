package session

import (
	"errors"
	"log/slog"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/collect"
	"nodeskoop/output"
)

// Counters are what has to be known for the counters to go on after a restart,
// in a file.
type Counters struct {
	log  *slog.Logger
	file *output.StateFile // nil: they are not kept
	// beside: while another process keeps them, this one says nothing of it.
	beside  bool
	failing bool
	cut     bool
}

// KeepCounters lets the counters of r go on from what an earlier run kept, and
// be kept. beside says that it is in order if another process does the latter.
func (s *Session) KeepCounters(r *collect.Runner, beside bool) *Counters {
	k := s.NewCounters(r, s.Config)
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
		s.Log.Info("counters are reset: those that were kept are of another boot or container", "state", file.Path())
	case err != nil:
		s.Log.Warn("counters are reset: those that were kept cannot be used", "state", file.Path(), "error", err)
	}
	return k
}

// NewCounters lets the counters of r be kept as a configuration says.
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
		s.Log.Warn("counters are not kept; the next start loses what deleted interfaces and ended processes had counted", "error", err)
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

// fail says once that keeping the counters does not work.
func (k *Counters) fail(err error) {
	if !k.failing {
		k.log.Warn("counters cannot be kept; until they can, a restart loses what deleted interfaces and ended processes had counted",
			"error", err, "hint", "give it a folder of its own with state.dir, or set state.counters = false")
	}
	k.failing = true
}

// Keep writes what the last cycle of r left. It comes before the values of the
// cycle are published: whenever the program ends, no reader has seen more than
// the next run begins with.
func (k *Counters) Keep(r *collect.Runner) {
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

// KeepAtEnd writes what has changed since the last cycle of r: at a clean end every
// event has been told or is lost, and the account says so.
func (k *Counters) KeepAtEnd(r *collect.Runner) {
	r.KeepAtEnd()
	k.Keep(r)
}

// Close lets another process keep them.
func (k *Counters) Close() {
	if k.file != nil {
		k.file.Close()
	}
}
