package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

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
			p.webhook("--address"), p.webhook("--health-address"), p.webhook("--metrics-address"), p.cni("--health-address")},
	}
}

// binding has the other flags that an identity binding requires.
var binding = []string{"--token-endpoint-annotation-suffix=binding", "--token-endpoint-audience=api://binding"}

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

// cni adds a flag of the other command, so that the program exits after it has parsed its flags.
func (p programs) cni(flag string) reader {
	return reader{"imds-cni " + flag, func(t *testing.T, value string) string {
		return errorUnless(p.run(t, "", nil, "imds-cni", "install", flag+"="+value, "--remove-binary"), "--remove-binary (IMDS_CNI_REMOVE_BINARY) is only for uninstall")
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
