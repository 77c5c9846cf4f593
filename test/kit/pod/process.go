package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// command is a program to run in the pod.
type command struct {
	args []string
	env  []string
	// uid is both user and group; the caller's own changes nothing.
	uid int
	// output receives standard output and standard error. Nil: they are returned.
	output io.Writer
}

func (c command) build(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Env = c.env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if c.uid != os.Getuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.uid), Gid: uint32(c.uid)}
	}
	return cmd
}

// run runs a command to its end and returns its standard output, or on failure
// both outputs.
func run(ctx context.Context, c command) (string, error) {
	cmd := c.build(ctx)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		return strings.TrimSpace(stdout.String() + stderr.String()), fmt.Errorf("%s: %w", c.args[0], err)
	}
	return stdout.String(), nil
}

// process is a program left running.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has ended
}

func start(c command) (*process, error) {
	cmd := c.build(context.Background())
	cmd.Stdout, cmd.Stderr = c.output, c.output
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended stands in cmd.ProcessState
		close(p.done)
	}()
	return p, nil
}

// wait returns the exit code, once there is one; -1 is a death by signal.
func (p *process) wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, errors.New("still running")
	}
}

// stop asks the program to end, and ends it when it does not.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if _, err := p.wait(ctx); err != nil {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// Log collects what a program prints. It is safe for concurrent use.
type Log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to the log.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// String is all that was printed so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// logPollInterval is how often WaitFor looks.
const logPollInterval = 5 * time.Millisecond

// WaitFor waits until the log holds text.
func (l *Log) WaitFor(ctx context.Context, text string) error {
	ticker := time.NewTicker(logPollInterval)
	defer ticker.Stop()
	for !strings.Contains(l.String(), text) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the log never said %q:\n%s", text, l)
		case <-ticker.C:
		}
	}
	return nil
}
