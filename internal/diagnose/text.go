package diagnose

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
)

const (
	// maxText bounds one text of a report. The longest of its own, a command with
	// issuer and subject in it twice, fits.
	maxText = 2048

	// maxClipped bounds what a text quotes of a claim, a certificate or a header.
	maxClipped = 256
)

// printable returns s as bounded printable ASCII, so that it can neither drive a
// terminal nor break a line.
func printable(s string) string { return bounded(s, maxText) }

// clip is printable for a part of a text.
func clip(s string) string { return bounded(s, maxClipped) }

func bounded(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// WriteText writes a step for people: one line for each finding, in columns, and its
// remedy below it on a line of its own, ready to be copied.
func WriteText(w io.Writer, s Step) error {
	width := 0
	for _, f := range s.Findings {
		width = max(width, len(f.Item))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", s.Name)
	for _, f := range s.Findings {
		fmt.Fprintf(&b, "  %-7s  %-*s  %s\n", word(f.Status), width, f.Item, f.Text)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "           -> %s\n", f.Remedy)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// word is a status as it stands out in a column without colour.
func word(s Status) string {
	if s == Fail {
		return "FAIL"
	}
	return string(s)
}

// address is a URL without what may be secret in one.
func address(value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return "(not a URL)"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// rough is a duration, rounded for people.
func rough(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
}
