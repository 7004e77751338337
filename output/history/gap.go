package history

import "time"

// Gap returns why there are no samples before a minute, and since when; why is ""
// if there is no gap. last is the end of the previous minute, the zero time if
// there is none.
func (m *Minute) Gap(last time.Time) (from time.Time, why string) {
	set := m.To.Sub(m.From) - m.Elapsed
	switch {
	case m.First && !last.IsZero():
		return last, "the daemon was started"
	case set > 2*time.Second || set < -2*time.Second:
		return m.From, "the clock was set by " + set.Round(time.Second).String()
	case m.Asleep > time.Second:
		return m.From, "the machine was suspended for " + m.Asleep.Round(time.Second).String()
	case m.Unread && !last.IsZero() && m.From.Sub(last) > time.Second:
		return last, "the record of it cannot be read"
	case !last.IsZero() && m.From.Sub(last) > time.Second:
		return last, "the minutes could not be written"
	}
	return from, ""
}
