package report

import (
	"strings"
	"time"

	"github.com/robfig/cron/v3" // that of Kubernetes' CronJob controller
)

const (
	day = 24 * time.Hour

	// horizon is how far ahead the longest time between two runs is looked for: the 29th of February
	// comes every four years.
	horizon = 5 * 366 * day

	// maxRuns bounds the runs of one CronJob that are looked at: one a minute for more than 40 days.
	maxRuns = 60_000
)

// parseSchedule parses the schedule of a CronJob, or returns nil. A time zone in it, which Kubernetes does
// not support, would make the parser panic if it is malformed.
func parseSchedule(text, zone string) cron.Schedule {
	if strings.Contains(text, "TZ") {
		return nil
	}
	schedule, err := cron.ParseStandard(text)
	if err != nil {
		return nil
	}
	if spec, ok := schedule.(*cron.SpecSchedule); ok {
		spec.Location = time.UTC
		if location, err := time.LoadLocation(zone); err == nil {
			spec.Location = location
		}
	}
	return schedule
}

// longestInterval returns the longest time between two runs, or 0 if there are no two. It looks at one run
// a day only: a time of less than two days may be returned as one day.
func longestInterval(schedule cron.Schedule, from time.Time) time.Duration {
	longest, probe := time.Duration(0), schedule.Next(from)
	for end := from.Add(horizon); !probe.IsZero() && probe.Before(end); {
		next := schedule.Next(probe)
		if next.IsZero() {
			break
		}
		if next.Sub(probe) <= day {
			longest, probe = max(longest, day), probe.Add(day)
			continue
		}
		last := probe // the last run before the pause: probe itself may be none
		for run := schedule.Next(probe.Add(-day - time.Second)); !run.After(probe); run = schedule.Next(run) {
			last = run
		}
		longest, probe = max(longest, next.Sub(last)), next
	}
	return longest
}

// knownSince returns the time since which all runs of a CronJob are known. known has the Unix minutes at
// which known runs were scheduled: they are in the names of their Jobs. A run of the last minutes may not
// have begun.
func knownSince(schedule cron.Schedule, known map[int64]bool, now time.Time) time.Time {
	const beginning = 10 * time.Minute
	first := now
	for minute := range known {
		if at := time.Unix(minute*60, 0); at.Before(first) {
			first = at
		}
	}
	since, runs := first, 0
	for run := schedule.Next(first.Add(-time.Second)); !run.IsZero() && run.Before(now.Add(-beginning)); run = schedule.Next(run) {
		if runs++; runs > maxRuns {
			return now
		}
		if !known[run.Unix()/60] {
			since = run.Add(time.Minute)
		}
	}
	return since
}
