package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const containerdSocket = "/run/containerd/containerd.sock"

// startNode starts the scheduler, and a node with this project's images.
func (c *Cluster) startNode(ctx context.Context, settings Config) error {
	if err := hideMachine(c.state); err != nil {
		return err
	}
	if err := makeCgroup(os.Getenv(cgroupVar)); err != nil {
		return err
	}
	if settings.Measure {
		if err := raisePriority(os.Getenv(cgroupVar)); err != nil {
			return err
		}
	}
	_, err := startDaemon(c.logs, "kube-scheduler", kubernetesProgram("kube-scheduler"),
		"--kubeconfig="+c.pki.dir+"/admin.kubeconfig", "--leader-elect=false", "--bind-address=127.0.0.1")
	if err != nil {
		return err
	}
	if err := c.startContainerd(ctx); err != nil {
		return err
	}
	if err := c.loadImages(); err != nil {
		return err
	}
	return c.startKubelet(ctx, settings)
}

func (c *Cluster) startContainerd(ctx context.Context) error {
	config := filepath.Join(c.state, "containerd.toml")
	if err := os.WriteFile(config, []byte(c.containerdConfig()), 0o644); err != nil {
		return err
	}
	if err := c.prepareCNI(); err != nil {
		return err
	}
	return c.runContainerd(ctx, "containerd")
}

func (c *Cluster) runContainerd(ctx context.Context, log string) (err error) {
	c.containerd, err = startDaemon(c.logs, log, "containerd", "--config="+filepath.Join(c.state, "containerd.toml"))
	if err != nil {
		return err
	}
	return c.containerd.wait(ctx, func(context.Context) error {
		_, err := command("ctr", "--address="+containerdSocket, "version")
		return err
	})
}

// RestartContainerd kills containerd and starts it again; the containers continue to run.
func (c *Cluster) RestartContainerd(ctx context.Context) error {
	if err := c.containerd.process.Kill(); err != nil {
		return err
	}
	<-c.containerd.exited
	return c.runContainerd(ctx, "containerd-again")
}

func (c *Cluster) startKubelet(ctx context.Context, settings Config) error {
	config := filepath.Join(c.state, "kubelet.yaml")
	text := c.kubeletConfig()
	if !settings.Measure {
		text += shortIntervals
	}
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	kubeconfig, err := c.pki.kubeconfig("kubelet", "https://"+apiServerAddress)
	if err != nil {
		return err
	}
	c.kubeletArgs = []string{"--config=" + config, "--kubeconfig=" + kubeconfig, "--hostname-override=" + NodeName, "--node-ip=" + NodeAddress}
	return c.runKubelet(ctx, "kubelet")
}

func (c *Cluster) runKubelet(ctx context.Context, log string) (err error) {
	if c.kubelet, err = startDaemon(c.logs, log, kubernetesProgram("kubelet"), c.kubeletArgs...); err != nil {
		return err
	}
	return c.kubelet.wait(ctx, c.nodeReady)
}

// RestartKubelet restarts the kubelet; the containers continue to run. The kubelet loses
// its cache of the pods' service account tokens, and requests new ones.
func (c *Cluster) RestartKubelet(ctx context.Context) error {
	if err := c.kubelet.process.Kill(); err != nil {
		return err
	}
	<-c.kubelet.exited
	return c.runKubelet(ctx, "kubelet-again")
}

// Containerd runs ctr, containerd's client, in the namespace of the kubelet's containers.
func (c *Cluster) Containerd(args ...string) (string, error) {
	return command("ctr", append([]string{"--address=" + containerdSocket, "--namespace=k8s.io"}, args...)...)
}

// nodeReady is a condition for wait: the node is ready and has no taints.
func (c *Cluster) nodeReady(ctx context.Context) error {
	node, err := c.Client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if len(node.Spec.Taints) > 0 {
		return fmt.Errorf("the node has taints: %v", node.Spec.Taints)
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
			return nil
		}
	}
	return fmt.Errorf("the node is not ready: %+v", node.Status.Conditions)
}
