// Package netns puts a process into a network namespace of its own, with no way
// out, so that it can use the metadata address 169.254.169.254 without a packet
// ever reaching real infrastructure.
//
// A thread cannot be moved there reliably: net/http dials on whatever thread the
// scheduler picks. So the whole process starts itself again inside the namespace,
// and refuses to go on where it cannot see that it has moved.
//
// Its users are test binaries (from TestMain) and the demo.
package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
)

// parentVar carries the name of the namespace that was left, and so tells a
// process that it is the one started inside.
const parentVar = "IMDS_OIDC_PROXY_LEFT_NETNS"

// MetadataAddress is the address of the instance metadata service. Inside the
// namespace it stands on the loopback device, which gives it a route and lets a
// decoy listen there.
const MetadataAddress = "169.254.169.254"

// Enter makes sure that the process runs in a network namespace of its own. It
// returns inside is true there, with the loopback device up and holding
// [MetadataAddress]. In the process that was left, it returns the exit code of
// the one that it started, which is all that this process has left to do.
//
// Making a namespace takes root (CAP_SYS_ADMIN), or, with userNS, a kernel that
// lets users make user namespaces; the caller is then root inside, alone.
//
// env is added to the environment of the process inside.
func Enter(userNS bool, env ...string) (inside bool, exitCode int, err error) {
	if !Inside() {
		attributes := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if userNS {
			attributes.Cloneflags |= syscall.CLONE_NEWUSER
			attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		code, err := reexec(attributes, env)
		return false, code, err
	}
	left := os.Getenv(parentVar)
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return false, 1, fmt.Errorf("cannot tell which network namespace this is: %w", err)
	}
	if here == left {
		return false, 1, fmt.Errorf("still in the network namespace %s that was to be left; refusing to go on", here)
	}
	if err := requireNoWayOut(); err != nil {
		return false, 1, err
	}
	if err := configureLoopback(); err != nil {
		return false, 1, err
	}
	return true, 0, nil
}

// Inside reports whether [Enter] started this process. Work that needs the world
// outside, such as downloading modules, is to be done where it is false.
func Inside() bool { return os.Getenv(parentVar) != "" }

// OneUser reports whether the process is in a user namespace that maps no user but
// its own, so that it cannot start programs as others.
func OneUser() bool {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false // no user namespaces in this kernel
	}
	fields := strings.Fields(string(uidMap))
	return len(fields) == 3 && fields[2] == "1"
}

// requireNoWayOut refuses a namespace that is not new: a forged or inherited
// environment must never lead to changing a real host's addresses.
func requireNoWayOut() error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("cannot list network interfaces: %w", err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("interface %s is up: this is no new network namespace (%s is set by hand?); refusing to go on", i.Name, parentVar)
		}
	}
	return nil
}

// reexec runs this program again inside new namespaces and waits for it.
func reexec(attributes *syscall.SysProcAttr, env []string) (int, error) {
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return 1, fmt.Errorf("cannot tell which network namespace this is: %w", err)
	}
	// The child dies with the thread that started it, which must not end early.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(append(os.Environ(), env...), parentVar+"="+here)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attributes
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err = runForwarding(cmd)
	if exit, exited := errors.AsType[*exec.ExitError](err); exited {
		if exit.ExitCode() < 0 {
			return 1, nil
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, fmt.Errorf("cannot start in a network namespace of its own: %w", err)
	}
	return 0, nil
}

// runForwarding runs cmd to its end and lets it decide what a signal means: an
// interrupt from a terminal reaches it without help, SIGTERM is passed on.
func runForwarding(cmd *exec.Cmd) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case err := <-ended:
			return err
		case s := <-signals:
			if s == syscall.SIGTERM {
				_ = cmd.Process.Signal(s) // it may have ended meanwhile
			}
		}
	}
}

// configureLoopback brings lo up and puts the metadata address on it.
func configureLoopback() error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"address", "replace", MetadataAddress + "/32", "dev", "lo"},
	} {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
