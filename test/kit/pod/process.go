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
	// uid is the user and group to run as.
	uid int
	// output receives standard output and standard error. run returns them instead.
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

// run runs a command and returns its standard output, or standard output and standard error
// if it fails.
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

// process is a running program.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has exited
}

func start(c command) (*process, error) {
	cmd := c.build(context.Background())
	cmd.Stdout, cmd.Stderr = c.output, c.output
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // the result is in cmd.ProcessState
		close(p.done)
	}()
	return p, nil
}

// wait waits until the program exits and returns its exit code, -1 if a signal killed it.
func (p *process) wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, errors.New("still running")
	}
}

// stop sends SIGTERM, and kills the program if it does not exit within stopTimeout.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has exited already
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

// Write appends to the log.
func (l *Log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// String returns the output so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// logPollInterval is how often WaitFor searches the log.
const logPollInterval = 5 * time.Millisecond

// WaitFor waits until the log contains text.
func (l *Log) WaitFor(ctx context.Context, text string) error {
	ticker := time.NewTicker(logPollInterval)
	defer ticker.Stop()
	for !strings.Contains(l.String(), text) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the log does not contain %q:\n%s", text, l)
		case <-ticker.C:
		}
	}
	return nil
}
