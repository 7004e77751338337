package when

import (
	"fmt"
	"strings"
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
	for _, text := range []string{"", "2h", "tomorrow", "25:00", "2026-13-01", "--2h", "-", "ago", "-99999999d", "3 bananas ago", "24:00", "2026-02-29",
		"1969-12-31", "0001-01-01T00:00:00Z", "-65535d", "-2562047h", "9999-12-31T23:59:59-05:00"} {
		if got, err := Parse(text, now); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

// Every moment is found by what a clock shows at it, or is named among the two that a
// clock shows twice; a day begins at its first moment; and what no clock shows is an
// error.
func TestParseAtChangesOfTheZone(t *testing.T) {
	for name, days := range map[string][]string{
		"America/New_York": {"2026-03-08", "2026-11-01"}, "Europe/Berlin": {"2026-03-29", "2026-10-25"}, "Australia/Lord_Howe": {"2026-04-05", "2026-10-04"},
		"America/Santiago": {"2026-09-06", "2026-04-04"}, "America/Havana": {"2026-03-08", "2026-11-01"}, "Africa/Cairo": {"2026-04-24", "2026-10-30"},
		"Pacific/Apia": {"2011-12-29", "2011-12-31"}, "Asia/Kathmandu": {"2026-01-01"}, "UTC": {"2026-01-01"},
	} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, day := range days {
			noon, err := time.ParseInLocation("2006-01-02 15:04", day+" 12:00", zone)
			if err != nil {
				t.Fatal(err)
			}
			shown := map[string]int{}
			moment := func(f func(m time.Time, clock string)) {
				for m := noon.Add(-40 * time.Hour); m.Before(noon.Add(40 * time.Hour)); m = m.Add(10 * time.Minute) {
					f(m, m.Format("2006-01-02 15:04"))
				}
			}
			moment(func(_ time.Time, clock string) { shown[clock]++ })
			first := map[string]bool{}
			moment(func(m time.Time, clock string) {
				got, err := Parse(clock, noon)
				switch {
				case shown[clock] == 1 && (err != nil || !got.Equal(m)):
					t.Errorf("%s: %s is %v, %v, want %v", name, clock, got, err, m)
				case shown[clock] == 2 && (err == nil || !strings.Contains(err.Error(), m.Format(time.RFC3339))):
					t.Errorf("%s: %s is %v, %v, want an error that names %v", name, clock, got, err, m)
				}
				date := m.Format(time.DateOnly)
				if seen := first[date]; !seen && len(first) > 0 {
					if got, err := Parse(date, noon); err != nil || !got.Equal(m) {
						t.Errorf("%s: %s begins at %v, %v, want %v", name, date, got, err, m)
					}
					if got, err := Parse("today", m.Add(time.Hour)); err != nil || !got.Equal(m) {
						t.Errorf("%s: today begins at %v, %v, want %v", name, got, err, m)
					}
					if got, err := Parse("yesterday", m.Add(25*time.Hour)); err != nil || m.Add(25*time.Hour).Day() == m.AddDate(0, 0, 1).Day() && !got.Equal(m) {
						t.Errorf("%s: yesterday began at %v, %v, want %v", name, got, err, m)
					}
				}
				first[date] = true
			})
			for clock, step := noon.Add(-12*time.Hour), 0; step < 144; step++ {
				text := fmt.Sprintf("%s %02d:%02d", day, step/6, step%6*10)
				if got, err := Parse(text, clock); shown[text] == 0 && (err == nil || !strings.Contains(err.Error(), "does not exist")) {
					t.Errorf("%s: no clock shows %s, and it is %v", name, text, got)
				}
			}
		}
	}
}
