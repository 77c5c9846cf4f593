//go:build !race

package e2e

// raceEnabled reports whether this test binary was built with the race detector.
const raceEnabled = false
