package flagenv

import (
	"fmt"
	"strings"
)

// UnknownCommand returns an error for a word that is not among the known commands. It
// suggests the nearest one, or lists all.
func UnknownCommand(word string, known ...string) error {
	if near := Nearest(word, known...); near != "" {
		return fmt.Errorf("unknown command %q: did you mean %q?", word, near)
	}
	return fmt.Errorf("unknown command %q: must be %s", word, alternatives(known))
}

// alternatives returns "a, b or c".
func alternatives(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// Nearest returns the first of the known words that differs least from word, or "" if all
// differ too much: by more than two edits, or by more than a third of the word's length. An
// edit inserts, removes or replaces one byte, or swaps two adjacent ones.
func Nearest(word string, known ...string) string {
	best, limit := "", min(2, (len(word)+1)/3)
	for _, candidate := range known {
		if d := distance(word, candidate); d <= limit {
			best, limit = candidate, d-1
		}
	}
	return best
}

// distance returns the number of edits between a and b (optimal string alignment).
func distance(a, b string) int {
	// d[i][j] is the distance between the first i bytes of a and the first j bytes of b.
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		for j := range d[i] {
			switch {
			case i == 0 || j == 0:
				d[i][j] = i + j
			case a[i-1] == b[j-1]:
				d[i][j] = d[i-1][j-1]
			default:
				d[i][j] = 1 + min(d[i-1][j], d[i][j-1], d[i-1][j-1])
				if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
					d[i][j] = min(d[i][j], 1+d[i-2][j-2])
				}
			}
		}
	}
	return d[len(a)][len(b)]
}
