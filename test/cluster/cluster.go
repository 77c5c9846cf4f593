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

// Config says what cluster to start. The zero value is one without nodes.
type Config struct {
	// Node adds a node that runs pods: scheduler, kubelet, containerd and runc.
	Node bool

	// Prepare does what a suite needs of the world outside, such as building
	// programs, and returns the environment for the process inside. Nil: nothing.
	Prepare func(dir string) (env []string, err error)
}

const (
	// NodeName is the node's, and NodeAddress its address: the API server's and the
	// stand-in Entra's too. RFC 5737 keeps it for documentation.
	NodeName    = "node"
	NodeAddress = "198.51.100.10"

	// entraPort is known beforehand, so that a chart's values can say it.
	entraPort = "8443"

	// serviceAddress is that of the service kubernetes, the first of its range. It
	// stands on the node itself, since there is no kube-proxy, and pods ask it.
	serviceAddress = "10.96.0.1"
	serviceRange   = "10.96.0.0/24"

	// Issuer is the iss of service-account tokens. The name is nobody's: the
	// stand-in Entra is told to look for it at the API server.
	Issuer = "https://cluster.example.test"

	// Version is what the images of this project are tagged with.
	Version = "v0.0.0-test"
)

// Cluster is a running one. It ends with the process.
type Cluster struct {
	// REST is an administrator's access, Client and Dynamic clients with it.
	REST    *rest.Config
	Client  kubernetes.Interface
	Dynamic dynamic.Interface

	// Entra is the stand-in, at an address that pods reach.
	Entra *entra.Server
	// Decoy stands where the node's IMDS would be.
	Decoy *pod.Decoy

	mapper *restmapper.DeferredDiscoveryRESTMapper

	dir   string // for everything, and shared with the process outside
	state string // gone with the process: a file system in memory
	logs  string
	pki   *pki

	kubelet     *daemon
	kubeletArgs []string
}

func newCluster(dir string) *Cluster {
	return &Cluster{dir: dir, state: filepath.Join(dir, "state"), logs: filepath.Join(dir, "state/logs")}
}

// start brings everything up. What ran when an error came ends with the process.
func (c *Cluster) start(ctx context.Context, config Config) (err error) {
	if err := c.prepareMachine(); err != nil {
		return err
	}
	if c.pki, err = newPKI(filepath.Join(c.state, "pki")); err != nil {
		return err
	}
	if err := c.startAPIServer(ctx); err != nil {
		return err
	}
	if c.Decoy, err = pod.StartDecoy(); err != nil {
		return err
	}
	c.Entra, err = entra.Start(entra.Config{Listen: net.JoinHostPort(NodeAddress, entraPort), IssuerClient: c.issuerClient()})
	if err != nil || !config.Node {
		return err
	}
	return c.startNode(ctx)
}

// prepareMachine makes the namespaces such as the daemons expect a machine to be.
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
	// A bridge without ports carries the node's address and default route: programs
	// look for both, and nothing ever leaves by it.
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

// connect makes the clients of the administrator's kubeconfig.
func (c *Cluster) connect(kubeconfig string) (err error) {
	if c.REST, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return err
	}
	c.REST.QPS, c.REST.Burst = -1, -1 // nobody else asks this server
	if c.Client, err = kubernetes.NewForConfig(c.REST); err != nil {
		return err
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.Client.Discovery()))
	c.Dynamic, err = dynamic.NewForConfig(c.REST)
	return err
}

// issuerClient finds the issuer's name at the API server, as the DNS would, and logs
// in as nobody: Entra has no credentials of the cluster.
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
