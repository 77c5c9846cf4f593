package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"

	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/netns"
	"imds-oidc-proxy/test/kit/pod"
)

// Config configures a cluster. The zero value is a cluster without nodes.
type Config struct {
	// Node adds a node that runs pods: scheduler, kubelet, containerd and runc.
	Node bool

	// Bare leaves out the controllers, which would create thousands of objects for those of a measurement.
	Bare bool

	// Measure is for measurements: it leaves the kubelet's intervals at their defaults, and
	// gives the pods priority over the machine's other processes. Otherwise the intervals
	// are short, to keep tests fast.
	Measure bool

	// Prepare does the work of a suite that needs the machine's network, such as building
	// programs into dir. It runs in the process outside and returns environment variables
	// for the process inside. It may be nil.
	Prepare func(dir string) (env []string, err error)
}

const (
	// NodeName is the name of the node. NodeAddress is the address of the node, the API
	// server and the fake Entra. RFC 5737 reserves it for documentation.
	NodeName    = "node"
	NodeAddress = "198.51.100.10"

	// entraPort is the port of the fake Entra. It is fixed, so that values of a chart can
	// contain it.
	entraPort = "8443"

	// serviceAddress is the address of the service kubernetes, the first of serviceRange.
	// Pods use it. It is an address of the node, because there is no kube-proxy.
	serviceAddress = "10.96.0.1"
	serviceRange   = "10.96.0.0/24"

	// Issuer is the claim iss of service account tokens. The host does not exist; the fake
	// Entra connects to the API server instead.
	Issuer = "https://cluster.example.test"

	// Version is the tag of this project's images.
	Version = "v0.0.0-test"
)

// Cluster is a running cluster. It stops when the process exits.
type Cluster struct {
	// REST has the credentials of a cluster administrator, which Client and Dynamic use.
	REST    *rest.Config
	Client  kubernetes.Interface
	Dynamic dynamic.Interface

	// Entra is the fake Entra, which pods can reach.
	Entra *entra.Server
	// Decoy listens at the address of the node's IMDS.
	Decoy *pod.Decoy

	mapper *restmapper.DeferredDiscoveryRESTMapper

	dir   string // for all files; the process outside sees it too
	state string // a tmpfs in dir, which is removed when the process exits
	logs  string // in state
	pki   *pki

	kubelet     *daemon
	kubeletArgs []string
	containerd  *daemon
}

func newCluster(dir string) *Cluster {
	return &Cluster{dir: dir, state: filepath.Join(dir, "state"), logs: filepath.Join(dir, "state/logs")}
}

// start starts the cluster. After an error, some daemons may run until the process exits.
func (c *Cluster) start(ctx context.Context, config Config) (err error) {
	if err := c.prepareMachine(); err != nil {
		return err
	}
	if c.pki, err = newPKI(filepath.Join(c.state, "pki")); err != nil {
		return err
	}
	if err := c.startAPIServer(ctx, config.Bare); err != nil {
		return err
	}
	if c.Decoy, err = pod.StartDecoy(); err != nil {
		return err
	}
	c.Entra, err = entra.Start(entra.Config{Listen: net.JoinHostPort(NodeAddress, entraPort), IssuerClient: c.issuerClient()})
	if err != nil || !config.Node {
		return err
	}
	return c.startNode(ctx, config)
}

// prepareMachine sets up mounts and network of the namespaces as the daemons expect them.
func (c *Cluster) prepareMachine() error {
	if err := mountState(c.state); err != nil {
		return err
	}
	if err := os.MkdirAll(c.logs, 0o755); err != nil {
		return err
	}
	if err := netns.KeepSettings(c.state, keptSettings...); err != nil {
		return err
	}
	// The daemons require an address and a default route. Both belong to a bridge without
	// ports, so that no packet leaves the namespace.
	for _, args := range [][]string{
		{"link", "add", "uplink", "type", "bridge"},
		{"address", "add", NodeAddress + "/24", "dev", "uplink"},
		{"link", "set", "uplink", "up"},
		{"address", "add", serviceAddress + "/32", "dev", "lo"},
		{"route", "add", "default", "via", "198.51.100.1"},
	} {
		if _, err := command("ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// connect creates the clients from the administrator's kubeconfig.
func (c *Cluster) connect(kubeconfig string) (err error) {
	if c.REST, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return err
	}
	c.REST.QPS, c.REST.Burst = -1, -1 // no rate limit: the tests are the server's only clients
	if c.Client, err = kubernetes.NewForConfig(c.REST); err != nil {
		return err
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.Client.Discovery()))
	c.Dynamic, err = dynamic.NewForConfig(c.REST)
	return err
}

// issuerClient returns the client with which the fake Entra reads the issuer's discovery
// document and keys. It connects to the API server instead of the issuer's host, and has no
// credentials, as Entra has none.
func (c *Cluster) issuerClient() *http.Client {
	var dialer net.Dialer
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.pki.pool()},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "cluster.example.test:443" {
				return nil, fmt.Errorf("%s: no such issuer", address)
			}
			return dialer.DialContext(ctx, network, apiServerAddress)
		},
	}}
}
