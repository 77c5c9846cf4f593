// Package injectflags is how a command takes what holds for all pods alike: flags
// become an inject.Config. The webhook and imds-migrate share it, so that the same
// words do the same to a pod in both.
//
//	var injection injectflags.Flags
//	injection.AddFlags(flags)
//	…                                  // flags.Parse
//	config, err := injection.Config()  // the error names the flag to change
package injectflags

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/inject"
)

// Flags are the values as they are written. The zero value is what AddFlags begins
// with, the cloud aside.
type Flags struct {
	// Named is how an error names a flag, for commands that take it from elsewhere
	// too. Nil: --FLAG.
	Named func(flag string) string

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

// AddFlags defines the flags.
func (f *Flags) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&f.proxyImage, "proxy-image", "", "`image` of the proxy, by digest where that is known; needed")
	flags.StringVar(&f.proxyInitImage, "proxy-init-image", "", "`image` that sets up the redirect; needed")
	flags.StringVar(&f.tenantID, "tenant-id", "", "Entra `tenant` of service accounts that name none")
	flags.StringVar(&f.cloud, "cloud", "AzurePublicCloud", "AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud: where Entra is")
	flags.StringVar(&f.authorityHost, "authority-host", "", "`URL` of Entra, in place of that of --cloud")
	flags.StringVar(&f.audience, "audience", inject.DefaultAudience, "audience of the projected token")
	flags.StringVar(&f.logLevel, "proxy-log-level", "", "log `level` of injected proxies; empty means their default")
	flags.StringVar(&f.proxyResources, "proxy-resources", "", "requests and limits of injected proxies, in `JSON`; empty means those of deploy/components")
	flags.StringVar(&f.proxyInitResources, "proxy-init-resources", "", "the same `JSON` for the init container")
	f.endpoint.addFlags(flags)
}

func (e *endpointFlags) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&e.suffix, "token-endpoint-annotation-suffix", "",
		"identity bindings: pods annotated "+inject.TokenEndpointPrefix+"`SUFFIX`=true get their tokens from --token-endpoint-proxy; empty means there are none")
	flags.StringVar(&e.audience, "token-endpoint-audience", "", "identity bindings: audience of the projected token")
	flags.StringVar(&e.proxy, "token-endpoint-proxy", "", "identity bindings: `URL` of the token endpoint")
	flags.StringVar(&e.sniName, "token-endpoint-sni-name", "", "identity bindings: TLS server `name` of the token endpoint")
	flags.StringVar(&e.caData, "token-endpoint-ca-data", "", "identity bindings: certificate authorities of the token endpoint, in `PEM`")
	flags.StringVar(&e.caConfigMap, "token-endpoint-ca-config-map", "", "identity bindings: ConfigMap of the pod's namespace with ca.crt")
	flags.StringVar(&e.bundleSigner, "token-endpoint-trust-bundle-signer", "", "identity bindings: `signer` of the ClusterTrustBundles to trust")
	flags.StringVar(&e.bundleLabels, "token-endpoint-trust-bundle-labels", "", "identity bindings: label `selector` among that signer's bundles; * means all")
}

// Config is the flags as internal/inject takes them, checked.
func (f *Flags) Config() (inject.Config, error) {
	c := inject.Config{
		ProxyImage: f.proxyImage, ProxyInitImage: f.proxyInitImage,
		TenantID: f.tenantID, AuthorityHost: f.authorityHost,
		Audience: f.audience, LogLevel: f.logLevel,
	}
	var err error
	if c.AuthorityHost == "" {
		if c.AuthorityHost, err = authorityHost(f.cloud); err != nil {
			return c, f.errorf("cloud", f.cloud, err)
		}
	}
	if c.ProxyResources, err = parseResources(f.proxyResources); err != nil {
		return c, f.errorf("proxy-resources", f.proxyResources, err)
	}
	if c.ProxyInitResources, err = parseResources(f.proxyInitResources); err != nil {
		return c, f.errorf("proxy-init-resources", f.proxyInitResources, err)
	}
	if c.TokenEndpoint, err = f.tokenEndpoint(); err != nil {
		return c, err
	}
	return c, f.naming(c.Validate())
}

func (f *Flags) tokenEndpoint() (*inject.TokenEndpoint, error) {
	e := f.endpoint
	if e == (endpointFlags{}) {
		return nil, nil
	}
	if e.suffix == "" {
		return nil, fmt.Errorf("%s: without it the other --token-endpoint flags mean nothing", f.named("token-endpoint-annotation-suffix"))
	}
	labels, err := parseLabels(e.bundleLabels)
	if err != nil {
		return nil, f.errorf("token-endpoint-trust-bundle-labels", e.bundleLabels, err)
	}
	return &inject.TokenEndpoint{
		AnnotationSuffix: e.suffix, Audience: e.audience, TokenProxy: e.proxy, SNIName: e.sniName,
		CAData: e.caData, CAConfigMap: e.caConfigMap,
		ClusterTrustBundleSigner: e.bundleSigner, ClusterTrustBundleLabels: labels,
	}, nil
}

func (f *Flags) named(flag string) string {
	if f.Named == nil {
		return "--" + flag
	}
	return f.Named(flag)
}

func (f *Flags) errorf(flag, value string, err error) error {
	return fmt.Errorf("%s %q: %w", f.named(flag), value, err)
}

// fieldFlags are the flags of inject.Config's fields.
var fieldFlags = []struct{ field, flag string }{
	{"TokenEndpoint.ClusterTrustBundleSigner", "token-endpoint-trust-bundle-signer"},
	{"TokenEndpoint.ClusterTrustBundleLabels", "token-endpoint-trust-bundle-labels"},
	{"TokenEndpoint.AnnotationSuffix", "token-endpoint-annotation-suffix"},
	{"TokenEndpoint.Audience", "token-endpoint-audience"},
	{"TokenEndpoint.TokenProxy", "token-endpoint-proxy"},
	{"TokenEndpoint.SNIName", "token-endpoint-sni-name"},
	{"TokenEndpoint.CAData", "token-endpoint-ca-data"},
	{"TokenEndpoint.CAConfigMap", "token-endpoint-ca-config-map"},
	{"ProxyInitImage", "proxy-init-image"},
	{"ProxyImage", "proxy-image"},
	{"ProxyInitResources", "proxy-init-resources"},
	{"ProxyResources", "proxy-resources"},
	{"TenantID", "tenant-id"},
	{"AuthorityHost", "authority-host"},
	{"Audience", "audience"},
	{"LogLevel", "proxy-log-level"},
}

// naming puts flags in the place of the fields that internal/inject names: words before
// what is wrong with them. What follows may hold a value of any words.
func (f *Flags) naming(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	end := strings.IndexAny(text, `":`)
	words := strings.Split(text[:max(end, 0)], " ")
	for i, word := range words {
		for _, field := range fieldFlags {
			if word == field.field {
				words[i] = f.named(field.flag)
			}
		}
	}
	return errors.New(strings.Join(words, " ") + text[max(end, 0):])
}
