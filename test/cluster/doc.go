// Package cluster runs a real Kubernetes for tests: etcd, kube-apiserver and
// kube-controller-manager, and on demand a node with scheduler, kubelet, containerd
// and runc. Kubernetes is built from source; the other programs are unpacked from
// Debian's packages. All of them run in namespaces that end with the test: see
// docs/adr/0043.
//
//	var running *cluster.Cluster
//
//	func TestMain(m *testing.M) {
//		os.Exit(cluster.RunTests("node", m, cluster.Config{Node: true}, func(_ context.Context, c *cluster.Cluster) error {
//			running = c
//			return nil
//		}))
//	}
//
// A stand-in for Entra verifies federated tokens against the API server's own
// discovery document and keys. A decoy of the node's IMDS listens at the metadata
// address, so that a test notices a request that bypasses the proxy.
//
// The package is in a Go module of its own, so that client-go is not in the main
// module. tools/kubernetes builds Kubernetes in another module, ./kubernetes.
//
// # Security considerations
//
// The package and its containers run as root. The network namespace has no route to
// the outside. The kubelet gets private copies of the kernel settings that it changes.
// Its cgroups are not private: they are below one directory for each run, which is
// removed at the end.
package cluster
