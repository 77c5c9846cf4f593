package main

import (
	"errors"
	"fmt"
	"os/exec"
	"regexp"
)

// allocated matches the memory columns of a benchmark.
var allocated = regexp.MustCompile(`(\d+) B/op\s+(\d+) allocs/op`)

// allocations returns the allocations of the handler for a cached answer, including those for
// metrics and logs, beyond those of net/http. They are not visible from outside of a process, so
// this runs the benchmark of cmd/proxy.
func (b *bench) allocations() (string, error) {
	out, err := exec.Command("go", "test", "-run=^$", "-bench=^BenchmarkCachedAnswer$/^observed,_log_limited$",
		"-benchtime=100000x", "./cmd/proxy").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w:\n%s", err, out)
	}
	found := allocated.FindSubmatch(out)
	if found == nil {
		return "", errors.New("the output of the benchmark has no allocations")
	}
	return fmt.Sprintf("%s (%s B)", found[2], found[1]), nil
}
