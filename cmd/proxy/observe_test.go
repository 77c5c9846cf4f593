package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	logobserver "go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/loglimit"
	"imds-oidc-proxy/internal/tokens"
	"imds-oidc-proxy/test/kit/entra"
)

const (
	testClientID = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	testSubject  = "system:serviceaccount:shop:cart"
	testResource = "https://vault.example.test"
	tokenQuery   = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource="

	// appServiceQuery gets a token with the header secret: testSecret.
	appServiceQuery = "/msi/token?api-version=2017-09-01&resource=" + testResource
	testSecret      = "0f1e2d3c-0000-4000-8000-4b5a69788796"

	// readyTimeout is long enough for a start on a machine that is busy with other tests.
	readyTimeout = 30 * time.Second
)

// pod is the environment that a proxy needs: a stand-in for Entra that knows its identity, a
// federated token, and free ports.
type pod struct {
	idp         *entra.Server
	environment map[string]string
	port, admin string
}

func newPod(t *testing.T) *pod {
	t.Helper()
	idp, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idp.Close() })
	idp.AddApplication(entra.Application{ClientID: testClientID, Credentials: []entra.FederatedCredential{{Subject: testSubject}}})
	idp.AddResource(testResource)
	dir := t.TempDir()
	if err := idp.WriteCA(filepath.Join(dir, "ca.pem")); err != nil {
		t.Fatal(err)
	}
	token, err := idp.ProjectToken(entra.ProjectedTokenConfig{Dir: dir, Subject: testSubject})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{idp: idp}
	if p.port, err = freePort(); err != nil {
		t.Fatal(err)
	}
	if p.admin, err = freePort(); err != nil {
		t.Fatal(err)
	}
	p.environment = map[string]string{
		"AZURE_CLIENT_ID":            testClientID,
		"AZURE_TENANT_ID":            idp.TenantID(),
		"AZURE_FEDERATED_TOKEN_FILE": token.Path(),
		"AZURE_AUTHORITY_HOST":       idp.AuthorityHost(),
		"PROXY_CA_FILE":              filepath.Join(dir, "ca.pem"),
		"PROXY_PORT":                 p.port,
		"PROXY_ADMIN_ADDRESS":        "127.0.0.1:" + p.admin,
		// The metadata address of this machine may be a real one.
		"PROXY_IMDS_PASSTHROUGH": "off",
		"PROXY_LOG_LEVEL":        "debug",
	}
	return p
}

// syncBuffer is a buffer for a log that is read while the proxy writes to it.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// runPod runs the whole program until the test ends, and returns its log.
func runPod(t *testing.T, p *pod) *syncBuffer {
	t.Helper()
	log, _ := startPod(t, p)
	return log
}

// startPod runs the whole program until it is stopped, or the test ends.
func startPod(t *testing.T, p *pod) (log *syncBuffer, stop func()) {
	t.Helper()
	log = new(syncBuffer)
	ctx, end := context.WithCancel(context.Background())
	ended := make(chan int)
	go func() {
		ended <- run(ctx, nil, func(name string) string { return p.environment[name] }, io.Discard, log)
	}()
	stop = sync.OnceFunc(func() {
		end()
		if code := <-ended; code != exitOK {
			t.Errorf("got exit code %d, want %d:\n%s", code, exitOK, log)
		}
	})
	t.Cleanup(stop)
	p.waitReady(t)
	return log, stop
}

func (p *pod) waitReady(t *testing.T) {
	t.Helper()
	for _, port := range []string{p.port, p.admin} {
		for deadline := time.Now().Add(readyTimeout); ; {
			resp, err := http.Get("http://127.0.0.1:" + port + "/readyz")
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("port %s was not ready within %s: %v", port, readyTimeout, err)
			}
			time.Sleep(10 * time.Millisecond) // between polls
		}
	}
}

func fetch(t *testing.T, port, target string, header http.Header) (int, string) {
	t.Helper()
	r, err := http.NewRequest("GET", "http://127.0.0.1:"+port+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header.Clone()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// TestMetricsCensusAndLog sends several kinds of requests to a running proxy. Each appears in the
// metrics and the census, at both ports, and in the log; none of these contains a secret.
func TestMetricsCensusAndLog(t *testing.T) {
	for _, format := range []string{"json", "console"} {
		t.Run(format, func(t *testing.T) { testMetricsCensusAndLog(t, format) })
	}
}

func testMetricsCensusAndLog(t *testing.T, format string) {
	const canary = "canary-7c1f"
	p := newPod(t)
	p.environment["PROXY_LOG_FORMAT"] = format
	log := runPod(t, p)
	old := http.Header{"Metadata": {"true"}, "User-Agent": {"azsdk-go-azidentity/v1.0.0 (go1.20; " + canary + ")"},
		"X-Ms-Client-Request-Id": {"2f7e81c4-9a3b-4d56-8e1f-b05c6d7a4932"}}
	hostile := http.Header{"Metadata": {"true"}, "User-Agent": {canary + "/" + canary + " curl/1." + canary},
		"X-Client-Sku": {canary}, "X-Client-Ver": {canary}, "X-Ms-Client-Request-Id": {canary}, "Authorization": {"Bearer " + canary}}

	assertion, err := os.ReadFile(p.environment["AZURE_FEDERATED_TOKEN_FILE"])
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{canary, strings.TrimSpace(string(assertion))}
	for range 2 {
		status, body := fetch(t, p.port, tokenQuery+testResource, old)
		if status != 200 {
			t.Fatalf("got %d %s, want 200\n%s", status, body, log)
		}
		_, token, _ := strings.Cut(body, `"access_token":"`)
		token, _, _ = strings.Cut(token, `"`)
		secrets = append(secrets, token)
	}
	fetch(t, p.port, tokenQuery+testResource, hostile)
	fetch(t, p.port, tokenQuery+testResource, http.Header{"User-Agent": {"curl/8.0"}}) // no Metadata header
	fetch(t, p.port, tokenQuery+"https://unknown.example.test", old)
	fetch(t, p.port, "/latest/meta-data/", nil)
	fetch(t, p.port, "/metadata/instance", old)
	if status, _ := fetch(t, p.admin, tokenQuery+testResource, old); status != 404 {
		t.Errorf("the token endpoint at the admin address: got %d, want 404", status)
	}

	for _, port := range []string{p.port, p.admin} {
		_, metrics := fetch(t, port, "/metrics", nil)
		wantLines(t, metrics,
			`imds_oidc_proxy_token_requests_total{result="success",source="entra"} 1`,
			`imds_oidc_proxy_token_requests_total{result="success",source="cache"} 2`,
			`imds_oidc_proxy_token_requests_total{result="refused",source="none"} 1`,
			`imds_oidc_proxy_token_requests_total{result="error",source="none"} 1`,
			`imds_oidc_proxy_refused_requests_total{reason="no_metadata_header"} 1`,
			`imds_oidc_proxy_refused_requests_total{reason="not_found"} 1`,
			`imds_oidc_proxy_forwarded_requests_total{result="refused"} 1`,
			`imds_oidc_proxy_exchange_errors_total{code="500011"} 1`,
			`imds_oidc_proxy_exchange_duration_seconds_count 2`,
			`imds_oidc_proxy_request_duration_seconds_count{handler="token"} 5`,
			`imds_oidc_proxy_cache_entries 1`,
			`imds_oidc_proxy_callers{sdk="go-azidentity",version="1.0.0",workload_identity="no"} 1`,
			`imds_oidc_proxy_callers{sdk="curl",version="",workload_identity="unknown"} 1`)
		for _, name := range []string{"soonest_token_expiry_seconds", "federated_token_age_seconds", "federated_token_expiry_seconds", `build_info{version="dev"`} {
			if !strings.Contains(metrics, "\nimds_oidc_proxy_"+name) {
				t.Errorf("metric %s is missing", name)
			}
		}
		_, clients := fetch(t, port, "/debug/clients", nil)
		if !strings.Contains(clients, `"upgrade": "azidentity (Go) 1.3.0 or later"`) {
			t.Errorf("/debug/clients: got %s, want the upgrade for azidentity", clients)
		}
		_, ready := fetch(t, port, "/readyz?verbose", nil)
		checkNoSecret(t, secrets, metrics+clients+ready)
	}
	checkNoSecret(t, secrets, log.String())
	for text, want := range map[string]int{
		"new caller":                     2,
		"successfully acquired token":    3,
		old["X-Ms-Client-Request-Id"][0]: 4, // a line for each request to the token port with this ID
	} {
		if got := strings.Count(log.String(), text); got != want {
			t.Errorf("got %d lines with %q, want %d:\n%s", got, text, want, log)
		}
	}
	if got := strings.HasPrefix(log.String(), "{"); got != (format == "json") {
		t.Errorf("got this log, want the format %s:\n%s", format, log)
	}
}

func wantLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("missing line: %s", line)
		}
	}
}

func checkNoSecret(t *testing.T, secrets []string, text string) {
	t.Helper()
	for _, secret := range secrets {
		if secret == "" || strings.Contains(text, secret) {
			t.Errorf("found a secret in:\n%s", text)
		}
	}
}

// infoLog returns a logger at the default level, info, and the lines that it has logged.
func infoLog() (*zap.Logger, *logobserver.ObservedLogs) {
	core, lines := logobserver.New(zap.InfoLevel)
	return zap.New(core), lines
}

// TestRefusedRequestsInCensus: a client whose token request is refused is in the census, because
// it still depends on the proxy. A request that no IMDS client would send is not. The alert about
// refusals refers to the log only for refusals that are logged at the default level.
func TestRefusedRequestsInCensus(t *testing.T) {
	rule, err := os.ReadFile("../../deploy/monitoring/prometheusrule.yaml")
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`if match "([^"]+)" \$labels.reason`).FindSubmatch(rule)
	if match == nil {
		t.Fatal("found no alert that distinguishes the refusals that are logged at debug")
	}
	debugOnly := regexp.MustCompile(string(match[1]))
	const token = tokenQuery + testResource
	for _, test := range []struct {
		method, target, header string
		reason                 string
		inCensus               bool
	}{
		{"GET", token, "Metadata: true", "", true},
		{"GET", token + "&api-version=1", "Metadata: true", "duplicate_param", true},
		{"GET", strings.TrimSuffix(tokenQuery, "&resource="), "Metadata: true", "no_resource", true},
		{"GET", tokenQuery + "vault.azure.net", "Metadata: true", "malformed_resource", true},
		{"GET", token + "&object_id=66666666-6666-4666-8666-666666666666", "Metadata: true", "identity_not_found", true},
		{"POST", token, "Metadata: true", "method_not_allowed", true},
		{"POST", token, "", "method_not_allowed", false},
		{"GET", token, "", "no_metadata_header", false},
		{"GET", token, "Metadata: true\r\nX-Forwarded-For: 192.0.2.1", "forwarded_for", false},
		{"GET", "http://attacker.example.test" + token, "Metadata: true", "foreign_host", false},
		{"GET", appServiceQuery, "X-IDENTITY-HEADER: " + testSecret, "", true},
		{"GET", appServiceQuery, "secret: " + testSecret, "", true},
		{"GET", appServiceQuery + "&client_id=app", "secret: " + testSecret, "identity_not_found", true},
		{"POST", appServiceQuery, "secret: " + testSecret, "method_not_allowed", true},
		{"POST", appServiceQuery, "", "method_not_allowed", false},
		{"GET", appServiceQuery, "Metadata: true", "no_secret_header", false},
		{"GET", appServiceQuery, "secret: " + testSecret[1:], "wrong_secret_header", false},
		{"GET", appServiceQuery, "secret: " + testSecret + "\r\nX-Forwarded-For: 192.0.2.1", "forwarded_for", false},
		{"GET", "http://attacker.example.test" + appServiceQuery, "secret: " + testSecret, "foreign_host", false},
		{"GET", "/latest/meta-data/", "Metadata: true", "not_found", false},
		{"GET", "/metadata/instance?api-version=2021-02-01", "Metadata: true", "forwarding_off", false},
		{"GET", "/metadata/identity/getplatformmetadata?cred-api-version=2.0", "", "identity_path", false},
	} {
		log, lines := infoLog()
		observed := newObserver(loglimit.New(nil), new(logging.Queue), zap.NewNop())
		got := ""
		h, err := imds.New(imds.Config{
			Tokens: cached{tokens.Result{Source: tokens.SourceCache, Token: exchange.Token{
				AccessToken: "t", NotBefore: time.Now(), ExpiresOn: time.Now().Add(time.Hour)}}},
			TenantID: "11111111-1111-1111-1111-111111111111", DefaultClientID: testClientID, AppServiceHeader: testSecret, Log: log,
			Observe: func(r *http.Request, e imds.Event) { got = e.Refusal; observed.request(r, e) },
		})
		if err != nil {
			t.Fatal(err)
		}
		text := test.method + " " + test.target + " HTTP/1.1\r\nHost: 169.254.169.254\r\n"
		if test.header != "" {
			text += test.header + "\r\n"
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text + "\r\n")))
		if err != nil {
			t.Fatal(err)
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
		if got != test.reason {
			t.Errorf("%s: got the refusal reason %q, want %q", text, got, test.reason)
		}
		if inCensus := len(observed.census.Entries()) == 1; inCensus != test.inCensus {
			t.Errorf("%s: in the census: got %t, want %t", text, inCensus, test.inCensus)
		}
		if logged := lines.Len() > 0; test.reason != "" && logged == debugOnly.MatchString(test.reason) {
			t.Errorf("%s: logged at info: %t, but the text of the alert says the opposite", test.reason, logged)
		}
	}
}

// TestAppService: with PROXY_APP_SERVICE_HEADER, the token port answers in the protocol of App
// Service, and the admin port does not. Metrics and census count the requests. The secret is in
// no answer and not in the log.
func TestAppService(t *testing.T) {
	p := newPod(t)
	p.environment["PROXY_APP_SERVICE_HEADER"] = testSecret
	log := runPod(t, p)
	status, body := fetch(t, p.port, appServiceQuery, http.Header{"Secret": {testSecret}, "User-Agent": {"azsdk-python-identity/1.8.0 Python/3.11"}})
	if status != http.StatusOK || !strings.Contains(body, `"client_id":"`+testClientID+`"`) {
		t.Fatalf("got %d %s, want a token", status, body)
	}
	if status, body := fetch(t, p.port, appServiceQuery, http.Header{"X-Identity-Header": {"wrong"}}); status != http.StatusUnauthorized {
		t.Errorf("with a wrong secret: got %d %s, want 401", status, body)
	}
	if status, body := fetch(t, p.admin, appServiceQuery, http.Header{"Secret": {testSecret}}); status != http.StatusNotFound {
		t.Errorf("at the admin port: got %d %s, want 404", status, body)
	}
	_, metrics := fetch(t, p.admin, "/metrics", nil)
	wantLines(t, metrics,
		`imds_oidc_proxy_token_requests_total{result="success",source="entra"} 1`,
		`imds_oidc_proxy_token_requests_total{result="refused",source="none"} 1`,
		`imds_oidc_proxy_refused_requests_total{reason="wrong_secret_header"} 1`,
		`imds_oidc_proxy_request_duration_seconds_count{handler="app_service"} 2`)
	_, clients := fetch(t, p.admin, "/debug/clients", nil)
	if !strings.Contains(clients, "python-azure-identity") {
		t.Errorf("the census has no client:\n%s", clients)
	}
	checkNoSecret(t, []string{testSecret}, metrics+clients+log.String())
}

// TestRepeatedLinesAreLimited: a client that requests tokens in a loop gets all of them, but only
// part of its log lines is written. The metric and a line of the log count the dropped ones.
func TestRepeatedLinesAreLimited(t *testing.T) {
	p := newPod(t)
	delete(p.environment, "PROXY_LOG_LEVEL")
	log, stop := startPod(t, p)
	const requests = 500
	began := time.Now()
	for range requests {
		if status, body := fetch(t, p.port, tokenQuery+testResource, http.Header{"Metadata": {"true"}}); status != 200 {
			t.Fatalf("got %d %s, want 200", status, body)
		}
	}
	_, metrics := fetch(t, p.admin, "/metrics", nil)
	stop()
	maxLines := 200 + 5*(int(time.Since(began).Seconds())+1) // docs/metrics.md, The log
	got := strings.Count(log.String(), "successfully acquired token")
	if got < 200 || got > maxLines {
		t.Errorf("got %d lines about tokens, want 200 to %d", got, maxLines)
	}
	dropped := requests - got
	wantLines(t, metrics, fmt.Sprintf("imds_oidc_proxy_log_lines_left_out_total %d", dropped))
	if dropped == 0 || !strings.Contains(log.String(), fmt.Sprintf(`"lines":%d`, dropped)) {
		t.Errorf("got no line that reports %d dropped lines:\n%s", dropped, log)
	}
}

// TestRefreshesAreCounted: the metric counts refreshes by result.
func TestRefreshesAreCounted(t *testing.T) {
	observed, _ := newTestObserver(t, newTestIssuer(t), time.Hour)
	exchanges := observed.exchanges()
	exchanges.Refreshed(nil)
	exchanges.Refreshed(nil)
	exchanges.Refreshed(&exchange.Error{Kind: exchange.Unavailable})
	wantLines(t, ask(observed.metrics, "GET", "/metrics").Body.String(),
		`imds_oidc_proxy_refreshes_total{result="success"} 2`,
		`imds_oidc_proxy_refreshes_total{result="error"} 1`)
}

// TestLimitedRequestsAreCounted: the metric counts refusals by limit, and has a series for each
// limit of package tokens from the start.
func TestLimitedRequestsAreCounted(t *testing.T) {
	observed, _ := newTestObserver(t, newTestIssuer(t), time.Hour)
	scrape := func() string { return ask(observed.metrics, "GET", "/metrics").Body.String() }
	for _, limit := range []tokens.Limit{tokens.ErrExchangeRate, tokens.ErrRunningExchanges, tokens.ErrOverloaded} {
		line := fmt.Sprintf("imds_oidc_proxy_limited_requests_total{limit=%q} ", string(limit))
		wantLines(t, scrape(), line+"0")
		observed.exchanges().Limited(limit)
		wantLines(t, scrape(), line+"1")
	}
}

// TestFederatedTokenIsSampled: the sample has the issue time and the expiry of the federated token.
func TestFederatedTokenIsSampled(t *testing.T) {
	idp := newTestIssuer(t)
	observed, path := newTestObserver(t, idp, time.Hour)
	issued, expiry := time.Now().Add(-7*time.Minute), time.Now().Add(53*time.Minute)
	writeToken(t, idp, path, entra.Claims{Subject: testSubject, IssuedAt: issued, Expiry: expiry})
	s := observed.sample()
	if s.FederatedTokenIssued.Unix() != issued.Unix() || s.FederatedTokenExpiry.Unix() != expiry.Unix() {
		t.Errorf("got %s to %s, want %s to %s", s.FederatedTokenIssued, s.FederatedTokenExpiry, issued, expiry)
	}
	os.Remove(path)
	if s := observed.sample(); !s.FederatedTokenIssued.IsZero() || !s.FederatedTokenExpiry.IsZero() {
		t.Errorf("without a token: got %s to %s, want zero times", s.FederatedTokenIssued, s.FederatedTokenExpiry)
	}
}
