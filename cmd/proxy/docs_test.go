package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

// The pages with transcripts: the reports of `proxy check`, and the answers that clients get.
const (
	checkPage   = "../../docs/check.md"
	answersPage = "../../docs/answers.md"
)

// documentedChecks lists the reports that the docs show: one without a fault, and one fault for
// each step that can have one. TestCheckTranscripts tests more.
var documentedChecks = []string{"good", "expired-token", "issuer-key", "entra-down", "issuer-slash", "binding-access", "another-redirect"}

// transcriptBlock matches a block of the docs whose content a test writes.
var transcriptBlock = regexp.MustCompile("(?s)<!-- transcript: ([a-z0-9-]+) -->\n```console\n(.*?)```\n")

// checkDocs compares each block of a page with the wanted content, or writes it there with
// -update. It reports content without a block and a block without content.
func checkDocs(t *testing.T, page string, want map[string]string) {
	t.Helper()
	content, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	written := transcriptBlock.ReplaceAllStringFunc(string(content), func(block string) string {
		parts := transcriptBlock.FindStringSubmatch(block)
		name, got := parts[1], parts[2]
		seen[name] = true
		if _, ok := want[name]; !ok {
			t.Errorf("%s has a block %q that no test writes", page, name)
			return block
		}
		if got != want[name] && !*update {
			t.Errorf("%s: block %q: got\n%s\nwant (to write it: go test -update)\n%s", page, name, got, want[name])
		}
		return fmt.Sprintf("<!-- transcript: %s -->\n```console\n%s```\n", name, want[name])
	})
	for name := range want {
		if !seen[name] {
			t.Errorf("%s has no block %q", page, name)
		}
	}
	if *update {
		if err := os.WriteFile(page, []byte(written), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDocumentedChecks: the transcripts in the docs are those of testdata, which
// TestCheckTranscripts compares with real reports.
func TestDocumentedChecks(t *testing.T) {
	want := make(map[string]string)
	for _, name := range documentedChecks {
		content, err := os.ReadFile(filepath.Join("testdata", "check", name+".txt"))
		if err != nil {
			t.Fatal(err)
		}
		want["check-"+name] = "$ kubectl exec POD -c azwi-proxy -- /proxy check\n" + string(content)
	}
	checkDocs(t, checkPage, want)
}

// documentedCurls lists the requests that the docs show, one for each kind of answer.
var documentedCurls = []struct {
	name  string
	fault func(*checkedPod) // nil: none
	curl  string
}{
	{"no-metadata-header", nil, `curl -sS 'http://localhost:8000/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net'`},
	{"forwarded-for", nil, metadataCurl + ` -H 'X-Forwarded-For: 10.0.0.1' ` + tokenTarget("resource=https://vault.azure.net")},
	{"foreign-host", nil, metadataCurl + ` -H 'Host: metadata.example.test' ` + tokenTarget("resource=https://vault.azure.net")},
	{"no-resource", nil, metadataCurl + " 'http://localhost:8000/metadata/identity/oauth2/token?api-version=2018-02-01'"},
	{"duplicate-parameter", nil, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net&resource=https://vault.azure.net")},
	{"api-version", nil, metadataCurl + " 'http://localhost:8000/metadata/identity/oauth2/token?api-version=2000-01-01&resource=https://vault.azure.net'"},
	{"malformed-resource", nil, metadataCurl + " " + tokenTarget("resource=vault%20of%20mine")},
	{"two-selectors", nil, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net&client_id="+checkClientID+"&object_id="+otherObjectID)},
	{"unknown-object-id", nil, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net&object_id="+otherObjectID)},
	{"no-identity", func(p *checkedPod) {
		delete(p.environment, "AZURE_CLIENT_ID")
		p.environment["PROXY_IDENTITY"] = "a1a1a1a1-0000-4000-8000-000000000001=" + checkClientID + ",a1a1a1a1-0000-4000-8000-000000000002=" + otherObjectID
	}, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"wrong-method", nil, metadataCurl + " -X POST " + tokenTarget("resource=https://vault.azure.net")},
	{"wrong-path", nil, metadataCurl + " 'http://localhost:8000/metadata/identity/oauth2/tokens'"},
	{"passthrough-off", nil, metadataCurl + " 'http://localhost:8000/metadata/instance?api-version=2021-02-01'"},
	{"instance", serveInstance, metadataCurl + " 'http://localhost:8000/metadata/instance?api-version=2021-02-01'"},
	{"instance-leaf", serveInstance, metadataCurl + " 'http://localhost:8000/metadata/instance/compute/location?api-version=2021-02-01'"},
	{"instance-text", serveInstance, metadataCurl + " 'http://localhost:8000/metadata/instance/compute/location?api-version=2021-02-01&format=text'"},
	{"instance-missing", serveInstance, metadataCurl + " 'http://localhost:8000/metadata/instance/compute/zone?api-version=2021-02-01&format=text'"},
	{"instance-version", serveInstance, metadataCurl + " 'http://localhost:8000/metadata/instance'"},
	{"app-service-no-secret", withAppService, "curl -sS " + appServiceTarget},
	{"app-service-wrong-secret", withAppService, "curl -sS -H 'X-IDENTITY-HEADER: wrong' " + appServiceTarget},
	{"app-service-unknown-client", func(p *checkedPod) {
		withAppService(p)
		p.idp.RemoveApplication(checkClientID)
	}, "curl -sS -H 'X-IDENTITY-HEADER: " + documentedSecret + "' " + appServiceTarget},
	{"app-service-off", nil, "curl -sS -H 'X-IDENTITY-HEADER: " + documentedSecret + "' " + appServiceTarget},
	{"unknown-client", func(p *checkedPod) { p.idp.RemoveApplication(checkClientID) }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"unknown-resource", nil, metadataCurl + " " + tokenTarget("resource=https://orders.example.test")},
	{"disabled-client", func(p *checkedPod) { p.idp.FailAlways(entra.FaultAADSTS(7000112)) }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"unknown-tenant", func(p *checkedPod) { p.environment["AZURE_TENANT_ID"] = "99999999-8888-4777-8666-555555555555" }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"federation", func(p *checkedPod) { p.project(entra.Claims{Subject: "system:serviceaccount:shop:default"}) }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"expired-token", func(p *checkedPod) { p.project(entra.Claims{IssuedAt: longAgo()}) }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"binding", func(p *checkedPod) { p.bind(false) }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"issuer", func(p *checkedPod) { p.idp.FailAlways(entra.FaultAADSTS(501661)) }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"refused", func(p *checkedPod) {
		p.idp.FailAlways(entra.FaultAADSTSAs(401, "invalid_client", 7000999, "An error that this version does not know."))
	}, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"throttled", func(p *checkedPod) { p.idp.FailAlways(entra.FaultThrottle(time.Minute)) }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
	{"entra-down", func(p *checkedPod) { p.idp.Close() }, metadataCurl + " " + tokenTarget("resource=https://vault.azure.net")},
}

// serveInstance gives a pod the document of docs/instance-metadata.md.
func serveInstance(p *checkedPod) {
	path := filepath.Join(p.t.TempDir(), "instance.json")
	if err := os.WriteFile(path, []byte(`{"compute": {"azEnvironment": "AzurePublicCloud", "location": "westeurope", "resourceGroupName": "shop"}}`), 0o600); err != nil {
		p.t.Fatal(err)
	}
	p.environment["PROXY_INSTANCE_METADATA"] = path
}

const (
	metadataCurl  = "curl -sS -H Metadata:true"
	otherObjectID = "0d0d0d0d-1111-4222-8333-444444444444"
)

const (
	documentedSecret = "0b9c1d2e-3f40-4516-8273-94a5b6c7d8e9"
	appServiceTarget = "'http://localhost:8000/msi/token?api-version=2019-08-01&resource=https://vault.azure.net'"
)

func withAppService(p *checkedPod) { p.environment["PROXY_APP_SERVICE_HEADER"] = documentedSecret }

func tokenTarget(query string) string {
	return "'http://localhost:8000/metadata/identity/oauth2/token?api-version=2018-02-01&" + query + "'"
}

// TestDocumentedCurls: each answer in the docs is the one that curl gets from the real proxy.
func TestDocumentedCurls(t *testing.T) {
	keys := entra.NewKeys()
	answers := make([]string, len(documentedCurls))
	t.Run("curl", func(t *testing.T) {
		for i, example := range documentedCurls {
			t.Run(example.name, func(t *testing.T) {
				t.Parallel() // retries of an exchange take seconds
				p := newCheckedPod(t, keys)
				if example.fault != nil {
					example.fault(p)
				}
				p.startProxyUnready()
				answers[i] = p.curl(example.curl)
			})
		}
	})
	want := make(map[string]string)
	for i, example := range documentedCurls {
		want["curl-"+example.name] = fmt.Sprintf("$ %s -w ' (%%{http_code})\\n'\n%s", example.curl, answers[i])
	}
	checkDocs(t, answersPage, want)
}

// curl runs a documented command line, with the proxy's port instead of 8000, and returns the
// answer and its status.
func (p *checkedPod) curl(line string) string {
	p.t.Helper()
	line = strings.ReplaceAll(line, "http://localhost:8000/", "http://127.0.0.1:"+p.proxyPort+"/") + ` --noproxy '*' -w ' (%{http_code})\n'`
	out, err := exec.CommandContext(p.t.Context(), "sh", "-c", line).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s: %v: %s", line, err, out)
	}
	return string(out)
}

// TestDocumentedExitCodes: docs/check.md lists each exit code with the text that --help has.
func TestDocumentedExitCodes(t *testing.T) {
	page, err := os.ReadFile(checkPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range checkExits {
		row := fmt.Sprintf("| %d | %s |", e.code, e.help)
		if e.name != "" {
			row = fmt.Sprintf("| %d | %s: %s |", e.code, e.name, e.help)
		}
		if !strings.Contains(string(page), "\n"+row) {
			t.Errorf("%s has no row %q", checkPage, row)
		}
	}
}
