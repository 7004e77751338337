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
// date it is on the day of now.
func Parse(text string, now time.Time) (time.Time, error) {
	s := strings.TrimSpace(text)
	midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	switch s {
	case "now":
		return now, nil
	case "today":
		return midnight, nil
	case "yesterday":
		return midnight.AddDate(0, 0, -1), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t.In(now.Location()), nil
	}
	for _, l := range layouts {
		t, err := time.ParseInLocation(l.layout, s, now.Location())
		if err != nil {
			continue
		}
		if l.today {
			t = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
		}
		return t, nil
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

// Length parses a duration of 0 or more, such as "36h", which may be in whole days: "14d".
func Length(s string) (time.Duration, bool) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err == nil
	}
	d, err := time.ParseDuration(s)
	return d, err == nil && d >= 0
}
