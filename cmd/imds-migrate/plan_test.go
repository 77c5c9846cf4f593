package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/internal/output"
	"imds-oidc-proxy/internal/plan"
)

// The example cluster, and what a file does not contain.
var example = []string{"plan", "--filename=testdata/cluster", "--issuer=https://oidc.example.test/shop/", "--kubernetes-version=v1.35.2",
	"--cluster-name=shop", "--tenant-id=22222222-2222-4222-8222-222222222222", "--read-secrets"}

// command runs the program in this process.
func command(args []string, stdin string) (stdout, stderr string, code int) {
	var out, messages bytes.Buffer
	code = run(args, strings.NewReader(stdin), &out, &messages)
	return out.String(), messages.String(), code
}

// TestPlanFormats compares the plan of the example cluster with a file for each format, and checks that a
// second run gives the same bytes.
func TestPlanFormats(t *testing.T) {
	variants := map[string][]string{"terraform-4.64": {"--output=terraform", "--provider-version=4.64"}, "crossplane-1": {"--output=crossplane", "--provider-version=1.8"},
		"chosen": {"--namespace=shop", "--choose=shop/report=00000003-0000-4000-8000-000000000003", "--choose=shop/billing=00000002-0000-4000-8000-000000000002"}}
	for _, format := range output.Formats {
		variants[format] = []string{"--output=" + format}
	}
	for name, args := range variants {
		stdout, stderr, code := command(append(example[:len(example):len(example)], args...), "")
		if code != plan.ExitBlocked || stderr != "" {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
		}
		golden(t, name, stdout)
		if again, _, _ := command(append(example[:len(example):len(example)], args...), ""); again != stdout {
			t.Errorf("%s: a second run gives other bytes", name)
		}
		for line := range strings.Lines(stdout) {
			if strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\r\t\x1b") || strings.HasSuffix(line, " \n") {
				t.Errorf("%s: white space or control characters in %q", name, line)
			}
		}
	}
}

// TestPlanWrite compares the component of the example cluster with its files.
func TestPlanWrite(t *testing.T) {
	dir := t.TempDir()
	if _, stderr, code := command(append(example[:len(example):len(example)], "--write="+dir), ""); code != plan.ExitBlocked || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	files, err := filepath.Glob(dir + "/*")
	if err != nil || len(files) != 2 {
		t.Fatalf("%v: %q", err, files)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "write-"+filepath.Base(file), string(text))
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata/plan", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: go test ./cmd/imds-migrate -run TestPlan -update writes it\n%s", file, diff.Diff(file, want, "got", []byte(got)))
	}
}

// TestPlanCovers checks that the example cluster has at least 40 objects, and that its plan has all
// codes that a cluster in standard mode can have.
func TestPlanCovers(t *testing.T) {
	stdout, _, _ := command(append(example[:len(example):len(example)], "--output=json"), "")
	p := decoded(t, stdout)
	missing := map[string]bool{}
	for _, c := range plan.Codes() {
		missing[c.Code] = true
	}
	seen := func(findings []plan.Finding) {
		for _, f := range findings {
			delete(missing, f.Code)
		}
	}
	seen(p.Findings)
	seen(p.NotLookedAt)
	for _, w := range p.Workloads {
		seen(w.Findings)
	}
	for _, o := range p.Objects {
		seen(o.Findings)
	}
	for _, i := range p.Identities {
		seen(i.Findings)
	}
	// These need another cluster: suites of internal/plan have them.
	for _, code := range strings.Fields(`IMDS102 IMDS106 IMDS128 IMDS138 IMDS145 IMDS152 IMDS153 IMDS156 IMDS301 IMDS302 IMDS303 IMDS304 IMDS306 IMDS307 IMDS308
		IMDS217 IMDS218 IMDS219 IMDS220 IMDS221 IMDS222 IMDS224 IMDS225 IMDS226 IMDS227 IMDS228 IMDS229 IMDS230 IMDS231 IMDS232 IMDS234 IMDS235 IMDS237 IMDS238 IMDS239`) {
		if !missing[code] {
			t.Errorf("%s is in the example: remove it from this list", code)
		}
		delete(missing, code)
	}
	for code := range missing {
		t.Errorf("the example cluster has no %s", code)
	}
	if len(p.Workloads) < 40 || len(p.Objects) < 15 {
		t.Errorf("%d workloads, %d objects", len(p.Workloads), len(p.Objects))
	}
}

func decoded(t *testing.T, text string) plan.Plan {
	t.Helper()
	var p plan.Plan
	decoder := json.NewDecoder(strings.NewReader(text))
	if err := decoder.Decode(&p); err != nil || decoder.More() {
		t.Fatalf("must be one JSON document: %v", err)
	}
	return p
}

// TestPlanBadInput checks the exit code and the message for each input with which a plan cannot be made.
func TestPlanBadInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a}\nspec: {containers: [{name: c, image: i}]}\n"
	t.Setenv("KUBECONFIG", write("kubeconfig", "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n"))
	t.Setenv("HOME", dir)
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args   []string
		stdin  string
		code   int
		stderr string
	}{
		"no API server":         {nil, "", 1, `imds-migrate: cannot reach the API server: Get "http://127.0.0.1:1/version": dial tcp 127.0.0.1:1: connect: connection refused`},
		"no kubeconfig":         {[]string{"--kubeconfig=" + filepath.Join(dir, "gone")}, "", 1, "imds-migrate: no cluster: stat " + filepath.Join(dir, "gone") + ": no such file or directory: set --kubeconfig and --context, or --filename to read exported objects"},
		"no context":            {[]string{"--context=gone"}, "", 1, `imds-migrate: no cluster: context "gone" does not exist: set --kubeconfig and --context, or --filename to read exported objects`},
		"no file":               {[]string{"-f", filepath.Join(dir, "gone.yaml")}, "", 1, "imds-migrate: stat " + filepath.Join(dir, "gone.yaml") + ": no such file or directory"},
		"no files":              {[]string{"-f", empty}, "", 1, "imds-migrate: " + empty + ": contains no .yaml, .yml or .json file"},
		"an empty file":         {[]string{"-f", "-"}, "", 1, "imds-migrate: -: no pod and no workload in it (0 objects of other kinds): export them with kubectl get pods,deployments,… --all-namespaces --output=yaml"},
		"events":                {[]string{"-f", "-"}, strings.Repeat("---\napiVersion: v1\nkind: Event\nnonsense: [1]\n", 10000), 1, "imds-migrate: -: no pod and no workload in it (10000 objects of other kinds): export them with kubectl get pods,deployments,… --all-namespaces --output=yaml"},
		"a cut list":            {[]string{"-f", "-"}, "apiVersion: v1\nitems:\n- " + strings.ReplaceAll(pod, "\n", "\n  "), 1, "imds-migrate: stdin: the file is cut off: export it again"},
		"cut JSON":              {[]string{"-f", "-"}, `{"kind": "List", "items": [{"kind": "Pod"}`, 1, "imds-migrate: stdin: the file is cut off: export it again"},
		"a template":            {[]string{"-f", "-"}, "kind: {{ .Values.kind }}\n", 1, "imds-migrate: stdin:1: a template, not a manifest: render it first (helm template … | imds-migrate plan -f -)"},
		"UTF-16":                {[]string{"-f", "-"}, "\xff\xfek\x00", 1, "imds-migrate: stdin: the file is UTF-16: save it as UTF-8"},
		"an unknown flag":       {[]string{"--ouput=json"}, "", 2, "imds-migrate: unknown flag: --ouput (did you mean --output?)"},
		"an unknown format":     {[]string{"-o", "xml"}, "", 2, `imds-migrate: --output "xml": must be table, wide, json, yaml, markdown, csv, az, bicep, terraform, aso, crossplane or patch`},
		"an argument":           {[]string{"dump.yaml"}, "", 2, `imds-migrate: unexpected argument "dump.yaml": imds-migrate plan takes flags only (see imds-migrate plan --help)`},
		"a bad choice":          {[]string{"--choose=app=x"}, "", 2, `imds-migrate: --choose "app=x": must be NAMESPACE/SERVICE_ACCOUNT=CLIENT_ID or NAMESPACE/KIND/NAME=CLIENT_ID, such as shop/deploy/app=11111111-1111-4111-8111-111111111111`},
		"a choice by name":      {[]string{"--choose=shop/app=app-identity"}, "", 2, `imds-migrate: --choose "app-identity": must be a GUID: the application (client) ID, not a name or a resource ID`},
		"a bad identity":        {[]string{"--identity=app"}, "", 2, `imds-migrate: --identity "app": must be SELECTOR=CLIENT_ID`},
		"a bad issuer":          {[]string{"--issuer=oidc.example.test"}, "", 2, `imds-migrate: --issuer "oidc.example.test": must be an https URL`},
		"no issuer":             {[]string{"-f", "-", "-o", "az"}, pod, 2, "imds-migrate: --issuer is required with --output=az and --filename: the files do not contain it"},
		"a bad selector":        {[]string{"--selector=a=b=c"}, "", 2, `imds-migrate: --selector "a=b=c": must be a label selector, such as app=web,tier!=batch`},
		"a bad provider":        {[]string{"-o", "terraform", "--provider-version=new"}, "", 2, `imds-migrate: --provider-version "new": must be a version, such as 4.65`},
		"an old provider":       {[]string{"-f", "-", "--issuer=https://x", "-o", "terraform", "--provider-version=3.30"}, pod, 2, `imds-migrate: --provider-version "3.30": must be 3.31 or later, the first azurerm with azurerm_federated_identity_credential`},
		"a provider for JSON":   {[]string{"-o", "json", "--provider-version=4"}, "", 2, "imds-migrate: --provider-version requires --output=terraform or --output=crossplane"},
		"a group for JSON":      {[]string{"--resource-group=x"}, "", 2, "imds-migrate: --resource-group requires --output=bicep"},
		"an unknown group":      {[]string{"-f", "testdata/cluster", "--issuer=https://x", "-o", "bicep", "--resource-group=gone"}, "", 2, `imds-migrate: --resource-group "gone": must be one of 99999999-9999-4999-8999-999999999999/shop-identities`},
		"standard input twice":  {[]string{"-f", "-", "-f", "-"}, "", 2, "imds-migrate: --filename must not be - twice: standard input can be read once"},
		"a cluster and files":   {[]string{"-f", "-", "--context=c"}, "", 2, "imds-migrate: --context has no effect with --filename, which reads no cluster"},
		"both kinds of spaces":  {[]string{"-A", "-n", "x"}, "", 2, "imds-migrate: --all-namespaces and --namespace must not be set together"},
		"plan is not the first": {[]string{"--diff"}, "", 2, "imds-migrate: unknown flag: --diff (see imds-migrate plan --help)"},
	} {
		stdout, stderr, code := command(append([]string{"plan"}, c.args...), c.stdin)
		if code != c.code || stderr != c.stderr+"\n" || stdout != "" {
			t.Errorf("%s: got exit code %d, %q, want %d, %q", name, code, stderr, c.code, c.stderr)
		}
	}
	if _, stderr, code := command([]string{"--diff", "plan"}, ""); code != exitUsage || stderr != "imds-migrate: plan must be the first argument: imds-migrate plan [flags]\n" {
		t.Errorf("plan after a flag: got %d, %q", code, stderr)
	}
}

// TestNamespaceMissing checks that plan and retire refuse a namespace that does not exist: nothing in it would
// mean that there is nothing to do.
func TestNamespaceMissing(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		status := func(code int, reason metav1.StatusReason) {
			w.WriteHeader(code)
			json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(code)})
		}
		switch r.URL.Path {
		case "/version":
			io.WriteString(w, `{"gitVersion": "v1.35.2"}`)
		case "/apis":
			io.WriteString(w, `{"groups": []}`)
		case "/api/v1/namespaces/empty":
			io.WriteString(w, `{"metadata": {"name": "empty"}}`)
		case "/api/v1/namespaces/hidden":
			status(http.StatusForbidden, metav1.StatusReasonForbidden)
		case "/api/v1/namespaces/gone", "/.well-known/openid-configuration":
			status(http.StatusNotFound, metav1.StatusReasonNotFound)
		default:
			io.WriteString(w, `{"items": []}`)
		}
	}))
	defer server.Close()
	const file = "apiVersion: v1\nkind: Namespace\nmetadata: {name: empty}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nspec: {containers: [{name: c, image: i}]}\n" +
		"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, namespace: hidden}\n"
	live := []string{"--server=" + server.URL, "--kubeconfig=" + os.DevNull}
	for _, verb := range []string{"plan", "retire"} {
		for _, c := range []struct {
			source          []string
			namespace, want string // "": no error
		}{
			{live, "gone", "imds-migrate: namespace gone does not exist\n"},
			{live, "empty", ""},
			{live, "hidden", ""},
			{[]string{"-f", "-"}, "gone", `imds-migrate: --namespace "gone": no object in - is in it` + "\n"},
			{[]string{"-f", "-"}, "empty", ""},
			{[]string{"-f", "-"}, "shop", ""},
			{[]string{"-f", "-"}, "hidden", ""},
		} {
			stdout, stderr, code := command(append([]string{verb, "--namespace=" + c.namespace}, c.source...), file)
			if stderr != c.want || (stdout == "") != (c.want != "") || c.want != "" && code != plan.ExitNotRead {
				t.Errorf("%s %q, namespace %s: exit code %d, %q, %q, want %q", verb, c.source, c.namespace, code, stdout, stderr, c.want)
			}
		}
	}
}

// TestPlanExitCodes checks the exit codes of plans, and that a kind of an unknown version is one line.
func TestPlanExitCodes(t *testing.T) {
	const clean = `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}
{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "sa", "namespace": "a"}}
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "a"}, "spec": {"serviceAccountName": "sa", "containers": [{"name": "c", "image": "i"}]}}`
	const unknown = `{"apiVersion": "keda.sh/v9", "kind": "TriggerAuthentication", "metadata": {"name": "t", "namespace": "a"}}`
	const keda = `{"apiVersion": "keda.sh/v1alpha1", "kind": "TriggerAuthentication", "metadata": {"name": "t", "namespace": "a"}, "spec": {"podIdentity": {"provider": "azure", "identityId": "11111111-1111-4111-8111-111111111111"}}}`
	for name, c := range map[string]struct {
		stdin string
		args  []string
		code  int
		line  string
	}{
		"nothing to do":            {clean, nil, 0, "To create: 0 federated credentials, 0 service accounts."},
		"an unknown version":       {clean + unknown, nil, 1, "  IMDS302 triggerauthentications.keda.sh (version v9 is unknown to this program, which knows v1alpha1)"},
		"also with exit-zero":      {clean + unknown, []string{"--exit-zero"}, 1, "  IMDS302 triggerauthentications.keda.sh (version v9 is unknown to this program, which knows v1alpha1)"},
		"a malformed object":       {clean + `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "q", "namespace": "a"}, "spec": "x"}`, nil, 1, "  IMDS303 Pod a/q (cannot unmarshal string into Go struct field .spec of type v1.PodSpec)"},
		"work":                     {clean + keda, nil, 3, "To change: 0 labels, 0 annotated service accounts, 1 TriggerAuthentication."},
		"work with exit-zero":      {clean + keda, []string{"--exit-zero"}, 0, "To change: 0 labels, 0 annotated service accounts, 1 TriggerAuthentication."},
		"no namespace in the file": {strings.SplitN(clean, "\n", 2)[1], nil, 1, "  IMDS304 namespaces (the files contain none: add them with kubectl get namespaces --all-namespaces --output=yaml)"},
	} {
		stdout, stderr, code := command(append([]string{"plan", "-f", "-"}, c.args...), c.stdin)
		if code != c.code || stderr != "" || !strings.Contains(stdout, c.line+"\n") {
			t.Errorf("%s: got exit code %d, want %d; no line %q in\n%s%s", name, code, c.code, c.line, stdout, stderr)
		}
	}
}

// TestPlanHostile checks that names in a file cannot forge a line, a column, a command or an option of one.
func TestPlanHostile(t *testing.T) {
	const env = `"env": [{"name": "AZURE_CLIENT_ID", "value": "11111111-1111-4111-8111-111111111111"}]`
	rollout := func(name, account string) string {
		return `{"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "` + name + `", "namespace": "shop"}, "spec": {"template": {"spec": {"serviceAccountName": "` + account + `", "containers": [{"name": "c", "image": "i", ` + env + `}]}}}}`
	}
	hostile := `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p\n\u001b[2Jshop", "namespace": "a'; touch $(x) #\n"}, "spec": {"serviceAccountName": "=cmd|' /C'!A0", "containers": [{"name": "c", "image": "i", ` + env + `}]}}` +
		rollout("option", "--selector=x!=y") + rollout("control", `x\u001b[2J\ntouch forged`) + rollout("web", "web") +
		`{"apiVersion": "external-secrets.io/v1", "kind": "SecretStore", "metadata": {"name": "store", "namespace": "shop"}, "spec": {"provider": {"azurekv": {"authType": "ManagedIdentity", "identityId": "11111111-1111-4111-8111-111111111111", "serviceAccountRef": {"name": "--all\u001b[2J\ntouch forged"}}}}}` +
		`{"apiVersion": "aadpodidentity.k8s.io/v1", "kind": "AzureIdentity", "metadata": {"name": "i", "namespace": "shop"}, "spec": {"type": 1, "clientID": "11111111-1111-4111-8111-111111111111", "tenantID": "x\u001b[2J\ntouch forged"}}` +
		`{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "shop"}, "imagePullSecrets": [{"name": "x\u001b[2J\ntouch forged"}]}` + rollout("fresh", "default")
	for _, format := range output.Formats {
		stdout, stderr, code := command([]string{"plan", "-f", "-", "--issuer=https://oidc.example.test/", "--identity=/subscriptions/99999999-9999-4999-8999-999999999999/resourceGroups/a';x/providers/Microsoft.ManagedIdentity/userAssignedIdentities/'${y}=11111111-1111-4111-8111-111111111111", "-o", format}, hostile)
		if code != plan.ExitBlocked || stderr != "" {
			t.Fatalf("%s: exit code %d, %s", format, code, stderr)
		}
		if strings.Contains(stdout, "\x1b") || strings.Contains(stdout, "\ntouch") || format == "csv" && strings.Contains(stdout, ",=cmd") {
			t.Errorf("%s:\n%s", format, stdout)
		}
		commands := regexp.MustCompile(`(?m)^\s*(#|//).*$`).ReplaceAllString(stdout, "")
		if created := slices.Contains([]string{"az", "bicep", "terraform", "aso", "crossplane"}, format); created && (strings.Contains(commands, "touch $(x)") || strings.Contains(commands, "--selector") || strings.Contains(commands, "--all")) {
			t.Errorf("%s: an invalid name is written:\n%s", format, stdout)
		}
		if format == "az" && (!strings.Contains(stdout, "--subject system:serviceaccount:shop:web ") || !strings.Contains(stdout, `--identity-name ''\''${y}'`)) {
			t.Errorf("az does not quote, or a valid name is missing:\n%s", stdout)
		}
		if format == "wide" && strings.Count(stdout, "IMDS156 blocked") != 4 {
			t.Errorf("want a finding for each of 4 names:\n%s", stdout)
		}
	}
}
