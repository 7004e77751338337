package session

import (
	"time"

	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/output/history"
)

// NewHistory is the history that a configuration asks for, nil if it asks for none.
// minute is how long a minute is, 0 for all but tests.
func (s *Session) NewHistory(cfg *config.Config, minute time.Duration) *history.History {
	if !cfg.History.Enabled {
		return nil
	}
	bytes, age := cfg.History.Limits()
	return history.New(history.Options{Dir: cfg.HistoryDir(), MaxBytes: bytes, MaxAge: age, Minute: minute, Log: s.Log})
}
