package netrules

import (
	"os"
)

// initialOnly is a setting that the kernel shows in its initial network
// namespace alone, since it governs all of them; every other namespace has a
// net/core directory without it. Being read through the reader's namespace, it
// tells also inside a container that sees only its own /proc/1.
const initialOnly = "/proc/sys/net/core/netdev_max_backlog"

// initialNamespace is the initial network namespace's name since Linux 6.17,
// which fixed the number (0xEFFFFFF9). Before, it depended on the kernel.
const initialNamespace = "net:[4026531833]"

// hostNetwork says why this looks like a node's own network namespace. Empty: it
// does not.
//
// The initial namespace is recognised on any kernel. That is the node, except
// in a pod that has a virtual machine to itself. A node that is a container
// itself (kind, k3d) is recognised by what kubelet or kube-proxy left there; it
// may have left nothing, so that silence is no proof of being in a pod.
func hostNetwork(found []candidate) string {
	for _, c := range found {
		if c.kubernetes != "" {
			return "it holds the chain " + c.kubernetes + " of a kubelet or kube-proxy"
		}
	}
	if _, err := os.Stat(initialOnly); err == nil {
		return "it is the kernel's initial one (" + initialOnly + " exists)"
	}
	if name, err := os.Readlink("/proc/self/ns/net"); err == nil && name == initialNamespace {
		return "it is the kernel's initial one (" + name + ")"
	}
	return ""
}
