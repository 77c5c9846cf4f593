package netrules

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// newNamespace returns nf_tables of a new network namespace, which no process is in.
func newNamespace(t *testing.T) kernel {
	t.Helper()
	cmd := exec.Command("cat") // it waits for the end of its standard input
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); errors.Is(err, syscall.EPERM) {
		t.Skip("needs root, for a network namespace")
	} else if err != nil {
		t.Fatal(err)
	}
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	stdin.Close()
	if err := errors.Join(err, cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Close() })
	return kernel{netns: int(namespace.Fd())}
}

func TestNative(t *testing.T) {
	k := newNamespace(t)
	for _, c := range []Config{forwarding(), sealed(), denying(t, forwarding(), "168.63.129.16:80", "10.0.0.0/8", "11.0.0.0/8", "10.1.0.0/16", "224.0.0.0/3", "0.0.0.0/8", "172.16.0.0/12:443", "192.0.2.1")} {
		if err := k.apply(native(c)); err != nil {
			t.Fatal(err)
		}
		t.Log(native(c))
	}
	if err := k.remove(); err != nil {
		t.Fatal(err)
	}
}
