package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/tokens"
	"imds-oidc-proxy/test/kit/binding"
	"imds-oidc-proxy/test/kit/entra"
)

var update = flag.Bool("update", false, "write transcripts to testdata and to the docs")

const (
	checkSubject  = "system:serviceaccount:shop:cart"
	checkClientID = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"

	// The TLS server names of AKS's token proxy and of the API server, at the same address.
	checkServerName = "a1b2c3d4.ests.aks"
	apiServerName   = "kubernetes.default.svc"
)

// checkedPod is the environment of `proxy check` in a pod: a stand-in for Entra and the issuer,
// a federated token, a proxy, and a stand-in for the metadata address.
type checkedPod struct {
	t           *testing.T
	idp         *entra.Server
	environment map[string]string
	args        []string
	proxyPort   string
	tokenProxy  string // the URL of the stand-in for AKS's token proxy; empty: there is none
}

// newCheckedPod returns a pod without faults; each scenario adds one. The check runs as in the
// proxy's own container: as the proxy's user, to which no redirect applies, and without other
// programs.
func newCheckedPod(t *testing.T, keys *entra.Keys) *checkedPod {
	t.Helper()
	idp, err := entra.Start(entra.Config{Keys: keys, ServerNames: []string{checkServerName, apiServerName}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idp.Close() })
	idp.AddApplication(entra.Application{ClientID: checkClientID, Credentials: []entra.FederatedCredential{{Subject: checkSubject}}})
	dir := t.TempDir()
	p := &checkedPod{t: t, idp: idp, environment: map[string]string{
		"AZURE_TENANT_ID":            idp.TenantID(),
		"AZURE_CLIENT_ID":            checkClientID,
		"AZURE_FEDERATED_TOKEN_FILE": filepath.Join(dir, "token"),
		"AZURE_AUTHORITY_HOST":       idp.AuthorityHost(),
		"PROXY_CA_FILE":              filepath.Join(dir, "ca.pem"),
		"PROXY_IMDS_PASSTHROUGH":     "off",
	}}
	if err := idp.WriteCA(p.environment["PROXY_CA_FILE"]); err != nil {
		t.Fatal(err)
	}
	p.project(entra.Claims{})
	if p.proxyPort, err = freePort(); err != nil {
		t.Fatal(err)
	}
	p.environment["PROXY_PORT"] = p.proxyPort
	p.redirectTo("http://" + silentAddress(t))
	return p
}

// silentAddress returns an address that never answers. It stands in for the metadata address as
// the proxy's own user sees it: no redirect applies, and the check's connection, which is bound
// to the loopback device, cannot leave the pod.
func silentAddress(t *testing.T) string {
	t.Helper()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	return silent.Addr().String()
}

// project writes a federated token with these claims. An empty subject means the subject that
// the application trusts.
func (p *checkedPod) project(c entra.Claims) {
	p.t.Helper()
	if c.Subject == "" {
		c.Subject = checkSubject
	}
	if err := os.WriteFile(p.environment["AZURE_FEDERATED_TOKEN_FILE"], []byte(p.idp.SignFederatedToken(c)), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// bind gives the pod an identity binding of AKS. allowed says whether its service account has the
// permission for the identity.
func (p *checkedPod) bind(allowed bool) *binding.Server {
	p.t.Helper()
	proxy, err := binding.Start(binding.Config{
		Entra: p.idp, Certificate: p.idp.Certificate(), ServerName: checkServerName, Review: p.idp.ReviewFederatedToken,
		Allowed: func(context.Context, string, string) (bool, error) { return allowed, nil },
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { proxy.Close() })
	proxy.Bind(entra.Application{ClientID: checkClientID})
	p.project(entra.Claims{Audience: binding.Audience})
	p.tokenProxy = proxy.URL()
	p.environment["AZURE_KUBERNETES_TOKEN_PROXY"] = p.tokenProxy
	p.environment["AZURE_KUBERNETES_SNI_NAME"] = checkServerName
	p.environment["AZURE_KUBERNETES_CA_FILE"] = p.environment["PROXY_CA_FILE"]
	return proxy
}

func (p *checkedPod) redirectTo(address string) { p.environment["PROXY_IMDS_ADDRESS"] = address }

func (p *checkedPod) getenv(name string) string { return p.environment[name] }

// startProxy runs the real proxy until the test ends, and waits until it is ready.
func (p *checkedPod) startProxy() {
	p.t.Helper()
	p.startProxyUnready()
	port, err := azure.ParsePort(p.proxyPort)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := probe(p.t.Context(), port, time.Minute); err != nil {
		p.t.Fatal(err)
	}
}

// startProxyUnready runs the real proxy until the test ends, and waits until it listens, which
// it also does with a fault that keeps it from being ready.
func (p *checkedPod) startProxyUnready() {
	p.t.Helper()
	cfg, err := parseConfig(nil, p.getenv, os.Stdout)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	var log bytes.Buffer
	go func() {
		defer close(ended)
		err = serve(ctx, cfg, &log)
	}()
	p.t.Cleanup(func() {
		cancel()
		<-ended
		if err != nil {
			p.t.Errorf("%v; log:\n%s", err, &log)
		}
	})
	waitFor(p.t, "the proxy to listen", func() bool {
		select {
		case <-ended:
			p.t.Fatal("the proxy ended before it listened")
		default:
		}
		conn, err := net.Dial("tcp", "127.0.0.1:"+p.proxyPort)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// longAgo returns the time at which a token was issued that has expired since.
func longAgo() time.Time { return time.Now().Add(-3 * time.Hour) }

// check runs `proxy check` and returns its standard output and its exit status.
func (p *checkedPod) check(args ...string) (string, int) {
	p.t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(p.t.Context(), append(append([]string{"check"}, p.args...), args...), p.getenv, &stdout, &stderr)
	if stderr.Len() > 0 {
		p.t.Errorf("standard error: got %q, want nothing", &stderr)
	}
	return stdout.String(), code
}

// checkScenarios lists the faults, each with the exit status of the step that must find it.
var checkScenarios = []struct {
	name  string
	want  int
	fault func(*checkedPod)
}{
	{"good", exitOK, func(*checkedPod) {}},
	{"missing-tenant", 10, func(p *checkedPod) { delete(p.environment, "AZURE_TENANT_ID") }},
	{"expired-token", 11, func(p *checkedPod) {
		p.project(entra.Claims{IssuedAt: longAgo()})
	}},
	{"wrong-audience", 11, func(p *checkedPod) {
		p.project(entra.Claims{Audience: "https://kubernetes.default.svc"})
	}},
	{"issuer-document", 12, func(p *checkedPod) {
		p.project(entra.Claims{Issuer: p.idp.Issuer() + "/"})
	}},
	{"issuer-key", 12, func(p *checkedPod) { p.project(entra.Claims{Signer: entra.ForeignKey}) }},
	{"issuer-slash", 14, func(p *checkedPod) {
		issuer := p.idp.Issuer() + "/"
		p.project(entra.Claims{Issuer: issuer})
		p.idp.FailAlways(entra.FaultEdit("slash", func(a map[string]any) { a["issuer"] = issuer }).On(entra.IssuerDiscovery))
	}},
	{"subject", 14, func(p *checkedPod) {
		p.project(entra.Claims{Subject: "system:serviceaccount:shop:default"})
	}},
	{"subject-case", 14, func(p *checkedPod) {
		p.idp.AddApplication(entra.Application{ClientID: checkClientID, Credentials: []entra.FederatedCredential{{Subject: "system:serviceaccount:Shop:cart"}}})
	}},
	{"unlisted-code", 14, func(p *checkedPod) {
		p.idp.FailAlways(entra.FaultAADSTSAs(401, "invalid_client", 7000999, "An error that this version does not know."))
	}},
	{"unknown-client", 14, func(p *checkedPod) { p.idp.RemoveApplication(checkClientID) }},
	{"unknown-resource", 14, func(p *checkedPod) { p.args = []string{"--resource=https://orders.example.test"} }},
	{"unknown-tenant", 13, func(p *checkedPod) {
		p.environment["AZURE_TENANT_ID"] = "99999999-8888-4777-8666-555555555555"
	}},
	{"unknown-ca", 13, func(p *checkedPod) { delete(p.environment, "PROXY_CA_FILE") }},
	{"entra-down", 13, func(p *checkedPod) { p.idp.Close() }},
	{"binding", exitOK, func(p *checkedPod) { p.bind(true) }},
	{"binding-access", 14, func(p *checkedPod) { p.bind(false) }},
	{"binding-missing", 14, func(p *checkedPod) { p.bind(true).Unbind(checkClientID) }},
	{"binding-credential", 14, func(p *checkedPod) {
		p.bind(true)
		p.idp.AddApplication(entra.Application{ClientID: checkClientID, Credentials: []entra.FederatedCredential{{Subject: checkSubject}}})
	}},
	{"binding-audience", 14, func(p *checkedPod) {
		p.bind(true)
		p.project(entra.Claims{})
	}},
	{"binding-server-name", 13, func(p *checkedPod) {
		p.bind(true)
		p.environment["AZURE_KUBERNETES_SNI_NAME"] = apiServerName
	}},
	{"binding-unset", 14, func(p *checkedPod) { p.project(entra.Claims{Audience: binding.Audience}) }},
	{"another-redirect", 15, func(p *checkedPod) {
		other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Server", "envoy")
			http.Error(w, "no healthy upstream", http.StatusServiceUnavailable)
		}))
		p.t.Cleanup(other.Close)
		p.redirectTo(other.URL)
	}},
}

// TestCheckTranscripts: each fault is found by its step, and the report equals the one in
// testdata and in the docs, except for ports, times and identifiers. Run with -update to write
// both.
func TestCheckTranscripts(t *testing.T) {
	keys := entra.NewKeys()
	for _, scenario := range checkScenarios {
		t.Run(scenario.name, func(t *testing.T) {
			t.Parallel() // retries after errors of Entra take seconds
			p := newCheckedPod(t, keys)
			p.startProxy()
			scenario.fault(p)
			out, code := p.check()
			if code != scenario.want {
				t.Errorf("got exit status %d, want %d", code, scenario.want)
			}
			checkNoToken(t, out)
			golden(t, scenario.name, p.normalize(out))
		})
	}
}

// checkNoToken looks for the first letters of a token: every JSON Web Token has the same.
func checkNoToken(t *testing.T, out string) {
	t.Helper()
	if strings.Contains(out, "eyJ") {
		t.Errorf("the report contains a token:\n%s", out)
	}
}

// golden compares a transcript with the one in testdata, or writes it there with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "check", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant %s (to write it: go test -update):\n%s", got, path, want)
	}
}

// Patterns for text that differs between runs, in the order of replacement.
var (
	volatileTime     = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	volatileLife     = regexp.MustCompile(`, (in )?\d+[hms][0-9.hms]*( ago)?`)
	volatileDuration = regexp.MustCompile(`answered in [0-9.]+m?s`)
	volatileTrace    = regexp.MustCompile(`(trace ID|correlation ID)( +)[0-9a-f-]{36}`)
	volatileKey      = regexp.MustCompile(`key( +)"[^"]+"`)
	volatileUser     = regexp.MustCompile(`UID \d+, GID \d+`)
)

// normalize replaces text that differs between runs with the values of an example cluster.
func (p *checkedPod) normalize(out string) string {
	authority := strings.TrimSuffix(strings.TrimPrefix(p.idp.AuthorityHost(), "https://"), "/")
	if p.tokenProxy != "" {
		out = strings.ReplaceAll(out, strings.TrimPrefix(p.tokenProxy, "https://"), apiServerName)
	}
	out = strings.NewReplacer(
		p.idp.Issuer(), "https://oidc.example.test/cluster",
		authority, "login.example.test",
		"127.0.0.1:"+p.proxyPort, "127.0.0.1:8000",
		" --proxy-port="+p.proxyPort, "",
		p.environment["AZURE_FEDERATED_TOKEN_FILE"], "/var/run/secrets/azure/tokens/azure-identity-token",
	).Replace(out)
	out = volatileTime.ReplaceAllString(out, "2026-01-02T03:04:05Z")
	out = volatileLife.ReplaceAllString(out, ", ${1}59m59s${2}")
	out = volatileDuration.ReplaceAllString(out, "answered in 42ms")
	out = volatileTrace.ReplaceAllString(out, "${1}${2}00000000-1111-4222-8333-444444444444")
	out = volatileKey.ReplaceAllString(out, `key${1}"cluster-key"`)
	return volatileUser.ReplaceAllString(out, "UID 1501, GID 1501")
}

// TestCheckJSON: with --output=json the report has the same findings as JSON.
func TestCheckJSON(t *testing.T) {
	p := newCheckedPod(t, nil)
	p.startProxy()
	p.idp.RemoveApplication(checkClientID)
	out, code := p.check("--output=json")
	var got struct {
		Version     string
		ExitStatus  int    `json:"exit_status"`
		FirstFailed string `json:"first_failed"`
		Steps       []diagnose.Step
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if code != 14 || got.ExitStatus != 14 || got.FirstFailed != "exchange" || got.Version != version || len(got.Steps) != 6 {
		t.Errorf("got exit status %d and %+v, want 14 and the exchange as first failed of six steps", code, got)
	}
	failed := got.Steps[4].Findings[0]
	if failed.AADSTS != 700016 || failed.TraceID == "" || failed.CorrelationID == "" || failed.Remedy == "" {
		t.Errorf("got the finding %+v, want AADSTS700016 with trace ID, correlation ID and remedy", failed)
	}
	checkNoToken(t, out)
}

// TestCheckRefusesWhatTheProxyRefuses: if the proxy's handler refuses a client ID or a resource,
// `proxy check` refuses the flag and names it. Otherwise the check would get a token that no
// application can get.
func TestCheckRefusesWhatTheProxyRefuses(t *testing.T) {
	const other = "77777777-7777-4777-8777-777777777777"
	allowed := "--allowed-client-ids=" + strings.ToUpper(checkClientID)
	// If the check runs despite a wrong flag, it connects only to this machine.
	environment := podEnvironment(map[string]string{
		"AZURE_AUTHORITY_HOST":   "https://127.0.0.1:1",
		"PROXY_IMDS_ADDRESS":     "http://" + silentAddress(t),
		"PROXY_IMDS_PASSTHROUGH": "off",
	})
	for _, test := range []struct {
		clientID, resource string
		args               []string
		wantError          string // empty: the flags are valid
	}{
		{"", defaultResource, nil, ""},
		{other, "api://orders.example.test/.default", nil, ""},
		{checkClientID, defaultResource, []string{allowed}, ""},
		{other, defaultResource, []string{allowed}, `--client-id "` + other + `": must be one of --allowed-client-ids`},
		{"foo", defaultResource, nil, `--client-id "foo": must be a GUID`},
		{"foo\n" + strings.Repeat("x", 10_000), defaultResource, nil, "--client-id "},
		{"", "vault", nil, `--resource "vault"`},
		{"", "https://a.example.test b", nil, "--resource "},
		{"", "https://a.example.test/" + strings.Repeat("x", 2_000), nil, "--resource "},
	} {
		args := append([]string{"check", "--resource=" + test.resource, "--client-id=" + test.clientID}, test.args...)
		cfg, err := parseConfig(test.args, environment, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		_, err = parseCheck(args[1:], environment, io.Discard)
		if got := proxyAnswers(t, cfg, test.clientID, test.resource); got != (test.wantError == "") || got != (err == nil) {
			t.Errorf("%.200q: answered by the proxy: %t; error of the check: %v; want a valid request: %t", args, got, err, test.wantError == "")
		}
		if test.wantError == "" {
			continue
		}
		var stdout, stderr bytes.Buffer
		code := run(t.Context(), args, environment, &stdout, &stderr)
		if line := stderr.String(); code != exitUsage || !strings.HasPrefix(line, "proxy: "+test.wantError) || strings.Count(line, "\n") != 1 || len(line) > 1000 {
			t.Errorf("%.200q: got exit status %d, %q; want %d and one line that begins with %q", args, code, line, exitUsage, "proxy: "+test.wantError)
		}
		if stdout.Len() > 0 {
			t.Errorf("%.200q: got a report, want none:\n%s", args, &stdout)
		}
	}
}

// anyToken returns a token for every request.
type anyToken struct{}

func (anyToken) Token(context.Context, tokens.Request) (tokens.Result, error) {
	return tokens.Result{Token: exchange.Token{AccessToken: "a-token", NotBefore: time.Now(), ExpiresOn: time.Now().Add(time.Hour)}}, nil
}

// proxyAnswers reports whether the proxy's handler answers such a request with a token.
func proxyAnswers(t *testing.T, cfg config, clientID, resource string) bool {
	t.Helper()
	handlerConfig := cfg.handlerConfig()
	handlerConfig.Tokens = anyToken{}
	handler, err := imds.New(handlerConfig)
	if err != nil {
		t.Fatal(err)
	}
	query := url.Values{"resource": {resource}}
	if clientID != "" {
		query.Set("client_id", clientID)
	}
	r := httptest.NewRequest(http.MethodGet, "/metadata/identity/oauth2/token?"+query.Encode(), nil)
	r.Host = "169.254.169.254"
	r.Header.Set("Metadata", "true")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w.Code == http.StatusOK
}

// TestCheckInterrupted: an interrupted check reports the interruption, and not that Entra is
// down.
func TestCheckInterrupted(t *testing.T) {
	p := newCheckedPod(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	code := run(ctx, []string{"check"}, p.getenv, &stdout, &stderr)
	if code != exitFailure || stderr.String() != "proxy: interrupted\n" {
		t.Errorf("got exit status %d, %q; want %d, interrupted", code, &stderr, exitFailure)
	}
}
