package session

import (
	"time"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/output/history"
)

// NewHistory opens the history of a configuration, nil if it is disabled. minute is
// the length of a minute, 0 except in tests.
func (s *Session) NewHistory(cfg *config.Config, minute time.Duration) *history.History {
	if !cfg.History.Enabled {
		return nil
	}
	bytes, age := cfg.History.Limits()
	return history.New(history.Options{Dir: cfg.HistoryDir(), MaxBytes: bytes, MaxAge: age, Minute: minute, Log: s.Log})
}
