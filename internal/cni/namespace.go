package cni

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// The network namespaces that this program must not change: its own and that of process 1. One of
// them is the node's, where the redirect would apply to the node and to all pods with hostNetwork.
var notPods = []string{"/proc/self/ns/net", "/proc/1/ns/net"}

// namespace is an open network namespace of a pod.
type namespace struct{ fd int }

func (n namespace) close() { _ = unix.Close(n.fd) } // the file descriptor ends with the process anyway

// openNamespace opens the namespace at a path of the runtime. It refuses the node's. The checks use
// the open file: what the path names may change at any time.
func openNamespace(path string) (n namespace, err error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return n, fmt.Errorf("cannot open the pod's network namespace %q (CNI_NETNS): %w", path, err)
	}
	n = namespace{fd}
	if err := n.isPods(path); err != nil {
		n.close()
		return namespace{-1}, err
	}
	return n, nil
}

// isPods returns an error unless the file is a network namespace that may be a pod's.
func (n namespace) isPods(path string) error {
	if kind, err := unix.IoctlRetInt(n.fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("%q (CNI_NETNS) is not a network namespace", path)
	}
	var pods unix.Stat_t
	if err := unix.Fstat(n.fd, &pods); err != nil {
		return fmt.Errorf("cannot identify the pod's network namespace %q: %w", path, err)
	}
	for _, other := range notPods {
		var nodes unix.Stat_t
		if err := unix.Stat(other, &nodes); err != nil {
			return fmt.Errorf("cannot tell the pod's network namespace from the node's: %s: %w", other, err)
		}
		if pods.Dev == nodes.Dev && pods.Ino == nodes.Ino {
			return fmt.Errorf("%q (CNI_NETNS) is the node's network namespace (%s), not a pod's", path, other)
		}
	}
	return nil
}
