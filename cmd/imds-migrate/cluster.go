package main

import (
	"cmp"
	"fmt"
	"strings"

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

func (c *clusterFlags) namespace() string { return c.overrides.Context.Namespace }

// connect returns a client for the cluster, and the cluster's name in the kubeconfig.
func (c *clusterFlags) connect() (client survey.Creator, name string, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &c.overrides)
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", noCluster(err)
	}
	if raw, err := loader.RawConfig(); err == nil {
		if current := raw.Contexts[cmp.Or(c.overrides.CurrentContext, raw.CurrentContext)]; current != nil {
			name = current.Cluster
		}
	}
	config.UserAgent = "imds-migrate/" + strings.ReplaceAll(version, " ", "_")
	if client, err = survey.NewClient(config); err != nil {
		return nil, "", noCluster(err)
	}
	return client, name, nil
}

// noCluster returns the error for a kubeconfig that cannot be used.
func noCluster(err error) error {
	reason := strings.Join(strings.Fields(err.Error()), " ")
	if clientcmd.IsEmptyConfig(err) {
		reason = "no kubeconfig was found"
	}
	return fmt.Errorf("no cluster: %s: set --kubeconfig and --context", reason)
}
