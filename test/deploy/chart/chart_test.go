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

	"sigs.k8s.io/yaml"
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
		"--set=images.registry=registry.example.test", "--set=images.registry=localhost:5000/team/sub_team", "--set=images.proxy.repository=team/proxy",
		"--set=proxy.httpsProxy=http://proxy.example.test:3128/", "--set=proxy.httpsProxy=proxy.example.test:3128", "--set=proxy.caConfigMap=ca/bundle.pem",
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
		{"--set=images.registry=", "images.registry is required: "},
		{"--set=images.registry=null", "images.registry is required: "},
		{"--set=images.registry=", "make push REGISTRY=registry.example.test/team; then add --set images.registry=registry.example.test/team"},
		{"--set=test.clientID=shop", "test/clientID"},
		{"--set=test.namespace=Shop", "test/namespace"},
		{"--set=test.image=ask", "test"},
		{"--set=images.registry=https://registry.example.test", "images/registry"},
		{"--set=images.registry=registry.example.test/", "images/registry"},
		{"--set=images.proxy.repository=https://registry.example.test/p", "images/proxy/repository"},
		{"--set=images.webhook.repository=/p", "images/webhook/repository"},
		{"--set=proxy.httpsProxy=ftp://proxy.example.test", "proxy/httpsProxy"},
		{"--set=proxy.caConfigMap=Corporate CA", "proxy/caConfigMap"},
		{"--set=proxy.env.A=1", "proxy/env/A"},
		{"--set=ports.webhook=0", "ports/webhook"},
		{"--set=ports.metrics=null", "ports"},
		{"--set=extraEnv[0].name=GOMEMLIMIT", "extraEnv/0"},
		{"--set=extraVolumes[0].name=certs", "extraVolumes/0"},
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
		{"--set=monitoring.labels.team=1", "monitoring/labels/team"},
		{"--set=monitoring.interval=30s", "monitoring"},
		{"--set=monitoring.serviceMonitor=both", "monitoring/serviceMonitor"},
		{"--set=tokenEndpoint.annotationSuffix=binding", "tokenEndpoint/"},
		{"--set=redirect=cni", "redirect"},
		{"--set=cni.enabled=maybe", "cni/enabled"},
		{"--set=cni.uninstall=true", "cni/uninstall"},
		{"--set=cni.enabled=true,cni.exemptUIDs=1501", "cni/exemptUIDs"}, // a number
		{"--set-string=cni.exemptUIDs=0", "cni/exemptUIDs"},
		{"--set-string=cni.exemptUIDs=proxy", "cni/exemptUIDs"},
		{"--set=cni.removeTaint=a=b:NoSchedule", "cni/removeTaint"},
		{"--set=cni.binDir=opt/cni/bin", "cni/binDir"},
		{"--set=cni.confDir=/", "cni/confDir"},
		{"--set=cni.healthPort=0", "cni/healthPort"},
		{"--set=cni.maxUnavailable=0", "cni/maxUnavailable"},
		{"--set=cni.image=x", "cni"},
		{"--set=resources.limit.memory=1Mi", "resources"},
		{"--set=drain=soon", "drain"},
		{"--set=drain=30s", "drain"},
		{"--set=drain=1m", "drain"},
		{"--set=tenantID=junk", "tenantID"},
		{"--set=images.proxy.repository=a b", "images/proxy/repository"},
		{"--set=proxy.resources.claims[0].name=gpu", "proxy/resources"},
		{"--set=proxy.resources.limits.example\\.test/gpu=1", "proxy/resources/limits"},
		{"--set=proxyInit.backend=iptables", "proxyInit/backend"},
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

// TestNull: with null, which removes a default, a value is refused by its name, or the chart can be
// rendered. No value makes Helm end with the error of a template.
func TestNull(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	paths := valuePaths("", all)
	if len(paths) < 60 {
		t.Fatalf("got %d values, want all of the chart", len(paths))
	}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			out, errs, err := render(t, values("least"), "--set="+path+"=null")
			name := path[strings.LastIndex(path, ".")+1:]
			if err != nil && (!strings.Contains(errs, name) || strings.Contains(errs, "nil pointer") || strings.Contains(errs, "error calling")) {
				t.Errorf("got %v, %q, want a complaint about %s", err, errs, name)
			}
			if err == nil && (!strings.Contains(out, "kind: MutatingWebhookConfiguration") || strings.Contains(out, "<nil>") || strings.Contains(out, "<no value>")) {
				t.Errorf("rendered with a hole:\n%s", out)
			}
		})
	}
}

// valuePaths returns the paths of all values and of the maps that contain them.
func valuePaths(prefix string, values map[string]any) []string {
	var paths []string
	for name, value := range values {
		path := prefix + strings.ReplaceAll(name, ".", `\.`)
		paths = append(paths, path)
		if inner, isMap := value.(map[string]any); isMap {
			paths = append(paths, valuePaths(path+".", inner)...)
		}
	}
	return paths
}

// TestExcludedNamespaces: the release's namespace and kube-system are excluded whatever the list is.
func TestExcludedNamespaces(t *testing.T) {
	for _, c := range []struct{ set, want string }{
		{"--set=webhook.excludedNamespaces=null", ""},
		{"--set-json=webhook.excludedNamespaces=[]", ""},
		{"--set-json=webhook.excludedNamespaces=[\"kube-system\"]", ""},
		{"--set-json=webhook.excludedNamespaces=[\"gatekeeper-system\",\"imds-oidc-proxy\"]", "      - gatekeeper-system\n"},
	} {
		out, errs, err := render(t, values("least"), c.set)
		want := "      values:\n      - imds-oidc-proxy\n      - kube-system\n" + c.want + "  rules:\n"
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %s, want\n%s in\n%s", c.set, err, errs, want, out)
		}
	}
}

// TestPluginToken: the CNI plugin's DaemonSet has a service account token and permissions only to
// remove a taint.
func TestPluginToken(t *testing.T) {
	for _, c := range []struct {
		set   string
		token bool
	}{
		{"--set=cni.enabled=true", false},
		{"--set=cni.enabled=true,cni.removeTaint=", false},
		{"--set=cni.enabled=true,cni.removeTaint=example.test/not-ready", true},
	} {
		out, errs, err := render(t, values("least"), c.set, "--show-only=templates/cni.yaml")
		if err != nil {
			t.Fatal(err, errs)
		}
		if got := strings.Contains(out, "      automountServiceAccountToken: true\n"); got != c.token {
			t.Errorf("%s: has a token: %t", c.set, got)
		}
		if got := strings.Contains(out, "kind: ClusterRole"); got != c.token {
			t.Errorf("%s: has permissions: %t", c.set, got)
		}
	}
}

// TestUninstall: with cni.uninstall, the DaemonSet removes the plugin.
func TestUninstall(t *testing.T) {
	out, errs, err := render(t, values("least"), "--set=cni.enabled=true,cni.uninstall=true", "--show-only=templates/cni.yaml")
	if err != nil || !strings.Contains(out, "        - uninstall\n        - --stay\n        - --remove-binary=false\n") {
		t.Errorf("%v, %s\n%s", err, errs, out)
	}
}

// TestMemoryLimit: GOMEMLIMIT is three quarters of the memory limit.
func TestMemoryLimit(t *testing.T) {
	for limit, want := range map[string]string{
		"256Mi": "192MiB", "1Gi": "768MiB", "1.5Gi": "1152MiB", "262144Ki": "192MiB", "100M": "71MiB", "1G": "715MiB", "268435456": "192MiB",
		"1e9": "", "1": "", "": "", "null": "",
	} {
		out, errs, err := render(t, values("least"), "--set=resources.limits.memory="+limit)
		got := ""
		if _, after, found := strings.Cut(out, "name: GOMEMLIMIT\n          value: "); found {
			got, _, _ = strings.Cut(after, "\n")
		}
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, %s, want %q", limit, got, err, errs, want)
		}
	}
}
