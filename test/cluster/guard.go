package cluster

import (
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// guardVar is set for the guard process only. Its value is the process ID of the process
// outside, whose directory is in dirVar.
const guardVar = "CLUSTER_TEST_GUARD"

// guard is a process that removes the run's cgroups and directory, which the kernel does
// not, even if the run is killed. It starts when the write end of its pipe is closed.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func startGuard(dir string) (*guard, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guardVar+"="+strconv.Itoa(os.Getpid()), dirVar+"="+dir)
	// A new session, so that Ctrl-C in the terminal does not stop the guard.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &guard{cmd, pipe}, cmd.Start()
}

// stop makes the guard clean up, and waits until it has exited.
func (g *guard) stop() error {
	if err := g.pipe.Close(); err != nil {
		return err
	}
	return g.cmd.Wait()
}

// isGuard reports whether this process is a guard. If so, isGuard first waits for the end
// of the run and cleans up.
func isGuard() bool {
	pid := os.Getenv(guardVar)
	if pid == "" {
		return false
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	removeCgroups(pid)
	_ = os.RemoveAll(os.Getenv(dirVar))
	return true
}
