package main

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
)

// allocated is what a benchmark says of memory.
var allocated = regexp.MustCompile(`(\d+) B/op\s+(\d+) allocs/op`)

// allocations is what the handler of a cached answer allocates by itself, with all that
// looks on: a process does not tell of it, so the benchmark of cmd/proxy does.
func (b *bench) allocations() (string, error) {
	out, err := exec.Command("go", "test", "-run=^$", "-bench=^BenchmarkCachedAnswer$/^observed,_log_limited$",
		"-benchtime=100000x", "./cmd/proxy").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w:\n%s", err, out)
	}
	found := allocated.FindSubmatch(out)
	if found == nil {
		return "", errors.New("the benchmark says nothing of allocations")
	}
	return fmt.Sprintf("%s (%s B)", found[2], found[1]), nil
}
