package diagnose

import (
	"fmt"
	"io"
	"strings"
)

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
