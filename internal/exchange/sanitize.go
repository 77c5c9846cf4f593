package exchange

import "strings"

// Bounds on foreign text in log lines: claims, resources, answers.
const (
	maxQuoted      = 256
	maxQuotedItems = 4
)

// bounded returns s for a log line: at most maxQuoted bytes of printable ASCII,
// so that it can neither break lines nor drive a terminal.
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

// shellSafe returns s for use between single quotes in a command that a person may paste into
// a shell. It replaces characters that could end the quotes, or escape in the JSON that some
// commands take. No real issuer or subject has them.
func shellSafe(s string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("'\"\\`$", r) {
			return '?'
		}
		return r
	}, bounded(s))
}
