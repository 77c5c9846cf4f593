package cluster

import (
	"fmt"
	"os"
	"syscall"
)

// keptSettings are what the kubelet would set for the whole machine.
var keptSettings = []string{
	"/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops",
	"/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/kernel/keys/root_maxbytes",
	"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom",
}

// mountState mounts a file system in memory at dir: it goes with the namespace, also
// when the test is killed, and spares etcd the disk.
func mountState(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return mount("tmpfs", dir, "tmpfs", "mode=0755")
}

// hideMachine gives the daemons /run, /var/log and /var/lib of their own: not all
// their paths can be configured. What the machine has in /var/lib can still be read.
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
