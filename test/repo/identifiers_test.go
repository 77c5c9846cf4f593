package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Kinds of identifiers, in the table of TestIdentifiers.
const (
	kindClientID   = "client ID"
	kindIdentity   = "identity"
	kindResource   = "resource"
	kindTenant     = "tenant"
	kindAuthority  = "authority host"
	kindTokenProxy = "token proxy"
	kindCloud      = "cloud"
	kindHTTPProxy  = "HTTP proxy"
	kindPort       = "port"
	kindAddress    = "address"
)

// Parts of the inputs.
const (
	idOne    = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	idTwo    = "77777777-7777-4777-8777-777777777777"
	armStart = "/subscriptions/33333333-0000-4000-8000-000000000001/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
)

// Reasons for refusing a value. All programs use the same text.
const (
	notClientID  = "must be a GUID: the application (client) ID, not a name or a resource ID"
	notSelector  = "must be an object ID (a GUID) or the ARM resource ID of a user-assigned identity, before =CLIENT_ID"
	notPair      = "must be SELECTOR=CLIENT_ID"
	notResource  = "must be a URI without a fragment, such as https://vault.azure.net, or a GUID"
	notTenant    = "must be a tenant's ID (a GUID) or its domain, such as tenant.onmicrosoft.com"
	notURL       = "must be an https URL, such as https://login.example.test"
	notHTTPProxy = "must be the URL of a proxy, for example http://<HOST>:<PORT>"
	notPort      = "must be between 1 and 65535"
	notURLPort   = "must have a port between 1 and 65535"
	notAddress   = "must be HOST:PORT or :PORT, such as :8001"
)

// identifiers lists values. Every program that reads this kind of identifier accepts the value, if
// reason is empty, or refuses it for this reason.
var identifiers = []struct{ kind, value, reason string }{
	{kindClientID, idOne, ""},
	{kindClientID, strings.ToUpper(idOne), ""},
	{kindClientID, "1111", notClientID},
	{kindClientID, "app", notClientID},
	{kindClientID, "{" + idOne + "}", notClientID},
	{kindClientID, idOne + "0", notClientID},
	{kindClientID, idOne[:35] + "g", notClientID},
	{kindClientID, strings.ReplaceAll(idOne, "-", ""), notClientID},

	{kindIdentity, idTwo + "=" + idOne, ""},
	{kindIdentity, strings.ToUpper(idTwo) + "=" + strings.ToUpper(idOne), ""},
	{kindIdentity, armStart + "app=" + idOne, ""},
	{kindIdentity, strings.ToUpper(armStart) + "a!~'(b)\"=" + idOne, ""},
	{kindIdentity, strings.Replace(armStart, "/g/", "/a=b/", 1) + "app=" + idOne, ""},
	{kindIdentity, idTwo + "=" + idOne + ", " + armStart + "app=" + idOne, ""},
	{kindIdentity, armStart + strings.Repeat("a", 512-len(armStart)) + "=" + idOne, ""},
	{kindIdentity, armStart + strings.Repeat("a", 513-len(armStart)) + "=" + idOne, notSelector},
	{kindIdentity, idTwo, notPair},
	{kindIdentity, "name=" + idOne, notSelector},
	{kindIdentity, "=" + idOne, notSelector},
	{kindIdentity, armStart + "=" + idOne, notSelector},
	{kindIdentity, armStart + "a/b=" + idOne, notSelector},
	{kindIdentity, armStart + "a b=" + idOne, notSelector},
	{kindIdentity, armStart + "ü=" + idOne, notSelector},
	{kindIdentity, strings.Replace(armStart, "s", "ſ", 1) + "app=" + idOne, notSelector},
	{kindIdentity, idTwo + "=app", notClientID},
	{kindIdentity, idTwo + "=", notClientID},
	{kindIdentity, idTwo + "=" + idOne + "," + strings.ToUpper(idTwo) + "=" + idTwo, "must have one client ID, and has " + idOne + " and " + idTwo},

	{kindResource, "https://vault.azure.net", ""},
	{kindResource, "https://vault.azure.net/,api://app/.default", ""},
	{kindResource, "https://a.example.test/%2f?x=[1]", ""},
	{kindResource, "00000002-0000-0000-c000-000000000000/.default", ""},
	{kindResource, "a+b-c.1:x", ""},
	{kindResource, "x:" + strings.Repeat("x", 1022), ""},
	{kindResource, "x:" + strings.Repeat("x", 1023), "must be at most 1024 bytes long"},
	{kindResource, "vault.azure.net", notResource},
	{kindResource, "https:", notResource},
	{kindResource, "1a:x", notResource},
	{kindResource, "https://a.example.test/#part", notResource},
	{kindResource, "https://a.example.test#", notResource},
	{kindResource, "https://a.example.test/%2", notResource},
	{kindResource, "https://a.example.test/ü", notResource},
	{kindResource, "https://a example.test", notResource},
	{kindResource, `https://"`, notResource},
	{kindResource, "https://a.example.test,", notResource},
	{kindResource, "https://a.example.test\nhttps://b.example.test", "must be one line, with commas between its items"},

	{kindTenant, "11111111-2222-4333-8444-555555555555", ""},
	{kindTenant, "tenant.example.test", ""},
	{kindTenant, "A-1.b", ""},
	{kindTenant, strings.Repeat("a.", 126) + "a", ""},
	{kindTenant, strings.Repeat("a.", 126) + "aa", notTenant},
	{kindTenant, "contoso", notTenant},
	{kindTenant, "a..b.com", notTenant},
	{kindTenant, ".example.test", notTenant},
	{kindTenant, "example.test.", notTenant},
	{kindTenant, "-a.example.test", notTenant},
	{kindTenant, "a_b.example.test", notTenant},
	{kindTenant, "../x", notTenant},
	{kindTenant, "x?y", notTenant},
	{kindTenant, "a.b/c", notTenant},
	{kindTenant, "11111111-2222-4333-8444-55555555555", notTenant},
	{kindTenant, "Common", "must be the ID or the domain of one tenant; this name stands for many"},
	{kindTenant, "organizations", "must be the ID or the domain of one tenant; this name stands for many"},
	{kindTenant, "consumers", "must be the ID or the domain of one tenant; this name stands for many"},
	{kindTenant, "adfs", "must be the ID or the domain of an Entra tenant; this name is for another protocol"},
	{kindTenant, "DSTSv2", "must be the ID or the domain of an Entra tenant; this name is for another protocol"},

	{kindAuthority, "https://login.microsoftonline.com/", ""},
	{kindAuthority, "https://login.example.test", ""},
	{kindAuthority, "HTTPS://login_1.example.test:65535/", ""},
	{kindAuthority, "https://127.0.0.1:0443", ""},
	{kindAuthority, "https://[::1]:443/", ""},
	{kindAuthority, "https://login.example.test/adfs", "must not contain a path: the tenant is set separately"},
	{kindAuthority, "https://login.example.test//", "must not contain a path: the tenant is set separately"},

	{kindAuthority, "https://[1:2:3:4:5:6:7:8]", ""},
	{kindAuthority, "https://[1:2:3:4:5:6:7::]", ""},
	{kindAuthority, "https://[::2:3:4:5:6:7:8]", ""},
	{kindAuthority, "https://[1::3:4:5:6:7:8]", ""},
	{kindAuthority, "https://[2001:DB8::]:8443", ""},
	{kindAuthority, "https://[::]", ""},
	{kindAuthority, "https://[::ffff:192.0.2.1]", ""},
	{kindAuthority, "https://[1:2:3:4:5:6:192.0.2.255]", ""},

	{kindTokenProxy, "https://binding.example.test", ""},
	{kindTokenProxy, "https://[2001:db8::1]:8443/a", ""},
	{kindTokenProxy, "https://binding.example.test:8443/a%2fb/@;=", ""},
	{kindTokenProxy, "https://binding.example.test/a%2", notURL},
	{kindTokenProxy, "https://binding.example.test/a b", notURL},

	{kindHTTPProxy, "http://proxy.example.test:3128", ""},
	{kindHTTPProxy, "https://user:password@proxy.example.test/", ""},
	{kindHTTPProxy, "socks5h://[2001:db8::1]:1080", ""},
	{kindHTTPProxy, "proxy.example.test:3128", ""},
	{kindHTTPProxy, "ftp://u:c4n4ry@proxy.example.test", notHTTPProxy},
	{kindHTTPProxy, "http://", notHTTPProxy},
	{kindHTTPProxy, "http://u:c4n4ry p@proxy.example.test", notHTTPProxy},

	{kindCloud, "AzurePublicCloud", ""},
	{kindCloud, "AzureCloud", ""},
	{kindCloud, "AzureUSGovernmentCloud", ""},
	{kindCloud, "AzureUSGovernment", ""},
	{kindCloud, "AzureChinaCloud", ""},
	{kindCloud, "AzureMoonCloud", "must be AzurePublicCloud, AzureUSGovernmentCloud or AzureChinaCloud; for another cloud set the authority host"},

	{kindPort, "1", ""},
	{kindPort, "8000", ""},
	{kindPort, "010000", ""},
	{kindPort, "65535", ""},
	{kindPort, "0", notPort},
	{kindPort, "65536", notPort},
	{kindPort, "-1", notPort},
	{kindPort, "+8000", notPort},
	{kindPort, " 8000", notPort},
	{kindPort, "0x1f40", notPort},
	{kindPort, "http", notPort},

	{kindAddress, ":1", ""},
	{kindAddress, "127.0.0.1:65535", ""},
	{kindAddress, "[::1]:8001", ""},
	{kindAddress, "8001", notAddress},
	{kindAddress, "::1:8001", notAddress},
	{kindAddress, ":0", notURLPort},
	{kindAddress, "127.0.0.1:0", notURLPort},
	{kindAddress, ":65536", notURLPort},
	{kindAddress, ":http", notURLPort},
}

// urls lists values that are refused both as authority host and as token proxy.
var urls = []struct{ value, reason string }{
	{"login.example.test", notURL},
	{"http://login.example.test", notURL},
	{"https:///", notURL},
	{"https://a b", notURL},
	{"https://a!b", notURL},
	{"https://ü.example.test", notURL},
	{"https://login.example.test:x", notURL},
	{"https://[]", notURL},
	{"https://[::1", notURL},
	{"https://[:]", notURL},
	{"https://[:::::]", notURL},
	{"https://[1:2:3:4:5:6:7]", notURL},
	{"https://[1:2:3:4:5:6:7:8:9]", notURL},
	{"https://[1:2:3:4:5:6:7::8]", notURL}, // :: replaces at least one group
	{"https://[1::2::3]", notURL},
	{"https://[:1:2:3:4:5:6:7]", notURL},
	{"https://[00001::]", notURL},
	{"https://[::g]", notURL},
	{"https://[1.2.3.4]", notURL},
	{"https://[::256.0.2.1]", notURL},
	{"https://[::192.0.2.01]", notURL},
	{"https://[::192.0.2]", notURL},
	{"https://[::192.0.2.1:1]", notURL},
	{"https://[1:2:3:4:5:6:7:192.0.2.1]", notURL},
	{"https://[fe80::1%25eth0]", notURL},
	{"https://user@login.example.test", "must not contain a user or password"},
	{"https://user:c4n4ry@login.example.test", "must not contain a user or password"},
	{"https://login.example.test?", "must not contain a query (?)"},
	{"https://login.example.test/?a=b", "must not contain a query (?)"},
	{"https://login.example.test#", "must not contain a fragment (#)"},
	{"https://login.example.test/#a", "must not contain a fragment (#)"},
	{"https://login.example.test:0", notURLPort},
	{"https://login.example.test:", notURLPort},
	{"https://login.example.test:65536", notURLPort},
	{"https://login.example.test:99999/", notURLPort},
}

// programs has the programs of this repository, and the chart, which read identifiers.
type programs struct {
	dir    string         // of the binaries
	schema map[string]any // of the chart's values
}

// reader is a setting of a program that has an identifier. The function read returns the
// program's error for the value, or "" if the program accepts the value.
type reader struct {
	name string
	read func(t *testing.T, value string) string
}

func (p programs) readers() map[string][]reader {
	return map[string][]reader{
		kindClientID: {p.proxyEnv("AZURE_CLIENT_ID"), p.proxyEnv("PROXY_ALLOWED_CLIENT_IDS"), p.proxyFlag("check", "--client-id"),
			p.migrateFlag("--client-id"), p.accountAnnotation("azure.workload.identity/client-id"), p.annotation("imds-oidc-proxy/allowed-client-ids")},
		kindIdentity:  {p.proxyEnv("PROXY_IDENTITY"), p.proxyFlag("--identity"), p.annotation("imds-oidc-proxy/identities")},
		kindResource:  {p.proxyEnv("PROXY_PREFETCH"), p.proxyFlag("--prefetch"), p.annotation("imds-oidc-proxy/prefetch")},
		kindTenant:    {p.proxyEnv("AZURE_TENANT_ID"), p.webhook("--tenant-id"), p.migrateFlag("--tenant-id"), p.accountAnnotation("azure.workload.identity/tenant-id"), p.chart("tenantID")},
		kindAuthority: {p.proxyEnv("AZURE_AUTHORITY_HOST"), p.webhook("--authority-host"), p.migrateFlag("--authority-host"), p.chart("authorityHost")},
		kindTokenProxy: {p.proxyEnv("AZURE_KUBERNETES_TOKEN_PROXY"), p.webhook("--token-endpoint-proxy", binding...),
			p.migrateFlag("--token-endpoint-proxy", binding...), p.chart("tokenEndpoint", "proxy")},
		kindHTTPProxy: {p.proxyEnv("HTTPS_PROXY"), p.webhook("--proxy-https-proxy"), p.migrateFlag("--proxy-https-proxy"),
			p.annotation("imds-oidc-proxy/https-proxy"), p.chart("proxy", "httpsProxy")},
		kindCloud: {p.webhook("--cloud"), p.migrateFlag("--cloud"), p.chart("cloud")},
		kindPort:  {p.proxyEnv("PROXY_PORT"), p.proxyFlag("--proxy-port"), p.initEnv("PROXY_PORT"), p.annotation("azure.workload.identity/proxy-sidecar-port")},
		kindAddress: {p.proxyEnv("PROXY_ADMIN_ADDRESS"), p.proxyFlag("--admin-address"),
			p.webhook("--address"), p.webhook("--health-address"), p.webhook("--metrics-address")},
	}
}

// binding has the other flags that an identity binding requires.
var binding = []string{"--token-endpoint-annotation-suffix=binding", "--token-endpoint-audience=api://binding"}

// TestIdentifiers: proxy, proxy-init, webhook, imds-migrate and the chart accept the same values,
// and refuse the others for the same reason. If injection accepted a value that the proxy refuses,
// the pod would not start. No error contains a password.
func TestIdentifiers(t *testing.T) {
	p := programs{dir: allBinaries(t), schema: readSchema(t)}
	table := identifiers
	for _, u := range urls {
		for _, kind := range []string{kindAuthority, kindTokenProxy} {
			table = append(table, struct{ kind, value, reason string }{kind, u.value, u.reason})
		}
	}
	readers := p.readers()
	for _, row := range table {
		t.Run(fmt.Sprintf("%s %.60q", row.kind, row.value), func(t *testing.T) {
			t.Parallel()
			for _, r := range readers[row.kind] {
				message := r.read(t, row.value)
				if (message == "") != (row.reason == "") || message != schemaRefuses && !strings.Contains(message, row.reason) {
					t.Errorf("%s: got the error %q, want %q", r.name, message, row.reason)
				}
				if strings.Contains(message, "c4n4ry") {
					t.Errorf("%s: the error contains a password: %s", r.name, message)
				}
			}
		})
	}
}

func allBinaries(t *testing.T) string {
	t.Helper()
	watchSources(t)
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/...")
	cmd.Dir = repository
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return dir
}

// run runs a program and returns its standard error.
func (p programs) run(t *testing.T, stdin string, env []string, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for a program that accepts the value and does not exit
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(p.dir, program), args...)
	cmd.Env, cmd.Stdin = append([]string{}, env...), strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if _, ended := errors.AsType[*exec.ExitError](err); !ended || ctx.Err() != nil {
			t.Fatalf("%s %q: %v", program, args, err)
		}
	}
	return stderr.String()
}

// errorUnless returns the message, or "" if it contains accepted: the error with which a program
// ends after it has accepted the value. The other settings contain a deliberate fault, so that the
// program does not continue to run.
func errorUnless(message, accepted string) string {
	if strings.Contains(message, accepted) {
		return ""
	}
	return message
}

// proxyEnvironment returns all variables that the proxy requires. The token file does not exist, so
// that the proxy ends with an error.
func proxyEnvironment(more ...string) []string {
	return append([]string{"AZURE_TENANT_ID=tenant.example.test", "AZURE_FEDERATED_TOKEN_FILE=/does/not/exist", "PROXY_IMDS_PASSTHROUGH=off"}, more...)
}

const noTokenFile = "AZURE_FEDERATED_TOKEN_FILE: "

func (p programs) proxyEnv(variable string) reader {
	return reader{"proxy, " + variable, func(t *testing.T, value string) string {
		env := proxyEnvironment(variable + "=" + value)
		if variable == "PROXY_PREFETCH" {
			env = append(env, "AZURE_CLIENT_ID="+idOne)
		}
		return errorUnless(p.run(t, "", env, "proxy"), noTokenFile)
	}}
}

// proxyFlag sets the last of args, a flag, to the value. For `proxy check` it adds --probe, an
// invalid argument, so that the check ends with an error.
func (p programs) proxyFlag(args ...string) reader {
	return reader{"proxy " + strings.Join(args, " "), func(t *testing.T, value string) string {
		last := len(args) - 1
		given := append(append([]string{}, args[:last]...), args[last]+"="+value)
		if args[0] == "check" {
			return errorUnless(p.run(t, "", proxyEnvironment(), "proxy", append(given, "--probe")...), "--probe is not a flag of proxy check")
		}
		return errorUnless(p.run(t, "", proxyEnvironment("AZURE_CLIENT_ID="+idOne), "proxy", given...), noTokenFile)
	}}
}

func (p programs) initEnv(variable string) reader {
	return reader{"proxy-init, " + variable, func(t *testing.T, value string) string {
		return p.run(t, "", []string{variable + "=" + value}, "proxy-init", "--dry-run", "--termination-log=")
	}}
}

// webhook names a kubeconfig file that does not exist, so that the program exits after it has
// validated its flags.
func (p programs) webhook(flag string, more ...string) reader {
	return reader{"webhook " + flag, func(t *testing.T, value string) string {
		args := append([]string{"--proxy-image=proxy:1", "--proxy-init-image=init:1", "--namespace=hook", "--kubeconfig=/does/not/exist", flag + "=" + value}, more...)
		return errorUnless(p.run(t, "", nil, "webhook", args...), `--kubeconfig (WEBHOOK_KUBECONFIG) "/does/not/exist": `)
	}}
}

func (p programs) migrateFlag(flag string, more ...string) reader {
	return reader{"imds-migrate " + flag, func(t *testing.T, value string) string {
		return errorUnless(p.migrate(t, "{}", append(more, flag+"="+value)...), "0 injected, 0 unchanged, 0 skipped")
	}}
}

func (p programs) migrate(t *testing.T, manifest string, args ...string) string {
	t.Helper()
	return p.run(t, manifest, nil, "imds-migrate", append([]string{"inject", "--proxy-image=proxy:1", "--proxy-init-image=init:1"}, args...)...)
}

// annotation reads an annotation of a pod, and accountAnnotation one of its service account. The
// program is imds-migrate; the webhook reads annotations with the same package, internal/inject.
func (p programs) annotation(name string) reader        { return p.annotated(name, "") }
func (p programs) accountAnnotation(name string) reader { return p.annotated("", name) }

func (p programs) annotated(onPod, onAccount string) reader {
	return reader{"annotation " + onPod + onAccount, func(t *testing.T, value string) string {
		pod := map[string]string{"azure.workload.identity/inject-proxy-sidecar": "true"}
		account := map[string]string{"azure.workload.identity/tenant-id": "tenant.example.test"}
		// A client ID must be among the allowed ones, so leave it out if the value sets those.
		if onPod != "imds-oidc-proxy/allowed-client-ids" {
			account["azure.workload.identity/client-id"] = idOne
		}
		if onPod != "" {
			pod[onPod] = value
		} else {
			account[onAccount] = value
		}
		message := p.migrate(t, manifestOf(t, "Pod", pod)+"---\n"+manifestOf(t, "ServiceAccount", account))
		if !strings.Contains(message, "refused") {
			return "" // there are only warnings
		}
		return message
	}}
}

// manifestOf returns an object with annotations as JSON, which is also YAML.
func manifestOf(t *testing.T, kind string, annotations map[string]string) string {
	t.Helper()
	object := map[string]any{"apiVersion": "v1", "kind": kind, "metadata": map[string]any{
		"name": "app", "annotations": annotations, "labels": map[string]string{"azure.workload.identity/use": "true"}}}
	if kind == "Pod" {
		object["spec"] = map[string]any{"serviceAccountName": "app", "containers": []any{map[string]any{"name": "app", "image": "app:1"}}}
	}
	text, err := json.MarshalIndent(object, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "\n"
}

// schemaRefuses is returned instead of the error of a JSON schema, which contains no reason.
const schemaRefuses = "the schema refuses the value"

// chart checks a value against the chart's schema. It supports only the keywords that the schemas
// of identifiers use. test/deploy/chart runs Helm itself.
func (p programs) chart(path ...string) reader {
	return reader{"chart, " + strings.Join(path, "."), func(t *testing.T, value string) string {
		schema := p.schema
		for _, name := range path {
			schema = schema["properties"].(map[string]any)[name].(map[string]any)
		}
		if !p.conforms(t, schema, value) {
			return schemaRefuses
		}
		return ""
	}}
}

func (p programs) conforms(t *testing.T, schema map[string]any, value string) bool {
	t.Helper()
	for keyword, want := range schema {
		ok := false
		switch keyword {
		case "type":
			ok = want == "string"
		case "description":
			ok = true
		case "pattern":
			ok = regexp.MustCompile(want.(string)).MatchString(value)
		case "maxLength":
			ok = len(value) <= int(want.(float64))
		case "enum":
			ok = slices.Contains(want.([]any), any(value))
		case "allOf":
			ok = !slices.ContainsFunc(want.([]any), func(part any) bool { return !p.conforms(t, part.(map[string]any), value) })
		case "$ref":
			name := strings.TrimPrefix(want.(string), "#/definitions/")
			ok = p.conforms(t, p.schema["definitions"].(map[string]any)[name].(map[string]any), value)
		default:
			t.Errorf("this test does not support the keyword %q of JSON schema", keyword)
		}
		if !ok {
			return false
		}
	}
	return true
}

func readSchema(t *testing.T) map[string]any {
	t.Helper()
	text, err := os.ReadFile(chartDir + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}
