package netns

import (
	"fmt"
	"os"
	"syscall"
)

// RunMachineTests is [RunTests] for tests that start daemons, mount file systems
// and write settings of the kernel: mounts, process IDs, host name and System V IPC
// are private too. The process inside is the first of its process IDs, so that the
// kernel ends everything below it when it ends, or is killed; its mounts go with it.
//
// Not private: the clock, the kernel's own settings outside of the network (see
// [KeepSettings]), and cgroups, which the caller removes.
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
		return 1, fmt.Errorf("process %d is not the first of its namespace (%s is set by hand?); refusing to go on", pid, parentVar)
	}
	if err := privateMounts(); err != nil {
		return 1, err
	}
	_, code, err := Enter(false)
	return code, err
}

// privateMounts keeps every later mount from the machine, and shows the processes
// of the new namespace alone.
func privateMounts() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	return nil
}

// KeepSettings puts private copies over files of /proc/sys, so that what a daemon
// writes there never reaches the kernel, whose settings are the whole machine's. A
// file that the kernel does not have is left out.
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
			return fmt.Errorf("cannot put a private file over %s: %w", path, err)
		}
	}
	return nil
}

// requireOwnMounts refuses to mount anything in the namespace that was left.
func requireOwnMounts() error {
	if !Inside() || os.Getpid() != 1 {
		return fmt.Errorf("not in a namespace of its own: refusing to mount over the machine's files")
	}
	return nil
}
