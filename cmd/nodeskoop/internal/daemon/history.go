package daemon

import (
	"nodeskoop/cmd/nodeskoop/internal/config"
	"nodeskoop/output/history"
)

// recorder returns the current history, nil if there is none. A reload may replace
// it while a write of the textfile hangs.
func (d *daemon) recorder() *history.History {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.history
}

// useHistory switches to the history of a configuration. A replaced history writes
// its last minute concurrently with the loop.
func (d *daemon) useHistory(cfg *config.Config) {
	before := d.recorder()
	if before != nil && cfg.History.Enabled && cfg.HistoryDir() == d.Config.HistoryDir() {
		before.Limit(cfg.History.Limits())
		return
	}
	next := d.NewHistory(cfg, d.minute)
	d.mu.Lock()
	d.history = next
	d.mu.Unlock()
	if before != nil {
		before.Close(0)
	}
}

// closeHistory writes the unfinished minute.
func (d *daemon) closeHistory() {
	if h := d.recorder(); h != nil {
		h.Close(endStep)
	}
}

// historySelf adds the history's metrics about itself.
func (d *daemon) historySelf(add func(metric string, value float64, labels ...string)) {
	h := d.recorder()
	if h == nil {
		return
	}
	st := h.Stats()
	if st.Known {
		add("nodeskoop_history_bytes", float64(st.Bytes))
		add("nodeskoop_history_oldest_timestamp_seconds", float64(st.Oldest.Unix()))
	}
	add("nodeskoop_history_frames_written_total", float64(st.Written))
	add("nodeskoop_history_frames_lost_total", float64(st.Lost))
	add("nodeskoop_history_series_left_out", float64(st.LeftOut))
}
