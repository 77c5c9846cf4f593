// Package cluster runs a real Kubernetes for tests: etcd, kube-apiserver and
// kube-controller-manager, and on demand a node with scheduler, kubelet, containerd
// and runc. All of it is built from source or unpacked from Debian's packages, and
// lives in namespaces that end with the test: see docs/adr/0043.
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
// discovery document and keys, and a decoy of the node's IMDS stands on the metadata
// address, so that a request that gets past the proxy is seen.
//
// It is a module of its own, so that client-go stays out of the one that ships.
// Kubernetes itself is built in yet another, ./kubernetes, by tools/kubernetes.
//
// # Security considerations
//
// It runs as root, and containers with it. The network is a namespace with no way
// out; what the kubelet would change of the whole machine it sees private copies of.
// What is left is cgroups, below one directory for each run, which is removed.
package cluster
