package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// pauseImage is the image of the sandbox container, which keeps a pod's namespaces.
const pauseImage = "localhost/pause:test"

// containerdConfig returns containerd's configuration. It does not use systemd or AppArmor,
// nor lower an OOM score, because the tests may run in a container, where these are not
// possible. Images are stored in the tmpfs of the test.
func (c *Cluster) containerdConfig() string {
	return fmt.Sprintf(`version = 2
root = %q
state = "/run/containerd"
oom_score = 0
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`, filepath.Join(c.state, "containerd"), containerdSocket, filepath.Join(c.state, "opt"), pauseImage, c.CNIPrograms(), c.CNIConfig())
}

// CNIPrograms returns the directory of the node's CNI plugins, and CNIConfig that of their
// configuration. Both are private to the cluster.
func (c *Cluster) CNIPrograms() string { return filepath.Join(c.state, "cni-bin") }

// CNIConfig returns the directory of the node's CNI configuration.
func (c *Cluster) CNIConfig() string { return filepath.Join(c.state, "cni") }

// prepareCNI makes both directories, with plugins from Debian's unpacked package. The first
// entry of PATH is the /usr/bin of the unpacked packages; see prepare.
func (c *Cluster) prepareCNI() error {
	bin, _, _ := strings.Cut(os.Getenv("PATH"), ":")
	for _, dir := range []string{c.CNIPrograms(), c.CNIConfig()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, plugin := range []string{"bridge", "host-local", "loopback"} {
		program, err := os.ReadFile(filepath.Join(filepath.Dir(bin), "lib/cni", plugin))
		if err == nil {
			err = os.WriteFile(filepath.Join(c.CNIPrograms(), plugin), program, 0o755)
		}
		if err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(c.CNIConfig(), CNIList), []byte(cniConfig), 0o644)
}

// CNIList is the name of the file with cniConfig.
const CNIList = "pods.conflist"

// cniConfig gives each pod an address on a bridge of the node. It does not masquerade,
// because no traffic leaves the network namespace.
const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": true,
    "ipam": {
      "type": "host-local",
      "ranges": [[{"subnet": "10.244.0.0/24"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
`

// kubeletConfig returns the kubelet's configuration. Cgroups are below the cgroup of the
// run. Pods are not evicted when the machine's disk is full. The kubelet changes no kernel
// settings where it has an option for that.
func (c *Cluster) kubeletConfig() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %s
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %q}
authorization: {mode: Webhook}
tlsCertFile: %q
tlsPrivateKeyFile: %q
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupRoot: /%s
failSwapOn: false
failCgroupV1: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
resolvConf: ""
volumePluginDir: %q
evictionHard: {memory.available: 0%%, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%}
imageGCHighThresholdPercent: 100
`, NodeAddress, c.pki.caFile(), c.pki.certFile("kubelet"), c.pki.keyFile("kubelet"), containerdSocket,
		os.Getenv(cgroupVar), filepath.Join(c.state, "volume-plugins"))
}

// shortIntervals is the part of the kubelet's configuration that keeps tests fast.
const shortIntervals = `syncFrequency: 1s
nodeStatusUpdateFrequency: 2s
crashLoopBackOff: {maxContainerRestartPeriod: 2s}
featureGates: {KubeletCrashLoopBackOffMax: true}
`
