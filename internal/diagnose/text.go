package diagnose

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
)

const (
	// maxText bounds one text of a report, in bytes. The longest text of this program
	// fits: a command with the issuer and the subject twice.
	maxText = 2048

	// maxClipped bounds a quoted claim, or a quoted part of a certificate or header.
	maxClipped = 256
)

// printable returns s as bounded printable ASCII, without line breaks and without escape
// sequences, which would control a terminal.
func printable(s string) string { return bounded(s, maxText) }

// clip does the same for a quoted part of a text.
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

// WriteText writes a step as text: each finding on one line, in columns, and its remedy on
// the next line, where it can be copied.
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

// word returns the text of a status. FAIL is in upper case, to be visible without colour.
func word(s Status) string {
	if s == Fail {
		return "FAIL"
	}
	return string(s)
}

// address returns a URL without its user, password and query, which may be secret.
func address(value string) string {
	u, err := url.Parse(value)
	if err != nil || u.Host == "" {
		return "(not a URL)"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// rough returns a duration, rounded for readers.
func rough(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
}
