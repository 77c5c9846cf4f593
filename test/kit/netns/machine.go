package netns

import (
	"fmt"
	"os"
	"syscall"
)

// RunMachineTests is like [RunTests], for tests that start daemons, mount file systems and write
// kernel settings. The process inside also has its own namespaces for mounts, process IDs, host name
// and System V IPC. It has process ID 1 there, so that when it exits, the kernel kills all processes
// that it started and removes its mounts.
//
// The process inside shares the clock, kernel settings outside of the network (see [KeepSettings]),
// and cgroups with the machine. The caller removes the cgroups.
func RunMachineTests(name string, m interface{ Run() int }, prepare func(dir string) (env []string, err error)) int {
	return runTests(name, m, prepare, enterMachine)
}

func enterMachine(env []string) (int, error) {
	if !Inside() {
		return reexec(&syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		}, env)
	}
	if pid := os.Getpid(); pid != 1 {
		return 1, fmt.Errorf("process ID %d is not 1: this is not a new namespace (was %s set by hand?); refusing to continue", pid, parentVar)
	}
	if err := privateMounts(); err != nil {
		return 1, err
	}
	_, code, err := Enter(false)
	return code, err
}

// privateMounts makes all mounts private, so that later mounts do not appear on the
// machine, and mounts a /proc that shows only the processes of the new namespace.
func privateMounts() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	return nil
}

// KeepSettings mounts a private copy over each of paths, which are files of /proc/sys. A daemon then
// writes to the copy and does not change the kernel's setting, which applies to the whole machine.
// KeepSettings skips files that the kernel does not have. The copies are in dir.
func KeepSettings(dir string, paths ...string) error {
	if err := requireOwnMounts(); err != nil {
		return err
	}
	for i, path := range paths {
		content, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		private := fmt.Sprintf("%s/setting-%d", dir, i)
		if err := os.WriteFile(private, content, 0o644); err != nil {
			return err
		}
		if err := syscall.Mount(private, path, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("cannot mount a private file over %s: %w", path, err)
		}
	}
	return nil
}

// requireOwnMounts returns an error outside of the mount namespace of [RunMachineTests].
func requireOwnMounts() error {
	if !Inside() || os.Getpid() != 1 {
		return fmt.Errorf("not in a new mount namespace: refusing to mount over the machine's files")
	}
	return nil
}
