package when

import (
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	zone := time.FixedZone("there", 2*3600)
	now := time.Date(2026, 11, 27, 15, 4, 5, 0, zone)
	for text, want := range map[string]time.Time{
		"now":                       now,
		"today":                     time.Date(2026, 11, 27, 0, 0, 0, 0, zone),
		"yesterday":                 time.Date(2026, 11, 26, 0, 0, 0, 0, zone),
		"2026-11-26 03:00":          time.Date(2026, 11, 26, 3, 0, 0, 0, zone),
		"2026-11-26 03:00:07":       time.Date(2026, 11, 26, 3, 0, 7, 0, zone),
		"2026-11-26T03:00":          time.Date(2026, 11, 26, 3, 0, 0, 0, zone),
		"2026-11-26":                time.Date(2026, 11, 26, 0, 0, 0, 0, zone),
		"2026-11-26T03:00:00Z":      time.Date(2026, 11, 26, 5, 0, 0, 0, zone),
		"2026-11-26T03:00:00+05:00": time.Date(2026, 11, 26, 0, 0, 0, 0, zone),
		"03:00":                     time.Date(2026, 11, 27, 3, 0, 0, 0, zone),
		" 03:00:09 ":                time.Date(2026, 11, 27, 3, 0, 9, 0, zone),
		"2h ago":                    now.Add(-2 * time.Hour),
		"1h 30m ago":                now.Add(-90 * time.Minute),
		"-90m":                      now.Add(-90 * time.Minute),
		"-2d":                       now.Add(-48 * time.Hour),
		"3d ago":                    now.Add(-72 * time.Hour),
	} {
		if got, err := Parse(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "2h", "tomorrow", "25:00", "2026-13-01", "--2h", "-", "ago", "-99999999d", "3 bananas ago"} {
		if got, err := Parse(text, now); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}
