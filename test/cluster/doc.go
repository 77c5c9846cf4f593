// Package cluster runs a real Kubernetes for tests: etcd, kube-apiserver,
// kube-controller-manager and, on demand, a scheduler and a node with kubelet, containerd
// and runc. All programs are built from source or unpacked from Debian's packages. They
// run in Linux namespaces that exist as long as the test: see docs/adr/0043.
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
// A fake Entra verifies federated tokens with the API server's discovery document and
// keys. A decoy of the node's IMDS listens at the metadata address and records requests,
// so that tests see each request that bypasses the proxy.
//
// The package is a separate module, so that client-go is no dependency of the module that
// ships. tools/kubernetes builds Kubernetes in a third module, ./kubernetes.
//
// # Security considerations
//
// The cluster and its containers run as root. Their network namespace has no connection
// to any other network. The kubelet writes to private copies of the kernel settings and
// directories that it would change for the whole machine. Only cgroups are shared with
// the machine: each run has one directory of them, which is removed afterwards.
package cluster
