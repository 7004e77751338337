// Package when parses points in time, and lengths of time, as a person writes them.
package when

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Forms describes the formats that Parse accepts, for messages and help.
const Forms = `"2026-11-27 03:00", "03:00" (today), "2h ago" or -2h, "now", "today", "yesterday", or RFC 3339`

var layouts = []struct {
	layout string
	today  bool // the text has a time of day only
}{
	{"2006-01-02 15:04:05", false}, {"2006-01-02 15:04", false}, {"2006-01-02", false},
	{"2006-01-02T15:04:05", false}, {"2006-01-02T15:04", false},
	{"15:04:05", true}, {"15:04", true},
}

// Parse parses a point in time. Without a zone it is in that of now, and without a
// date it is on the day of now. A time of the clock that a change to or from summer
// time skips or repeats is an error that says how to write it.
func Parse(text string, now time.Time) (time.Time, error) {
	t, err := parse(text, now)
	if err == nil && (t.Year() < 1970 || t.Year() > 9999) {
		return time.Time{}, fmt.Errorf("%q is in the year %d: nothing is recorded before 1970 or after 9999", text, t.Year())
	}
	return t, err
}

func parse(text string, now time.Time) (time.Time, error) {
	s := strings.TrimSpace(text)
	switch s {
	case "now":
		return now, nil
	case "today":
		return beginOfDay(now.Year(), now.Month(), now.Day(), now.Location()), nil
	case "yesterday":
		return beginOfDay(now.Year(), now.Month(), now.Day()-1, now.Location()), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t.In(now.Location()), nil
	}
	for _, l := range layouts {
		t, err := time.ParseInLocation(l.layout, s, time.UTC)
		switch {
		case err != nil:
			continue
		case l.layout == time.DateOnly:
			return beginOfDay(t.Year(), t.Month(), t.Day(), now.Location()), nil
		case l.today:
			t = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC)
		}
		at, after := moments(t, now.Location())
		switch len(at) {
		case 0:
			return time.Time{}, fmt.Errorf("%q does not exist in this time zone: the clocks were put forward then; the next moment is %s", text, after.Format(time.RFC3339))
		case 1:
			return at[0], nil
		}
		return time.Time{}, fmt.Errorf("%q occurred twice in this time zone, since the clocks were put back: write %s or %s", text, at[0].Format(time.RFC3339), at[1].Format(time.RFC3339))
	}
	ago, before := strings.CutSuffix(s, " ago")
	if !before {
		ago, before = strings.CutPrefix(s, "-")
	}
	if d, ok := Length(strings.ReplaceAll(ago, " ", "")); before && ok {
		return now.Add(-d), nil
	}
	return time.Time{}, fmt.Errorf("%q is not a point in time: write %s", text, Forms)
}

// moments returns the moments at which the clocks of a zone show what the clocks of UTC
// show at shown, earliest first: none and the moment after if a change of the zone's
// offset skips it, two if a change repeats it.
func moments(shown time.Time, zone *time.Location) (at []time.Time, after time.Time) {
	const widest = 26 * time.Hour // offsets are from -12 h to +14 h
	for probe := shown.Add(-widest).In(zone); ; {
		_, offset := probe.Zone()
		t := shown.Add(-time.Duration(offset) * time.Second).In(zone)
		begin, end := probe.ZoneBounds()
		if (begin.IsZero() || !t.Before(begin)) && (end.IsZero() || t.Before(end)) {
			at = append(at, t)
		} else if len(at) == 0 && after.IsZero() && !begin.IsZero() && t.Before(begin) {
			after = begin
		}
		if end.IsZero() || end.Sub(shown) > widest {
			return at, after
		}
		probe = end
	}
}

// beginOfDay returns the first moment of a day. It is not midnight in a zone in which
// summer time begins at midnight.
func beginOfDay(year int, month time.Month, day int, zone *time.Location) time.Time {
	at, after := moments(time.Date(year, month, day, 0, 0, 0, 0, time.UTC), zone)
	if len(at) == 0 {
		return after
	}
	return at[0]
}

// Length parses a duration of 0 or more, such as "36h", which may be in whole days: "14d".
func Length(s string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err == nil
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}
