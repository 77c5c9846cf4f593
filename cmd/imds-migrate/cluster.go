package main

import (
	"cmp"
	"fmt"
	"strings"

	_ "k8s.io/client-go/plugin/pkg/client/auth" // credentials of kubeconfigs, as kubectl reads them
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/survey"
)

// clusterFlags are kubectl's flags for a cluster.
type clusterFlags struct {
	kubeconfig string
	overrides  clientcmd.ConfigOverrides
}

// rareFlags are flags of kubectl that work and that the help text does not list.
var rareFlags = []string{
	clientcmd.FlagCertFile, clientcmd.FlagKeyFile, clientcmd.FlagCAFile, clientcmd.FlagImpersonateUID, clientcmd.FlagTLSServerName,
	clientcmd.FlagProxyURL, clientcmd.FlagDisableCompression, clientcmd.FlagUsername, clientcmd.FlagPassword, clientcmd.FlagInsecure, clientcmd.FlagBearerToken,
}

func (c *clusterFlags) addFlags(set *flagenv.Set) {
	set.Group("Cluster")
	set.StringVar(&c.kubeconfig, "kubeconfig", "", "`path` of the kubeconfig")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	names.ClusterOverrideFlags.APIServer.ShortName = "s" // as in kubectl
	clientcmd.BindOverrideFlags(&c.overrides, set.FlagSet, names)
	for _, name := range rareFlags {
		set.Lookup(name).Hidden = true
	}
}

// flags returns the flags of the command line that choose a cluster.
func (c *clusterFlags) flags() []string {
	var flags []string
	for _, f := range [][2]string{{"kubeconfig", c.kubeconfig}, {clientcmd.FlagContext, c.overrides.CurrentContext}, {clientcmd.FlagAPIServer, c.overrides.ClusterInfo.Server}} {
		if f[1] != "" {
			flags = append(flags, "--"+f[0]+"="+f[1])
		}
	}
	return flags
}

func (c *clusterFlags) namespace() string { return c.overrides.Context.Namespace }

// connection is a client for a cluster.
type connection struct {
	survey.Creator
	config *rest.Config
	name   string // of the cluster in the kubeconfig
	// namespace is that of the context, or default.
	namespace string
}

// connect returns a client for the cluster.
func (c *clusterFlags) connect() (*connection, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &c.overrides)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, noCluster(err)
	}
	found := &connection{config: config}
	if raw, err := loader.RawConfig(); err == nil {
		if current := raw.Contexts[cmp.Or(c.overrides.CurrentContext, raw.CurrentContext)]; current != nil {
			found.name = current.Cluster
		}
	}
	config.UserAgent = "imds-migrate/" + strings.ReplaceAll(version, " ", "_")
	if found.namespace, _, err = loader.Namespace(); err == nil {
		found.Creator, err = survey.NewClient(config)
	}
	if err != nil {
		return nil, noCluster(err)
	}
	return found, nil
}

// noCluster returns the error for a kubeconfig that cannot be used.
func noCluster(err error) error {
	reason := strings.Join(strings.Fields(err.Error()), " ")
	if clientcmd.IsEmptyConfig(err) {
		reason = "no kubeconfig was found"
	}
	return fmt.Errorf("no cluster: %s: set --kubeconfig and --context", reason)
}
