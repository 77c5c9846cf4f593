// Package memory measures the memory of a program that a test runs.
package memory

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"
)

// highWater is the line of /proc/PID/status with the largest resident memory so far.
var highWater = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)

// Process is a program that runs.
type Process struct {
	peak atomic.Int64
	done chan error
}

// Start starts a command, and measures its memory until it ends. The maximum in rusage is not usable: that of
// a child begins with the memory of its parent, which the child has until it executes the program. So the
// process's own maximum is read again and again. What the last milliseconds add is not seen.
func Start(cmd *exec.Cmd) (*Process, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{done: make(chan error, 1)}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	go p.watch(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid), ended)
	return p, nil
}

func (p *Process) watch(status string, ended <-chan error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			p.done <- err
			return
		case <-tick.C:
			text, _ := os.ReadFile(status) // fails when the process has ended
			if m := highWater.FindSubmatch(text); m != nil {
				kib, _ := strconv.ParseInt(string(m[1]), 10, 64)
				p.peak.Store(max(p.peak.Load(), kib<<10))
			}
		}
	}
}

// Peak returns the most resident memory that the process has had, in bytes.
func (p *Process) Peak() int64 { return p.peak.Load() }

// Wait waits for the end, and returns the peak and the error of [exec.Cmd.Wait].
func (p *Process) Wait() (int64, error) {
	err := <-p.done
	return p.Peak(), err
}

// Run starts a command and waits for its end.
func Run(cmd *exec.Cmd) (int64, error) {
	p, err := Start(cmd)
	if err != nil {
		return 0, err
	}
	return p.Wait()
}
