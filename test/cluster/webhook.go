package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// Process is a webhook that runs as a process beside the API server, for clusters without
// a node.
type Process struct {
	daemon *daemon
	// Namespace is the namespace of the chart's objects.
	Namespace string
}

// StartWebhook applies the chart in the namespace, and runs the program with the arguments
// and the service account of the chart's Deployment. The program uses port and the next
// two.
func (c *Cluster) StartWebhook(ctx context.Context, program, namespace string, port int, values ...string) (*Process, error) {
	deployment, err := c.applyChart(ctx, namespace, values...)
	if err != nil {
		return nil, err
	}
	if err := c.exposeProcess(ctx, deployment, port); err != nil {
		return nil, err
	}
	return c.runWebhook(ctx, program, deployment, port)
}

// InstallChart applies the chart in the namespace, with the images on the node, and waits
// until the pods of the webhook, and of the CNI plugin's DaemonSet if there is one, are ready.
// It can be called again with other values.
func (c *Cluster) InstallChart(ctx context.Context, namespace string, values ...string) error {
	values = append([]string{"images.registry=localhost", "images.webhook.tag=" + Version, "images.proxy.tag=" + Version, "images.proxyInit.tag=" + Version, "images.cni.tag=" + Version,
		"tenantID=" + c.Entra.TenantID(), "authorityHost=" + c.Entra.AuthorityHost()}, values...)
	applied, err := c.applyChart(ctx, namespace, values...)
	if err != nil {
		return err
	}
	err = Wait(ctx, func(ctx context.Context) error {
		d, err := c.Client.AppsV1().Deployments(namespace).Get(ctx, applied.Name, metav1.GetOptions{})
		if err == nil && (d.Status.ObservedGeneration < d.Generation || d.Status.ReadyReplicas < *d.Spec.Replicas) {
			err = fmt.Errorf("the webhook has %d of %d replicas ready", d.Status.ReadyReplicas, *d.Spec.Replicas)
		}
		return err
	})
	if err != nil {
		return err
	}
	return Wait(ctx, func(ctx context.Context) error { return c.daemonSetsReady(ctx, namespace) })
}

// daemonSetsReady is a condition for Wait: all pods of the namespace's DaemonSets are of their
// current versions, and ready.
func (c *Cluster) daemonSetsReady(ctx context.Context, namespace string) error {
	all, err := c.Client.AppsV1().DaemonSets(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range all.Items {
		s := d.Status
		if s.ObservedGeneration < d.Generation || s.DesiredNumberScheduled == 0 || s.UpdatedNumberScheduled < s.DesiredNumberScheduled || s.NumberReady < s.DesiredNumberScheduled {
			return fmt.Errorf("DaemonSet %s has %d of %d pods ready, %d updated", d.Name, s.NumberReady, s.DesiredNumberScheduled, s.UpdatedNumberScheduled)
		}
	}
	return nil
}

// applyChart renders and applies the chart, and returns its Deployment.
func (c *Cluster) applyChart(ctx context.Context, namespace string, values ...string) (*appsv1.Deployment, error) {
	objects, err := c.chart(namespace, append(values, "namespace.create=true"))
	if err != nil {
		return nil, err
	}
	var deployment *appsv1.Deployment
	for _, object := range inOrder(objects) {
		if _, err := c.Apply(ctx, object, false); err != nil {
			return nil, err
		}
		if object.GetKind() == "Deployment" {
			deployment = new(appsv1.Deployment)
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, deployment); err != nil {
				return nil, err
			}
		}
	}
	if deployment == nil {
		return nil, fmt.Errorf("the chart for namespace %s has no Deployment", namespace)
	}
	return deployment, nil
}

// inOrder returns objects with the namespaces first, since the other objects need them.
func inOrder(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	var first, rest []*unstructured.Unstructured
	for _, object := range objects {
		if object.GetKind() == "Namespace" {
			first = append(first, object)
		} else {
			rest = append(rest, object)
		}
	}
	return append(first, rest...)
}

// exposeProcess makes the process the endpoint of the webhook's service.
func (c *Cluster) exposeProcess(ctx context.Context, deployment *appsv1.Deployment, port int) error {
	name, portName, portNumber, ready := deployment.Name, "webhook", int32(port), true
	_, err := c.Client.DiscoveryV1().EndpointSlices(deployment.Namespace).Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name + "-process", Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{NodeAddress}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}},
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &portNumber}},
	}, metav1.CreateOptions{})
	return err
}

func (c *Cluster) runWebhook(ctx context.Context, program string, deployment *appsv1.Deployment, port int) (*Process, error) {
	template := deployment.Spec.Template.Spec
	kubeconfig, err := c.tokenKubeconfig(ctx, deployment.Namespace, template.ServiceAccountName)
	if err != nil {
		return nil, err
	}
	certs := filepath.Join(c.state, "webhook-"+deployment.Namespace)
	if err := os.MkdirAll(certs, 0o700); err != nil {
		return nil, err
	}
	args := template.Containers[0].Args
	if slices.Contains(args, "--cert-mode=mounted") {
		if err := c.mountCertificate(certs, deployment); err != nil {
			return nil, err
		}
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$(POD_NAMESPACE)", deployment.Namespace)
	}
	health := fmt.Sprintf("%s:%d", NodeAddress, port+1)
	args = append(args, "--kubeconfig="+kubeconfig, "--cert-dir="+certs, "--health-address="+health,
		fmt.Sprintf("--address=%s:%d", NodeAddress, port), fmt.Sprintf("--metrics-address=%s:%d", NodeAddress, port+2))
	d, err := startDaemon(c.logs, "webhook-"+deployment.Namespace, program, args...)
	if err != nil {
		return nil, err
	}
	if err := d.wait(ctx, healthy("http://"+health+"/readyz")); err != nil {
		return nil, err
	}
	return &Process{daemon: d, Namespace: deployment.Namespace}, nil
}

// mountCertificate writes a certificate of the cluster's authority to dir, as cert-manager
// and a Secret volume would.
func (c *Cluster) mountCertificate(dir string, deployment *appsv1.Deployment) error {
	name := deployment.Name + "." + deployment.Namespace + ".svc"
	if err := c.pki.issue(name, pkix.Name{CommonName: name}, name); err != nil {
		return err
	}
	return errors.Join(os.Rename(c.pki.certFile(name), filepath.Join(dir, "tls.crt")), os.Rename(c.pki.keyFile(name), filepath.Join(dir, "tls.key")))
}

// Authority returns the certificate of the cluster's authority, in PEM.
func (c *Cluster) Authority() (string, error) {
	authority, err := os.ReadFile(c.pki.caFile())
	return string(authority), err
}

// Log returns the webhook's log.
func (p *Process) Log() (string, error) {
	log, err := os.ReadFile(p.daemon.logFile)
	return string(log), err
}

// ErrExited means that the program had already exited.
var ErrExited = os.ErrProcessDone

// stopTimeout is Kubernetes' default terminationGracePeriodSeconds.
const stopTimeout = 30 * time.Second

// Stop sends SIGTERM to the webhook, as a kubelet does, and waits until it exits. If it has
// already exited, Stop returns [ErrExited].
func (p *Process) Stop() error {
	select {
	case <-p.daemon.exited:
		return ErrExited
	default:
	}
	if err := p.daemon.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.daemon.exited:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("%s did not exit within %s of SIGTERM; its log ends with\n%s", p.daemon.name, stopTimeout, p.daemon.tail())
	}
}

// tokenKubeconfig writes a kubeconfig that authenticates as a service account, and returns
// its path.
func (c *Cluster) tokenKubeconfig(ctx context.Context, namespace, account string) (string, error) {
	token, err := c.Client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	path := filepath.Join(c.pki.dir, namespace+"-"+account+".kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: test
  cluster: {server: "https://%s", certificate-authority: %q}
users:
- name: test
  user: {token: %q}
contexts:
- name: test
  context: {cluster: test, user: test}
current-context: test
`, apiServerAddress, c.pki.caFile(), token.Status.Token)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// ServingCertificate issues a certificate of the cluster's authority for a server at
// NodeAddress, and for further hosts.
func (c *Cluster) ServingCertificate(name string, hosts ...string) (tls.Certificate, error) {
	if err := c.pki.issue(name, pkix.Name{CommonName: name}, append([]string{NodeAddress}, hosts...)...); err != nil {
		return tls.Certificate{}, err
	}
	return tls.LoadX509KeyPair(c.pki.certFile(name), c.pki.keyFile(name))
}
