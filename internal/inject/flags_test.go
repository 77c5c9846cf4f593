package inject_test

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/inject"
)

func parseFlags(args ...string) (inject.Config, error) {
	var c inject.Config
	flags := flagenv.New("test", nil)
	c.AddFlags(flags)
	if err := flags.Parse(append([]string{"--proxy-image=proxy:1", "--proxy-init-image=init:1"}, args...), nil); err != nil {
		return c, err
	}
	return c, c.Validate()
}

func TestFlags(t *testing.T) {
	c, err := parseFlags("--tenant-id=22222222-2222-4222-8222-222222222222", "--cloud=azureChinaCloud", "--proxy-log-level=debug",
		`--proxy-resources={"limits":{"memory":"96Mi"}}`,
		"--token-endpoint-annotation-suffix=binding", "--token-endpoint-audience=api://binding", "--token-endpoint-proxy=https://binding.example.test",
		"--token-endpoint-trust-bundle-signer=example.test/signer", "--token-endpoint-trust-bundle-labels=*")
	if err != nil {
		t.Fatal(err)
	}
	if c.Audience != azure.Audience || c.LogLevel != "debug" ||
		c.ProxyResources.Limits.Memory().String() != "96Mi" || c.ProxyInitResources != nil ||
		c.TokenEndpoint.AnnotationSuffix != "binding" || c.TokenEndpoint.ClusterTrustBundleLabels == nil {
		t.Errorf("%+v", c)
	}
	if c, err := parseFlags(`--proxy-resources={"requests":{"cpu":"0","memory":"96Mi"},"limits":{"memory":"96Mi"}}`,
		"--token-endpoint-annotation-suffix=binding", "--token-endpoint-audience=api://binding", "--token-endpoint-proxy=https://binding.example.test",
		"--token-endpoint-ca-data=-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"); err != nil || c.TokenEndpoint.CAData == "" {
		t.Errorf("values at their bounds: %+v, %v", c, err)
	}
	if c, err := parseFlags("--tenant-id=", "--proxy-log-level=", "--proxy-resources=", "--token-endpoint-proxy="); err != nil || c.TokenEndpoint != (inject.TokenEndpoint{}) {
		t.Errorf("empty values: %+v, %v", c, err)
	}
}

// TestAuthorityHostOfFlags checks that --authority-host takes precedence over --cloud, also if
// the cloud is unknown.
func TestAuthorityHostOfFlags(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{nil, "https://login.microsoftonline.com/"},
		{[]string{"--cloud=azureChinaCloud"}, "https://login.chinacloudapi.cn/"},
		{[]string{"--cloud=AZUREUSGOVERNMENTCLOUD"}, "https://login.microsoftonline.us/"},
		{[]string{"--cloud=other", "--authority-host=https://login.example.test"}, "https://login.example.test/"},
		{[]string{"--authority-host=https://login.example.test/", "--cloud=AzureCloud"}, "https://login.example.test/"},
	} {
		c, err := parseFlags(test.args...)
		if err != nil {
			t.Fatal(err)
		}
		pod := mutate(t, injected(), account(), withTenant(c))
		for _, container := range []*corev1.Container{find(pod.Spec.InitContainers, inject.ProxyName), &pod.Spec.Containers[0]} {
			if got := value(container, azure.EnvAuthorityHost); got != test.want {
				t.Errorf("%q: got %s in %s, want %s", test.args, got, container.Name, test.want)
			}
		}
	}
}

func withTenant(c inject.Config) inject.Config {
	c.TenantID = tenantID
	return c
}

// TestImages checks which names of images the flags accept: those that Docker's grammar of
// references has.
func TestImages(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0a", 32)
	for value, valid := range map[string]bool{
		"p": true, "p:1": true, "team/p:v1.0.0": true, "registry.example.test/p" + digest: true, "localhost:5000/a/b__c:v1" + digest: true,
		"192.0.2.1:5000/p": true, "Registry.example.test/p:V1": true,
		"https://registry.example.test/p:v1": false, "docker://p": false, "oci://p:1": false, "//registry.example.test/p": false,
		"registry.example.test/": false, "registry.example.test//p": false, "p:": false, "p@": false, "p:v1:v2": false, "p@sha256": false,
		"registry.example.test:port/p": false, "registry.example.test/Team/p": false, "-p": false, " p": false, "p\n": false,
		strings.Repeat("p", 513): false,
	} {
		for _, flag := range []string{"--proxy-image=", "--proxy-init-image="} {
			if _, err := parseFlags(flag + value); (err == nil) != valid {
				t.Errorf("%s%s: %v, want valid: %t", flag, value, err, valid)
			}
		}
	}
}

// TestFlagErrors checks that an error is one line that names the flag, and that it does not repeat
// a URL, which may contain a password.
func TestFlagErrors(t *testing.T) {
	binding := []string{"--token-endpoint-annotation-suffix=binding", "--token-endpoint-audience=api://binding", "--token-endpoint-proxy=https://binding.example.test"}
	for _, test := range []struct {
		want string
		args []string
	}{
		{"--proxy-image is required, for example ", []string{"--proxy-image="}},
		{"--proxy-image and --proxy-init-image are required, for example ", []string{"--proxy-image=", "--proxy-init-image="}},
		{`--proxy-image "a b": must be an image`, []string{"--proxy-image=a b"}},
		{`--proxy-image "https://r.example.test/p": must be an image without a scheme, such as `, []string{"--proxy-image=https://r.example.test/p"}},
		{`--proxy-init-image "a b": must be an image`, []string{"--proxy-init-image=a b"}},
		{`--tenant-id "a b": must be a tenant's ID`, []string{"--tenant-id=a b"}},
		{`--tenant-id "../x": must be a tenant's ID`, []string{"--tenant-id=../x"}},
		{`--tenant-id "junk": must be a tenant's ID`, []string{"--tenant-id=junk"}},
		{`--cloud "Elsewhere": must be AzurePublicCloud, `, []string{"--cloud=Elsewhere"}},
		{"--authority-host must be an https URL", []string{"--authority-host=http://login.example.test"}},
		{"--authority-host must not contain a user or password", []string{"--authority-host=https://u:c4n4ry@login.example.test"}},
		{`--proxy-log-level "loud": must be error, warn, info or debug`, []string{"--proxy-log-level=loud"}},
		{`--proxy-resources "{\"limit\":{}}": must be JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}: unknown field "limit"`,
			[]string{`--proxy-resources={"limit":{}}`}},
		{`--proxy-resources "{\"Limits\":{}}": must be JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}: unknown field "Limits"`,
			[]string{`--proxy-resources={"Limits":{}}`}},
		{`--proxy-resources "{\"limits\":{},\"limits\":{}}": must be JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}: duplicate field "limits"`,
			[]string{`--proxy-resources={"limits":{},"limits":{}}`}},
		{`--proxy-resources "{\"limits\":{\"cpu\":1,\"cpu\":2}}": must be JSON with requests and limits, such as {"limits": {"memory": "128Mi"}}: duplicate field "limits.cpu"`,
			[]string{`--proxy-resources={"limits":{"cpu":1,"cpu":2}}`}},
		{`--proxy-resources "{} {}": must be JSON`, []string{"--proxy-resources={} {}"}},
		{`--proxy-resources "null": must be JSON`, []string{"--proxy-resources=null"}},
		{`--proxy-resources "limits: {memory: 96Mi}": must be JSON`, []string{"--proxy-resources=limits: {memory: 96Mi}"}},
		{`--proxy-resources "{limits: {memory: 96Mi}}": must be JSON`, []string{"--proxy-resources={limits: {memory: 96Mi}}"}},
		{`--proxy-resources "{\"requests\":{\"cpu\":\"-1\"}}": cpu must not be negative`, []string{`--proxy-resources={"requests":{"cpu":"-1"}}`}},
		{"--proxy-init-resources ", []string{`--proxy-init-resources={"limits":{"memory":"much"}}`}},
		{`--token-endpoint-annotation-suffix "!": must be the end of an annotation's name`, []string{"--token-endpoint-annotation-suffix=!"}},
		{`--token-endpoint-annotation-suffix "a b": must be`, []string{"--token-endpoint-annotation-suffix=a b"}},
		{"--token-endpoint-annotation-suffix and --token-endpoint-audience are required", []string{"--token-endpoint-proxy=https://binding.example.test"}},
		{"--token-endpoint-ca-data must be certificates in PEM", append(binding, "--token-endpoint-ca-data=x")},
		{`--token-endpoint-ca-config-map "A B": must be the name of a ConfigMap`, append(binding, "--token-endpoint-ca-config-map=A B")},
		{`--token-endpoint-trust-bundle-labels "a is": must be a label selector`, append(binding, "--token-endpoint-trust-bundle-labels=a is")},
		{`--proxy-resources "{\"requests\":{\"cpu\":\"2\"},\"limits\":{\"cpu\":\"1999m\"}}": the limit of cpu must be at least its request, 2`,
			[]string{`--proxy-resources={"requests":{"cpu":"2"},"limits":{"cpu":"1999m"}}`}},
		{"--token-endpoint-ca-data must be certificates in PEM", // without the private key
			append(binding, "--token-endpoint-ca-data=-----BEGIN PRIVATE KEY-----\nc4n4ry==\n-----END PRIVATE KEY-----\n")},
		// Flags that must not be set together.
		{"--token-endpoint-ca-config-map and --token-endpoint-trust-bundle-signer must not be set together",
			append(binding, "--token-endpoint-ca-config-map=ca", "--token-endpoint-trust-bundle-signer=example.test/signer")},
		{"--token-endpoint-trust-bundle-signer is required with --token-endpoint-trust-bundle-labels", append(binding, "--token-endpoint-trust-bundle-labels=a=b")},
	} {
		_, err := parseFlags(test.args...)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "c4n4ry") {
			t.Errorf("%q: got %v, want %s", test.args, err, test.want)
		}
		if _, ok := errors.AsType[*flagenv.Error](err); !ok {
			t.Errorf("%q: got %T, want a *flagenv.Error", test.args, err)
		}
	}
}
