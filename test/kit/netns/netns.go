// Package netns runs a process in a new network namespace without a route to the
// outside, so that the process can use the metadata address 169.254.169.254 and no
// packet ever reaches real infrastructure.
//
// It would not be enough to move a single thread: net/http dials on any thread that the
// scheduler picks. So the program starts itself again inside the namespace, and stops if
// it cannot verify that it runs in a new one.
//
// Test binaries (from TestMain), test/compat and the demo use it.
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

// parentVar is the environment variable that marks a process as started by [Enter].
// Its value is the name of the network namespace that the starting process runs in.
const parentVar = "IMDS_OIDC_PROXY_LEFT_NETNS"

// MetadataAddress is the address of the instance metadata service. Inside the
// namespace the loopback device has this address, so that there is a route to it and
// a decoy can listen on it.
const MetadataAddress = "169.254.169.254"

// Enter starts this program again in a new network namespace, waits for it, and returns its exit
// code and inside false. The caller must then exit with this code. In the process inside, Enter
// brings the loopback device up, adds [MetadataAddress] to it, and returns inside true.
//
// Creating a namespace needs root (CAP_SYS_ADMIN). With userNS it needs a kernel that allows users
// to create user namespaces. The process inside is then root, and there are no other users.
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
	here, err := current()
	if err != nil {
		return false, 1, err
	}
	if here == os.Getenv(parentVar) {
		return false, 1, fmt.Errorf("still in the network namespace %s of the starting process; refusing to continue", here)
	}
	if err := requireNew(); err != nil {
		return false, 1, err
	}
	if err := configureLoopback(); err != nil {
		return false, 1, err
	}
	return true, 0, nil
}

// current returns the kernel's name of the network namespace of this process.
func current() (string, error) {
	name, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return "", fmt.Errorf("cannot determine the network namespace (/proc must be mounted): %w", err)
	}
	return name, nil
}

// Inside reports whether [Enter] started this process. Work that needs the network
// outside, such as downloading modules, must be done while it is false.
func Inside() bool { return os.Getenv(parentVar) != "" }

// OneUser reports whether the process runs in a user namespace that maps only one
// user, so that it cannot start programs as another user.
func OneUser() bool {
	uidMap, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false // no user namespaces in this kernel
	}
	fields := strings.Fields(string(uidMap))
	return len(fields) == 3 && fields[2] == "1"
}

// requireNew returns an error if an interface other than loopback is up, because the namespace is then
// not new. A forged or inherited parentVar must never make this program change a real host's
// addresses.
func requireNew() error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("cannot list network interfaces: %w", err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("interface %s is up: this is not a new network namespace (was %s set by hand?); refusing to continue", i.Name, parentVar)
		}
	}
	return nil
}

// reexec runs this program again inside new namespaces, waits for it and returns its
// exit code.
func reexec(attributes *syscall.SysProcAttr, env []string) (int, error) {
	here, err := current()
	if err != nil {
		return 1, err
	}
	// The kernel kills the child when the thread that started it ends (Pdeathsig), so
	// this thread must live as long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(append(os.Environ(), env...), parentVar+"="+here)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attributes
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err = runForwarding(cmd)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if exit.ExitCode() < 0 {
			return 1, nil
		}
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, namespaceError(attributes, err)
	}
	return 0, nil
}

// namespaceError returns an error that names the missing privilege, after the kernel has refused the
// namespaces of attributes.
func namespaceError(attributes *syscall.SysProcAttr, err error) error {
	if attributes.Cloneflags&syscall.CLONE_NEWUSER != 0 {
		return fmt.Errorf("cannot make a user namespace (a chroot, seccomp, AppArmor or /proc/sys/user/max_user_namespaces can forbid it): %w", err)
	}
	return fmt.Errorf("cannot make a network namespace: run as root with CAP_SYS_ADMIN: %w", err)
}

// runForwarding runs cmd and ignores SIGINT and SIGTERM itself, so that cmd decides
// how to end: the terminal sends SIGINT to both processes, and runForwarding passes
// SIGTERM on.
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
				_ = cmd.Process.Signal(s) // an error means that it has exited already
			}
		}
	}
}

// configureLoopback brings lo up and adds the metadata address to it.
func configureLoopback() error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"address", "replace", MetadataAddress + "/32", "dev", "lo"},
	} {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("cannot set up the network namespace (this needs CAP_NET_ADMIN): ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
