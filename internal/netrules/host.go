package netrules

import "os"

// initialOnly is a setting that exists only in the kernel's initial network namespace, since
// it applies to all namespaces. Every other namespace has a net/core directory without it. The
// kernel resolves the path in the reader's network namespace, so this works also in a
// container that sees only its own processes in /proc.
const initialOnly = "/proc/sys/net/core/netdev_max_backlog"

// initialName is the name of the initial network namespace since Linux 6.17, which fixed its
// number (0xEFFFFFF9). In earlier versions the number depended on the kernel.
const initialName = "net:[4026531833]"

// kubernetesChains is the prefix of the chains of kubelet and kube-proxy, which they install
// only in the node's own network namespace. They detect a node that is itself a container (kind,
// k3d). There may be none, so their absence does not prove that this is a pod.
const kubernetesChains = "KUBE-"

// initialNamespace returns why this namespace is the kernel's initial one, or "" if it is another
// one. The initial namespace belongs to a node, or to a pod that is alone in a virtual machine.
func initialNamespace() string {
	if _, err := os.Stat(initialOnly); err == nil {
		return "it is the kernel's initial namespace (" + initialOnly + " exists)"
	}
	if name, err := os.Readlink("/proc/self/ns/net"); err == nil && name == initialName {
		return "it is the kernel's initial namespace (" + name + ")"
	}
	return ""
}

func hostNetworkError(reason string) *Error {
	return &Error{
		Kind:   HostNetwork,
		Cause:  "refusing to change the rules of a node's own network namespace: " + reason,
		Remedy: "do not inject the proxy into pods with hostNetwork: true; if this is a pod after all, for example one that is alone in a virtual machine, use --force",
	}
}
