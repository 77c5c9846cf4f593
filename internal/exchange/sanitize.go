package exchange

import "strings"

// Bounds on untrusted text in log lines: claims, resources, responses.
const (
	maxQuoted      = 256
	maxQuotedItems = 4
)

// bounded returns s for a log line: at most maxQuoted bytes of printable ASCII, so that it can
// contain neither line breaks nor escape sequences for a terminal.
func bounded(s string) string {
	cut := len(s) > maxQuoted
	if cut {
		s = s[:maxQuoted]
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	if cut {
		s += "..."
	}
	return s
}

func boundedAll(all []string) []string {
	out := make([]string, 0, maxQuotedItems)
	for _, s := range all[:min(len(all), maxQuotedItems)] {
		out = append(out, bounded(s))
	}
	return out
}

// shellSafe returns s for use between single quotes in a command that a person may paste into a
// shell. It replaces the characters that could end the quotes, or are special in the JSON that
// some commands take. No real issuer or subject contains them.
func shellSafe(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("'\"\\`$", r) {
			return '?'
		}
		return r
	}, bounded(s))
}
