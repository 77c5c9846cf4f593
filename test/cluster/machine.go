package cluster

import (
	"fmt"
	"os"
	"syscall"
)

// keptSettings are the kernel settings that the kubelet would change for the whole
// machine; see [netns.KeepSettings].
var keptSettings = []string{
	"/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops",
	"/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/kernel/keys/root_maxbytes",
	"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom",
}

// mountState mounts a tmpfs at dir. The kernel removes it with the mount namespace, even
// if the test is killed, and etcd does not wait for a disk.
func mountState(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return mount("tmpfs", dir, "tmpfs", "mode=0755")
}

// hideMachine mounts separate file systems at /run, /var/log and /var/lib, because some
// of the daemons' paths there cannot be configured. The machine's files in /var/lib can
// still be read, through an overlay.
func hideMachine(state string) error {
	for _, dir := range []string{"/run", "/var/log"} {
		if err := mount("tmpfs", dir, "tmpfs", "mode=0755"); err != nil {
			return err
		}
	}
	upper, work := state+"/var-lib", state+"/var-lib-work"
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return mount("overlay", "/var/lib", "overlay", "lowerdir=/var/lib,upperdir="+upper+",workdir="+work)
}

func mount(source, target, kind, options string) error {
	if err := syscall.Mount(source, target, kind, 0, options); err != nil {
		return fmt.Errorf("cannot mount a %s at %s: %w", kind, target, err)
	}
	return nil
}
