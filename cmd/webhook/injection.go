package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/inject"
)

// injectionFlags are what holds for all pods alike, as the flags say it.
type injectionFlags struct {
	proxyImage, proxyInitImage         string
	tenantID, cloud, authorityHost     string
	audience, logLevel                 string
	proxyResources, proxyInitResources string

	endpoint endpointFlags
}

// endpointFlags are those of identity bindings.
type endpointFlags struct {
	suffix, audience, proxy, sniName string
	caData, caConfigMap              string
	bundleSigner, bundleLabels       string
}

func (i *injectionFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&i.proxyImage, "proxy-image", "", "image of the proxy, by digest where that is known; needed")
	flags.StringVar(&i.proxyInitImage, "proxy-init-image", "", "image that sets up the redirect; needed")
	flags.StringVar(&i.tenantID, "tenant-id", "", "Entra tenant of service accounts that name none")
	flags.StringVar(&i.cloud, "cloud", "AzurePublicCloud", "AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud: where Entra is")
	flags.StringVar(&i.authorityHost, "authority-host", "", "URL of Entra, in place of that of --cloud")
	flags.StringVar(&i.audience, "audience", inject.DefaultAudience, "audience of the projected token")
	flags.StringVar(&i.logLevel, "proxy-log-level", "", "log level of injected proxies; empty means their default")
	flags.StringVar(&i.proxyResources, "proxy-resources", "", "requests and limits of injected proxies, in JSON; empty means those of deploy/components")
	flags.StringVar(&i.proxyInitResources, "proxy-init-resources", "", "the same for the init container")
	i.endpoint.addFlags(flags)
}

func (e *endpointFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&e.suffix, "token-endpoint-annotation-suffix", "",
		"identity bindings: pods annotated "+inject.TokenEndpointPrefix+"SUFFIX=true get their tokens from --token-endpoint-proxy; empty means there are none")
	flags.StringVar(&e.audience, "token-endpoint-audience", "", "identity bindings: audience of the projected token")
	flags.StringVar(&e.proxy, "token-endpoint-proxy", "", "identity bindings: URL of the token endpoint")
	flags.StringVar(&e.sniName, "token-endpoint-sni-name", "", "identity bindings: TLS server name of the token endpoint")
	flags.StringVar(&e.caData, "token-endpoint-ca-data", "", "identity bindings: certificate authorities of the token endpoint, in PEM")
	flags.StringVar(&e.caConfigMap, "token-endpoint-ca-config-map", "", "identity bindings: ConfigMap of the pod's namespace with ca.crt")
	flags.StringVar(&e.bundleSigner, "token-endpoint-trust-bundle-signer", "", "identity bindings: signer of the ClusterTrustBundles to trust")
	flags.StringVar(&e.bundleLabels, "token-endpoint-trust-bundle-labels", "", "identity bindings: label selector among that signer's bundles; * means all")
}

// config is the flags as internal/inject takes them, checked.
func (i *injectionFlags) config() (inject.Config, error) {
	c := inject.Config{
		ProxyImage: i.proxyImage, ProxyInitImage: i.proxyInitImage,
		TenantID: i.tenantID, AuthorityHost: i.authorityHost,
		Audience: i.audience, LogLevel: i.logLevel,
	}
	var err error
	if c.AuthorityHost == "" {
		if c.AuthorityHost, err = authorityHost(i.cloud); err != nil {
			return c, flagErrorf("cloud", i.cloud, "%w", err)
		}
	}
	if c.ProxyResources, err = parseResources(i.proxyResources); err != nil {
		return c, flagErrorf("proxy-resources", i.proxyResources, "%w", err)
	}
	if c.ProxyInitResources, err = parseResources(i.proxyInitResources); err != nil {
		return c, flagErrorf("proxy-init-resources", i.proxyInitResources, "%w", err)
	}
	if c.TokenEndpoint, err = i.endpoint.config(); err != nil {
		return c, err
	}
	return c, namingFlags(c.Validate())
}

func (e *endpointFlags) config() (*inject.TokenEndpoint, error) {
	if *e == (endpointFlags{}) {
		return nil, nil
	}
	if e.suffix == "" {
		return nil, errors.New("--token-endpoint-annotation-suffix (WEBHOOK_TOKEN_ENDPOINT_ANNOTATION_SUFFIX): without it the other --token-endpoint flags mean nothing")
	}
	labels, err := parseLabels(e.bundleLabels)
	if err != nil {
		return nil, flagErrorf("token-endpoint-trust-bundle-labels", e.bundleLabels, "%w", err)
	}
	return &inject.TokenEndpoint{
		AnnotationSuffix: e.suffix, Audience: e.audience, TokenProxy: e.proxy, SNIName: e.sniName,
		CAData: e.caData, CAConfigMap: e.caConfigMap,
		ClusterTrustBundleSigner: e.bundleSigner, ClusterTrustBundleLabels: labels,
	}, nil
}

// fieldFlags are the flags of inject.Config's fields, the longer names first.
var fieldFlags = []struct{ field, flag string }{
	{"TokenEndpoint.ClusterTrustBundleSigner", "token-endpoint-trust-bundle-signer"},
	{"TokenEndpoint.ClusterTrustBundleLabels", "token-endpoint-trust-bundle-labels"},
	{"TokenEndpoint.AnnotationSuffix", "token-endpoint-annotation-suffix"},
	{"TokenEndpoint.Audience", "token-endpoint-audience"},
	{"TokenEndpoint.TokenProxy", "token-endpoint-proxy"},
	{"TokenEndpoint.SNIName", "token-endpoint-sni-name"},
	{"TokenEndpoint.CAData", "token-endpoint-ca-data"},
	{"TokenEndpoint.CAConfigMap", "token-endpoint-ca-config-map"},
	{"TokenEndpoint", "token-endpoint-…"},
	{"ProxyInitImage", "proxy-init-image"},
	{"ProxyImage", "proxy-image"},
	{"ProxyInitResources", "proxy-init-resources"},
	{"ProxyResources", "proxy-resources"},
	{"TenantID", "tenant-id"},
	{"AuthorityHost", "authority-host"},
	{"Audience", "audience"},
	{"LogLevel", "proxy-log-level"},
}

// namingFlags puts the flag in the place of the field that internal/inject names.
func namingFlags(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	for _, f := range fieldFlags {
		if rest, found := strings.CutPrefix(text, f.field); found {
			return fmt.Errorf("--%s%s", f.flag, rest)
		}
	}
	return err
}
