package injectflags_test

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/injectflags"
)

func parse(t *testing.T, args ...string) (inject.Config, error) {
	t.Helper()
	var f injectflags.Flags
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.AddFlags(flags)
	if err := flags.Parse(append([]string{"--proxy-image=proxy:1", "--proxy-init-image=init:1"}, args...)); err != nil {
		t.Fatal(err)
	}
	return f.Config()
}

func TestConfig(t *testing.T) {
	c, err := parse(t, "--tenant-id=22222222-2222-4222-8222-222222222222", "--cloud=azureChinaCloud", "--proxy-log-level=debug",
		`--proxy-resources={"limits":{"memory":"96Mi"}}`,
		"--token-endpoint-annotation-suffix=binding", "--token-endpoint-audience=api://binding", "--token-endpoint-proxy=https://binding.example.test",
		"--token-endpoint-trust-bundle-signer=example.test/signer", "--token-endpoint-trust-bundle-labels=*")
	if err != nil {
		t.Fatal(err)
	}
	if c.AuthorityHost != "https://login.chinacloudapi.cn/" || c.Audience != inject.DefaultAudience || c.LogLevel != "debug" ||
		c.ProxyResources.Limits.Memory().String() != "96Mi" || c.ProxyInitResources != nil ||
		c.TokenEndpoint.AnnotationSuffix != "binding" || c.TokenEndpoint.ClusterTrustBundleLabels == nil {
		t.Errorf("%+v", c)
	}
	if c, err := parse(t, "--authority-host=https://login.example.test/", "--cloud=other"); err != nil || c.AuthorityHost != "https://login.example.test/" || c.TokenEndpoint != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestErrors wants one line that names the flag.
func TestErrors(t *testing.T) {
	for _, flag := range []string{
		"--proxy-image=", "--proxy-init-image=", "--tenant-id=a b", "--tenant-id=junk", "--cloud=Elsewhere", "--authority-host=http://login.example.test",
		"--proxy-log-level=loud", `--proxy-resources={"limit":{}}`, `--proxy-init-resources={"limits":{"memory":"much"}}`,
		"--token-endpoint-annotation-suffix=!",
	} {
		name, _, _ := strings.Cut(flag, "=")
		if _, err := parse(t, flag); err == nil || !strings.HasPrefix(err.Error(), name+" ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", flag, err)
		}
	}
	if _, err := parse(t, "--token-endpoint-proxy=https://binding.example.test"); err == nil || !strings.HasPrefix(err.Error(), "--token-endpoint-annotation-suffix: ") {
		t.Errorf("%v", err)
	}
}

// TestErrorsOfTwo: where flags do not go together, each is named.
func TestErrorsOfTwo(t *testing.T) {
	binding := []string{"--token-endpoint-annotation-suffix=binding", "--token-endpoint-audience=api://binding", "--token-endpoint-proxy=https://binding.example.test"}
	for want, args := range map[string][]string{
		"--token-endpoint-ca-config-map and --token-endpoint-trust-bundle-signer: say one of them": {
			"--token-endpoint-ca-config-map=ca", "--token-endpoint-trust-bundle-signer=example.test/signer"},
		"--token-endpoint-ca-data and --token-endpoint-ca-config-map: say one of them": {
			"--token-endpoint-ca-data=x", "--token-endpoint-ca-config-map=ca"},
		"--token-endpoint-trust-bundle-labels without --token-endpoint-trust-bundle-signer: say whose bundles": {
			"--token-endpoint-trust-bundle-labels=a=b"},
		`--token-endpoint-ca-config-map "TokenEndpoint.CAData": no name of a config map`: {
			"--token-endpoint-ca-config-map=TokenEndpoint.CAData"},
	} {
		if _, err := parse(t, append(args, binding...)...); err == nil || err.Error() != want {
			t.Errorf("%v: %v, want %s", args, err, want)
		}
	}
}
