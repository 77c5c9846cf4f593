package cni

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The network namespaces that this program must not change: its own, which the runtime has too,
// and that of process 1. One of them is the node's, where the redirect would apply to the node and
// to all pods with hostNetwork.
const (
	ownNamespace      = "/proc/self/ns/net"
	process1Namespace = "/proc/1/ns/net"
)

// openNamespace opens the network namespace at a path of the runtime. It refuses the node's. The
// checks use the open file: what the path names may change at any time.
func openNamespace(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the pod's network namespace %q (CNI_NETNS): %w", path, err)
	}
	if err := isPods(fd, path); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// isPods returns an error unless the file is a network namespace that may be a pod's.
func isPods(fd int, path string) error {
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%q (CNI_NETNS) is not a network namespace", path)
	}
	var pods unix.Stat_t
	if err := unix.Fstat(fd, &pods); err != nil {
		return fmt.Errorf("cannot identify the pod's network namespace %q: %w", path, err)
	}
	for _, other := range []string{ownNamespace, process1Namespace} {
		var nodes unix.Stat_t
		err := unix.Stat(other, &nodes)
		if err != nil && other == process1Namespace {
			continue // a runtime in a container may not read it
		}
		if err != nil {
			return fmt.Errorf("cannot tell the pod's network namespace from the node's: %s: %w", other, err)
		}
		if pods.Dev == nodes.Dev && pods.Ino == nodes.Ino {
			return fmt.Errorf("%q (CNI_NETNS) is the node's network namespace (%s), not a pod's", path, other)
		}
	}
	return nil
}
