package main

import (
	"fmt"
	"slices"
	"time"
)

// print prints the medians and the 90th percentiles of all forms, and whether the goals are
// reached by the medians.
func (b *bench) print() error {
	server, err := b.cluster.Client.Discovery().ServerVersion()
	if err != nil {
		return err
	}
	fmt.Printf("\nKubernetes %s; milliseconds from the call that creates the pod, medians (and 90th percentiles) of %d pods of each form\n\n", server.GitVersion, len(b.samples[plainForm]))
	const columns = "%-44s %19s %15s %18s %7s %17s\n"
	fmt.Printf(columns, "", "application runs", "first token", "over a plain pod", "ratio", "failed requests")
	spread := func(samples []sample, value func(sample) time.Duration) string {
		return milliseconds(median(samples, value)) + " (" + milliseconds(percentile90(samples, value)) + ")"
	}
	plain := median(b.samples[plainForm], token)
	for _, f := range forms {
		all := b.samples[f.name]
		first, failed := median(all, token), 0
		for _, s := range all {
			failed += s.failed
		}
		if f.name == plainForm {
			fmt.Printf(columns, f.name, spread(all, running), "", "", "", "")
			continue
		}
		fmt.Printf(columns, f.name, spread(all, running), spread(all, token), "+"+milliseconds(first-plain),
			fmt.Sprintf("%.1f", float64(first)/float64(plain)), fmt.Sprint(failed))
	}
	fmt.Println()
	for _, f := range forms {
		if f.goal != (goal{}) {
			fmt.Println(f.verdict(median(b.samples[f.name], token), median(b.samples[f.goal.form], token)))
		}
	}
	return nil
}

// verdict says whether the form reaches its goal, with its time and that of the other form.
func (f form) verdict(own, other time.Duration) string {
	limit, text := other+f.goal.more, f.goal.form
	if f.goal.more > 0 {
		text += " + " + milliseconds(f.goal.more) + " ms"
	}
	if own <= limit {
		return fmt.Sprintf("%s ≤ %s: reached, %s ms to spare", f.name, text, milliseconds(limit-own))
	}
	return fmt.Sprintf("%s ≤ %s: missed by %s ms", f.name, text, milliseconds(own-limit))
}

func running(s sample) time.Duration { return s.running }
func token(s sample) time.Duration   { return s.token }

// median returns the median of a value of the samples: of an even number of them, the mean of the
// two in the middle.
func median(samples []sample, value func(sample) time.Duration) time.Duration {
	values := sorted(samples, value)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}

// percentile90 returns the least of the values that nine of ten samples do not exceed.
func percentile90(samples []sample, value func(sample) time.Duration) time.Duration {
	values := sorted(samples, value)
	return values[(9*len(values)+9)/10-1]
}

// sorted returns the values of the samples in order. There must be at least one sample.
func sorted(samples []sample, value func(sample) time.Duration) []time.Duration {
	var values []time.Duration
	for _, s := range samples {
		values = append(values, value(s))
	}
	slices.Sort(values)
	return values
}

func milliseconds(d time.Duration) string {
	return fmt.Sprint(d.Round(time.Millisecond).Milliseconds())
}
