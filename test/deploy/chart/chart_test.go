//go:build chart

package chart

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var update = flag.Bool("update", false, "write the output of Helm")

const (
	repository = "../../.."
	chart      = "charts/imds-oidc-proxy"
	// kubeVersion is the Kubernetes version that Helm renders for, which is that of test/cluster.
	kubeVersion = "v1.36.3"
)

// cases are the files of values in testdata, and the files with the rendered manifests.
var cases = []struct{ name, golden string }{
	{"least", "test/deploy/chart/testdata/least.yaml"},
	{"cert-manager", "test/deploy/chart/testdata/cert-manager.yaml"},
	{"mounted", "test/deploy/chart/testdata/mounted.yaml"},
	{"everything", "test/deploy/chart/testdata/everything.yaml"},
	{"manifest", "deploy/webhook/webhook.yaml"},
}

// binary returns the path of Helm. The go command builds it if necessary.
var binary = sync.OnceValues(func() (string, error) {
	cmd := exec.Command("go", "tool", "-modfile=tools/helm/go.mod", "-n", "helm")
	cmd.Dir = repository
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
})

func helm(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = repository
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func render(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return helm(t, append([]string{"template", "imds-oidc-proxy", chart, "--namespace=imds-oidc-proxy", "--kube-version=" + kubeVersion}, args...)...)
}

func values(name string) string {
	return "--values=test/deploy/chart/testdata/" + name + ".values.yaml"
}

func TestLint(t *testing.T) {
	for _, c := range cases {
		if out, errs, err := helm(t, "lint", "--strict", chart, "--kube-version="+kubeVersion, values(c.name)); err != nil {
			t.Errorf("%s: %v\n%s%s", c.name, err, out, errs)
		}
	}
}

// TestTemplate compares the rendered manifests with the files. make chart writes them.
func TestTemplate(t *testing.T) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			out, errs, err := render(t, values(c.name))
			if err != nil {
				t.Fatalf("%v\n%s", err, errs)
			}
			got := []byte(header(c.name) + out)
			golden := filepath.Join(repository, c.golden)
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s is stale: run make chart, and review the difference", c.golden)
			}
		})
	}
}

// header returns the comment at the start of deploy/webhook/webhook.yaml.
func header(name string) string {
	if name != "manifest" {
		return ""
	}
	return `# Rendered by Helm from charts/imds-oidc-proxy and test/deploy/chart/testdata/manifest.values.yaml.
# Replace registry.example.test by your registry, then run
#
#   kubectl apply -f deploy/webhook/webhook.yaml
#
# Do not edit: change the chart, and run make chart.
`
}

// bound is the values of identity bindings without certificate authorities.
const bound = "--set=tokenEndpoint.annotationSuffix=binding,tokenEndpoint.audience=api://binding,tokenEndpoint.proxy=https://binding.example.test"

// TestAccepted has values that the schema must accept.
func TestAccepted(t *testing.T) {
	for _, set := range []string{
		"--set=drain=0s", "--set=drain=20s", "--set=drain=1500ms", "--set=drain=2.5s",
		"--set=tenantID=tenant.example.test", "--set=authorityHost=https://login.example.test", "--set=authorityHost=https://login.example.test:65535/",
		"--set=authorityHost=https://[2001:db8::1]:8443",
		"--set=cloud=AzureCloud",
		"--set=proxy.resources.limits.cpu=1", "--set=proxy.resources.limits.memory=0.1Gi", "--set=proxy.resources.requests.ephemeral-storage=1e6",
		"--set-string=proxy.resources.requests.cpu=5m", "--set=resources.claims[0].name=gpu",
		bound, bound + ",tokenEndpoint.caConfigMap=ca", bound + ",tokenEndpoint.trustBundleSigner=s,tokenEndpoint.trustBundleLabels=*",
	} {
		if _, errs, err := render(t, values("least"), set); err != nil {
			t.Errorf("%s: %v, %s", set, err, errs)
		}
	}
}

// TestRefused checks that invalid values are refused, with their names, when the chart is rendered.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		set  string
		want string
	}{
		{"--set=images.registry=", "images/registry"},
		{"--set=image.registry=registry.example.test", "image"},
		{"--set-string=images.proxy.digest=v1", "images/proxy/digest"},
		{"--set=webhook.failurePolicy=fail", "webhook/failurePolicy"},
		{"--set=webhook.timeoutSeconds=31", "webhook/timeoutSeconds"},
		{"--set=certificates.mode=certmanager", "certificates/mode"},
		{"--set=certificates.mode=mounted", "certificates/secretName"},
		{"--set-string=certificates.tlsMinVersion=1.1", "certificates/tlsMinVersion"},
		{"--set=nativeSidecar=maybe", "nativeSidecar"},
		{"--set=cloud=AzureMoonCloud", "cloud"},
		{"--set=authorityHost=http://login.example.test", "authorityHost"},
		{"--set=authorityHost=https://login.example.test/adfs", "authorityHost"},
		{"--set=authorityHost=https://login.example.test:65536", "authorityHost"},
		{"--set=authorityHost=https://login.example.test/?", "authorityHost"},
		{"--set=authorityHost=https://login.example.test#", "authorityHost"},
		{"--set=authorityHost=https://[:::::]", "authorityHost"},
		{bound + ",tokenEndpoint.proxy=https://binding.example.test:99999", "tokenEndpoint/proxy"},
		{bound + ",tokenEndpoint.proxy=https://[:::::]", "tokenEndpoint/proxy"},
		{"--set=tenantID=a..b.com", "tenantID"},
		{"--set=replicas=0", "replicas"},
		{"--set=tokenEndpoint.annotationSuffix=binding", "tokenEndpoint/"},
		{"--set=resources.limit.memory=1Mi", "resources"},
		{"--set=drain=soon", "drain"},
		{"--set=drain=30s", "drain"},
		{"--set=drain=1m", "drain"},
		{"--set=tenantID=junk", "tenantID"},
		{"--set=images.proxy.repository=a b", "images/proxy/repository"},
		{"--set=proxy.resources.claims[0].name=gpu", "proxy/resources"},
		{"--set=proxy.resources.limits.example\\.test/gpu=1", "proxy/resources/limits"},
		{"--set=proxyInit.resources.limits.memory=-1Mi", "proxyInit/resources/limits/memory"},
		{"--set=tokenEndpoint.audience=api://binding", "tokenEndpoint/audience"},
		{"--set=tokenEndpoint.caConfigMap=ca", "tokenEndpoint/caConfigMap"},
		{bound + ",tokenEndpoint.audience=api://AzureADTokenExchange", "tokenEndpoint/audience"},
		{bound + ",tokenEndpoint.caConfigMap=ca,tokenEndpoint.trustBundleSigner=example.test/signer", "tokenEndpoint/trustBundleSigner"},
		{bound + ",tokenEndpoint.caData=x,tokenEndpoint.caConfigMap=ca", "tokenEndpoint/caConfigMap"},
		{bound + ",tokenEndpoint.trustBundleLabels=a", "tokenEndpoint/trustBundleSigner"},
	} {
		t.Run(c.set, func(t *testing.T) {
			out, errs, err := render(t, values("least"), c.set)
			if err == nil || !strings.Contains(errs, c.want) {
				t.Errorf("got %v, %q, want an error about %s; rendered %d bytes", err, errs, c.want, len(out))
			}
		})
	}
}
