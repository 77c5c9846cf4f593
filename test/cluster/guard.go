package cluster

import (
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// guardVar tells a process that it is the guard, and whose: the process ID, and in
// dirVar the directory, of the process outside.
const guardVar = "CLUSTER_TEST_GUARD"

// guard is a process that outlives a run that is killed, and removes what the kernel
// does not: the cgroups, and the directory. It knows of the end by that of a pipe.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

func startGuard(dir string) (*guard, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guardVar+"="+strconv.Itoa(os.Getpid()), dirVar+"="+dir)
	// An interrupt from the terminal is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &guard{cmd, pipe}, cmd.Start()
}

// end has the guard do its work, and waits for it.
func (g *guard) end() error {
	if err := g.pipe.Close(); err != nil {
		return err
	}
	return g.cmd.Wait()
}

// isGuard reports whether this process is a guard; its work is done by then.
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
