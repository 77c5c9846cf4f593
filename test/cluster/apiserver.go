package cluster

import (
	"context"
	"crypto/x509/pkix"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiServerAddress is the address of the API server. Its port is that of the service
// kubernetes, so that it also answers at serviceAddress.
const apiServerAddress = NodeAddress + ":443"

// startAPIServer starts etcd, the API server and, unless bare is set, the controllers.
func (c *Cluster) startAPIServer(ctx context.Context, bare bool) error {
	if err := c.issueCertificates(); err != nil {
		return err
	}
	const etcdURL, etcdPeerURL = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	_, err := startDaemon(c.logs, "etcd", "etcd", "--data-dir="+filepath.Join(c.state, "etcd"),
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls="+etcdPeerURL, "--initial-advertise-peer-urls="+etcdPeerURL, "--initial-cluster=default="+etcdPeerURL)
	if err != nil {
		return err
	}
	server, err := startDaemon(c.logs, "kube-apiserver", kubernetesProgram("kube-apiserver"), c.apiServerFlags(etcdURL)...)
	if err != nil {
		return err
	}
	kubeconfig, err := c.pki.kubeconfig("admin", "https://"+apiServerAddress)
	if err != nil {
		return err
	}
	if err := c.connect(kubeconfig); err != nil {
		return err
	}
	if err := server.wait(ctx, c.serving); err != nil {
		return err
	}
	if bare {
		return c.publishIssuer(ctx)
	}
	_, err = startDaemon(c.logs, "kube-controller-manager", kubernetesProgram("kube-controller-manager"),
		"--kubeconfig="+kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1",
		"--root-ca-file="+c.pki.caFile(), "--service-account-private-key-file="+c.pki.keyFile("service-accounts"))
	if err != nil {
		return err
	}
	return c.publishIssuer(ctx)
}

// Kubectl returns the path of kubectl.
func Kubectl() string { return kubernetesProgram("kubectl") }

func kubernetesProgram(name string) string { return filepath.Join(os.Getenv(kubernetesVar), name) }

func (c *Cluster) issueCertificates() error {
	for _, certificate := range []struct {
		name    string
		subject pkix.Name
		hosts   []string
	}{
		{"admin", pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}, nil},
		{"kube-apiserver", pkix.Name{CommonName: "kube-apiserver"},
			[]string{NodeAddress, serviceAddress, "127.0.0.1", "cluster.example.test", "kubernetes.default.svc"}},
		{"kubelet", pkix.Name{CommonName: "system:node:" + NodeName, Organization: []string{"system:nodes"}}, []string{NodeAddress, NodeName}},
	} {
		if err := c.pki.issue(certificate.name, certificate.subject, certificate.hosts...); err != nil {
			return err
		}
	}
	return c.pki.signingKey("service-accounts")
}

// apiServerFlags returns the API server's arguments. They disable no default admission
// plug-in: tests depend on PodSecurity, ServiceAccount and MutatingAdmissionWebhook.
func (c *Cluster) apiServerFlags(etcdURL string) []string {
	p := c.pki
	return []string{
		"--etcd-servers=" + etcdURL,
		"--advertise-address=" + NodeAddress, "--secure-port=443",
		"--service-cluster-ip-range=" + serviceRange,
		"--tls-cert-file=" + p.certFile("kube-apiserver"), "--tls-private-key-file=" + p.keyFile("kube-apiserver"),
		"--client-ca-file=" + p.caFile(),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--service-account-issuer=" + Issuer, "--service-account-jwks-uri=" + Issuer + "/openid/v1/jwks",
		"--service-account-key-file=" + p.keyFile("service-accounts"),
		"--service-account-signing-key-file=" + p.keyFile("service-accounts"),
		// By default, the API server extends the lifetime of the kubelet's tokens to a year.
		"--service-account-extend-token-expiration=false",
		"--kubelet-client-certificate=" + p.certFile("admin"), "--kubelet-client-key=" + p.keyFile("admin"),
		"--kubelet-certificate-authority=" + p.caFile(), "--kubelet-preferred-address-types=InternalIP",
		// Identity bindings can read their certificate authorities from a ClusterTrustBundle.
		"--feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=true",
		"--runtime-config=certificates.k8s.io/v1beta1/clustertrustbundles=true",
		// Call webhooks at the endpoints of their service: there is no kube-proxy.
		"--enable-aggregator-routing=true",
	}
}

// serving is a condition for wait: the API server is ready, and namespace default exists.
func (c *Cluster) serving(ctx context.Context) error {
	if _, err := c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx); err != nil {
		return err
	}
	_, err := c.Client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceDefault, metav1.GetOptions{})
	return err
}

// publishIssuer gives anonymous clients read access to the discovery document and the keys,
// which Entra needs to verify federated tokens.
func (c *Cluster) publishIssuer(ctx context.Context) error {
	_, err := c.Client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "public-issuer-discovery"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "system:service-account-issuer-discovery"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:unauthenticated"}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("cannot publish the issuer: %w", err)
	}
	return nil
}

// NewNamespace creates a namespace with a generated name and the labels, and waits until
// pods can be created in it.
func (c *Cluster) NewNamespace(ctx context.Context, labels map[string]string) (string, error) {
	namespace, err := c.Client.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-", Labels: labels}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return namespace.Name, Wait(ctx, func(ctx context.Context) error {
		if _, err := c.Client.CoreV1().ConfigMaps(namespace.Name).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := c.Client.CoreV1().ServiceAccounts(namespace.Name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}
