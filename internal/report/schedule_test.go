package report

import (
	"testing"
	"time"
)

var sunday = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func TestLongestInterval(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"* * * * *": day, "0 3 * * *": day, "0 3 * * 1": 7 * day, "0 3 * * 1-5": 3 * day, "0 0 1 * *": 31 * day, "@monthly": 31 * day,
		"0 0 1 1 *": 366 * day, "0 0 29 2 *": 1461 * day, "* * 1-7 * *": 24*day + time.Minute, "0 0 1 */3 *": 92 * day, "@every 50h": 50 * time.Hour,
		"0 0 30 2 *": 0, "": 0, "x": 0, "* * * * * *": 0, "TZ=": 0, "TZ=UTC": 0, "CRON_TZ=Europe/Berlin 0 3 * * *": 0, "@reboot": 0,
	} {
		got := time.Duration(0)
		if schedule := parseSchedule(text, ""); schedule != nil {
			got = longestInterval(schedule, sunday)
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}

// TestKnownSince: only runs without a gap before them count.
func TestKnownSince(t *testing.T) {
	at := func(days int, hour int) time.Time { return time.Date(2026, 11, 29-days, hour, 0, 0, 0, time.UTC) }
	for name, c := range map[string]struct {
		schedule, zone string
		known          []time.Time
		want           time.Time
	}{
		"three runs":            {"0 3 * * *", "", []time.Time{at(2, 3), at(1, 3), at(0, 3)}, at(2, 3)},
		"a run is missing":      {"0 3 * * *", "", []time.Time{at(9, 3), at(8, 3), at(1, 3), at(0, 3)}, at(2, 3).Add(time.Minute)},
		"the last is missing":   {"0 3 * * *", "", []time.Time{at(2, 3), at(1, 3)}, at(0, 3).Add(time.Minute)},
		"the next begins":       {"55 11 * * *", "", []time.Time{at(2, 11).Add(55 * time.Minute), at(1, 11).Add(55 * time.Minute)}, at(2, 11).Add(55 * time.Minute)},
		"none":                  {"0 3 * * *", "", nil, sunday},
		"a time zone":           {"0 3 * * *", "Asia/Tokyo", []time.Time{at(2, 18), at(1, 18)}, at(2, 18)},
		"an unknown time zone":  {"0 3 * * *", "Mars", []time.Time{at(1, 3), at(0, 3)}, at(1, 3)},
		"runs of another time":  {"0 3 * * *", "", []time.Time{at(2, 5), at(1, 5)}, at(0, 3).Add(time.Minute)},
		"too many runs to know": {"* * * * *", "", []time.Time{at(45, 3)}, sunday},
	} {
		known := map[int64]bool{}
		for _, run := range c.known {
			known[run.Unix()/60] = true
		}
		if got := knownSince(parseSchedule(c.schedule, c.zone), known, sunday); !got.Equal(c.want) {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}
