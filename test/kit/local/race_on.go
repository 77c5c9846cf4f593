//go:build race

package local

// RaceEnabled reports whether this program was built with the race detector.
const RaceEnabled = true
