package exchange_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
	"imds-oidc-proxy/test/kit/entra"
)

// secret is in all data that must not reach callers or the log.
const secret = "c4n4ry-eyJhbGciOiJSUzI1NiJ9"

// fault is a fault of Entra, and the result of a request without a cached token.
type fault struct {
	name  string
	fault entra.Fault
	want  exchange.Kind // zero: a token
	posts int           // token requests of a first request; atLeast2 depends on the jitter
}

const atLeast2 = -2

func faults() []fault {
	const retried = maxTries
	huge := strings.Repeat("x", exchange.MaxBody+1)
	return []fault{
		{"none", entra.FaultSlow(0), 0, 1},
		{"slow", entra.FaultSlow(time.Second), 0, 1},
		{"70021 no federated credential", entra.FaultAADSTS(70021), exchange.FederationMismatch, retried},
		{"70025 no credential at all", entra.FaultAADSTSAs(401, "invalid_client", 70025, secret), exchange.FederationMismatch, retried},
		{"700211 issuer", entra.FaultAADSTS(700211), exchange.FederationMismatch, retried},
		{"700212 audience", entra.FaultAADSTS(700212), exchange.FederationMismatch, retried},
		{"700213 subject", entra.FaultAADSTS(700213), exchange.FederationMismatch, retried},
		{"7002138 case of the subject", entra.FaultAADSTS(7002138), exchange.FederationMismatch, retried},
		{"a variant of 700213", entra.FaultAADSTSAs(401, "invalid_client", 7002139, secret), exchange.FederationMismatch, retried},
		{"700233 expression", entra.FaultAADSTSAs(401, "invalid_client", 700233, secret), exchange.FederationMismatch, 1},
		{"90061 issuer unreachable", entra.FaultAADSTSAs(400, "invalid_request", 90061, secret), exchange.IssuerUnusable, retried},
		{"501661 issuer unreachable", entra.FaultAADSTS(501661), exchange.IssuerUnusable, retried},
		{"700024 time range", entra.FaultAADSTS(700024), exchange.FederatedTokenUnusable, 2},
		{"700027 signature", entra.FaultAADSTS(700027), exchange.FederatedTokenUnusable, 2},
		{"700016 application", entra.FaultAADSTS(700016), exchange.UnknownIdentity, 1},
		{"500011 resource", entra.FaultAADSTS(500011), exchange.InvalidResource, 1},
		{"70011 scope", entra.FaultAADSTS(70011), exchange.InvalidScope, 1},
		{"90002 tenant", entra.FaultAADSTS(90002), exchange.InvalidTenant, 1},
		{"7000112 disabled", entra.FaultAADSTSAs(401, "invalid_client", 7000112, secret), exchange.UnauthorizedClient, 1},
		{"7000229 service principal", entra.FaultAADSTSAs(400, "unauthorized_client", 7000229, secret), exchange.Refused, retried},
		{"700223 policy", entra.FaultAADSTSAs(401, "invalid_client", 700223, secret), exchange.UnauthorizedClient, 1},
		{"90023 malformed", entra.FaultAADSTSAs(400, "invalid_request", 90023, secret), exchange.Refused, 2},
		{"a malformed request with a 5xx", entra.FaultAADSTSAs(503, "server_error", 90023, secret), exchange.Unavailable, retried},
		{"unknown code, plain error", entra.FaultAADSTSAs(400, "invalid_scope", 99999999, secret), exchange.InvalidScope, 1},
		{"unknown code, unauthorized", entra.FaultAADSTSAs(400, "unauthorized_client", 99999999, secret), exchange.Refused, 2},
		{"unknown code, temporary", entra.FaultAADSTSAs(400, "temporarily_unavailable", 99999999, secret), exchange.Unavailable, retried},
		{"unknown code with a 5xx", entra.FaultAADSTSAs(503, "invalid_client", 99999999, secret), exchange.Unavailable, retried},
		{"an OAuth error without a code", entra.FaultJSON(401, `{"error":"invalid_client"}`), exchange.Refused, 2},
		{"a code in the description only", entra.FaultStatus(400, `{"error":"invalid_request","error_description":"AADSTS700016: `+secret+`"}`), exchange.UnknownIdentity, 1},
		{"a code that is quoted", entra.FaultStatus(400, `{"error":"invalid_request","error_description":"not AADSTS700016"}`), exchange.Refused, 2},
		{"invalid codes", entra.FaultStatus(400, `{"error_codes":["700016"],"error_description":"AADSTS70011: x"}`), exchange.InvalidScope, 1},
		{"unknown code, unclear error", entra.FaultAADSTSAs(400, "invalid_client", 99999999, secret), exchange.Refused, 2},
		{"permanent code with a 5xx", entra.FaultAADSTSAs(503, "server_error", 700016, secret), exchange.Unavailable, retried},
		{"429", entra.FaultThrottle(0), exchange.Throttled, atLeast2},
		{"429 with a short Retry-After", entra.FaultThrottle(time.Second), exchange.Throttled, retried},
		{"429 with Retry-After", entra.FaultThrottle(9 * time.Second), exchange.Throttled, 1},
		{"429 until a date", entra.FaultThrottleUntil(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)), exchange.Throttled, 1},
		{"500", entra.FaultStatus(500, secret), exchange.Unavailable, retried},
		{"503 without a body", entra.FaultStatus(503, ""), exchange.Unavailable, retried},
		{"403 with HTML", entra.FaultHTML(403), exchange.Unavailable, 1},
		{"HTML with a 200", entra.FaultHTML(200), exchange.Unavailable, retried},
		{"malformed JSON", entra.FaultMalformedJSON(secret), exchange.Unavailable, retried},
		{"redirect", entra.FaultRedirect(307, "https://"+secret+".example.test/"), exchange.Unavailable, 1},
		{"hang", entra.FaultHang(), exchange.DeadlineExceeded, retried},
		{"reset", entra.FaultReset(), exchange.Unavailable, retried},
		{"truncated", entra.FaultTruncated(), exchange.Unavailable, retried},
		{"a huge body", entra.FaultStatus(200, huge), exchange.Unavailable, retried},
		{"a huge error", entra.FaultStatus(400, huge), exchange.Unavailable, 1},
		{"429 with a huge body", entra.FaultStatus(429, huge), exchange.Throttled, atLeast2},
		{"no access_token", entra.FaultWithout("access_token"), exchange.Unavailable, retried},
		{"no expires_in", entra.FaultWithout("expires_in", "expires_on"), exchange.Unavailable, retried},
		{"expires at once", edited("expires_in", 0), exchange.Unavailable, 1},
		{"expires in a second", edited("expires_in", 1), exchange.Unavailable, 1},
		{"expired", edited("expires_in", -3600), exchange.Unavailable, 1},
		{"valid for years", edited("expires_in", 10*365*24*3600), exchange.Unavailable, 1},
		{"expiry out of range", edited("expires_in", 1<<40), exchange.Unavailable, 1},
		{"expiry is no number", edited("expires_in", secret), exchange.Unavailable, retried},
		{"a token with a line break", edited("access_token", secret+"\r\nX-Injected: 1"), exchange.Unavailable, 1},
		{"a token with a quote", edited("access_token", secret+`"`), exchange.Unavailable, 1},
		{"an error with a 200", edited("error", "invalid_grant "+secret), exchange.Unavailable, retried},
	}
}

// edited changes a field of the token response.
func edited(member string, value any) entra.Fault {
	return entra.FaultEdit(member, func(answer map[string]any) {
		delete(answer, "expires_on")
		answer[member] = value
	})
}

// eachFault runs test for each fault with a new service, in one bubble. The faults share one fake
// Entra, because generating its keys takes half a second.
func eachFault(t *testing.T, all []fault, test func(*testing.T, *pod, *service, fault)) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{TokenLifetime: time.Hour})
		for _, c := range all {
			if err := p.token.Renew(); err != nil {
				t.Fatal(err)
			}
			p.idp.Reset()
			p.log.Reset()
			test(t, p, p.service(t), c)
			if t.Failed() {
				t.Fatalf("with the fault %q; the log:\n%s", c.name, p.log.String())
			}
		}
	})
}

func TestFaultsWithoutACachedToken(t *testing.T) {
	eachFault(t, faults(), func(t *testing.T, p *pod, s *service, c fault) {
		p.idp.FailAlways(c.fault)
		got, err := p.getInTime(t, s)
		if c.want == 0 && err != nil {
			t.Errorf("got error %v, want a token", err)
		}
		if c.want != 0 {
			wantKind(t, err, c.want)
		}
		if got := p.idp.Counts().Token; got != c.posts && (c.posts != atLeast2 || got < 2 || got > maxTries) {
			t.Errorf("%d token requests, want %d", got, c.posts)
		}
		checkNoSecret(t, p, got, err)
		p.checkRecovery(t, s)
	})
}

func TestFaultsWithACachedToken(t *testing.T) {
	eachFault(t, faults(), func(t *testing.T, p *pod, s *service, c fault) {
		stop := run(t, s)
		defer stop()
		if _, err := p.get(t, s); err != nil {
			t.Fatal(err)
		}
		p.idp.FailAlways(c.fault)
		for range 59 {
			time.Sleep(time.Minute)
			began := time.Now()
			got, err := p.get(t, s)
			if err != nil || time.Since(began) > 0 {
				t.Fatalf("with a cached token: answered after %s, error %v", time.Since(began), err)
			}
			checkNoSecret(t, p, got, err)
		}
		if got := p.idp.Counts().Token; got < 2 {
			t.Errorf("%d token requests: the fault did not occur", got)
		}
	})
}

func TestFaultsOfDiscovery(t *testing.T) {
	const retried = maxTries
	eachFault(t, []fault{
		{"unknown tenant", entra.FaultAADSTS(90002), exchange.InvalidTenant, 1},
		{"tenant of another cloud", entra.FaultAADSTSAs(400, "invalid_request", 90038, secret), exchange.InvalidTenant, 1},
		{"unknown code", entra.FaultAADSTSAs(400, "invalid_request", 99999999, secret), exchange.Refused, 2},
		{"429 with Retry-After", entra.FaultThrottle(9 * time.Second), exchange.Throttled, 1},
		{"503", entra.FaultStatus(503, secret), exchange.Unavailable, retried},
		{"HTML with a 200", entra.FaultHTML(200), exchange.Unavailable, retried},
		{"malformed JSON", entra.FaultMalformedJSON(secret), exchange.Unavailable, retried},
		{"redirect", entra.FaultRedirect(302, "https://"+secret+".example.test/"), exchange.Unavailable, 1},
		{"hang", entra.FaultHang(), exchange.DeadlineExceeded, retried},
		{"reset", entra.FaultReset(), exchange.Unavailable, retried},
		{"truncated", entra.FaultTruncated(), exchange.Unavailable, retried},
		{"a huge body", entra.FaultStatus(200, strings.Repeat("x", exchange.MaxBody+1)), exchange.Unavailable, retried},
		{"no endpoints", entra.FaultStatus(200, `{"issuer":"https://login.example.test/"}`), exchange.Unavailable, retried},
		{"a foreign issuer", discovered("https://"+secret+".example.test/", "https://login.example.test/token"), exchange.Unavailable, 1},
		{"a token endpoint with http", discovered("https://login.example.test/", "http://login.example.test/token"), exchange.Unavailable, 1},
	}, func(t *testing.T, p *pod, s *service, c fault) {
		p.idp.FailAlways(c.fault.On(entra.TenantDiscovery))
		got, err := p.getInTime(t, s)
		wantKind(t, err, c.want)
		if got := p.idp.Counts().Token; got != 0 {
			t.Errorf("%d token requests, want none", got)
		}
		if got := p.idp.Counts().TenantDiscovery; got != c.posts {
			t.Errorf("%d discovery requests, want %d", got, c.posts)
		}
		checkNoSecret(t, p, got, err)
		p.checkRecovery(t, s)
	})
}

// TestReportedAnswers: answers of Entra from bug reports, in testdata/entra.json, are tried again
// and reported as what they are. A retry that succeeds returns a token.
func TestReportedAnswers(t *testing.T) {
	var reported []struct {
		Status int
		Body   json.RawMessage
	}
	content, err := os.ReadFile("testdata/entra.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &reported); err != nil {
		t.Fatal(err)
	}
	wants := map[int]struct {
		kind       exchange.Kind
		posts      int
		text, hint string
	}{
		501661:  {exchange.IssuerUnusable, maxTries, "entra cannot reach the federated token's issuer (AADSTS501661)", "/.well-known/openid-configuration"},
		7002138: {exchange.FederationMismatch, maxTries, "differs in case", "az identity federated-credential update --name NAME"},
		7000999: {exchange.Refused, 2, "entra refused the request (AADSTS7000999)", "https://login.microsoftonline.com/error?code=7000999"},
	}
	for _, answer := range reported {
		fault := entra.FaultJSON(answer.Status, string(answer.Body))
		synctest.Test(t, func(t *testing.T) {
			p := bubblePod(t, entra.Config{})
			p.idp.FailAlways(fault)
			_, err := p.getInTime(t, p.service(t))
			e, _ := errors.AsType[*exchange.Error](err)
			if e == nil {
				t.Fatalf("%s: got error %v", answer.Body, err)
			}
			want, ok := wants[e.Code]
			if !ok || e.Kind != want.kind || !strings.Contains(e.Error(), want.text) || !strings.Contains(e.Hint, want.hint) {
				t.Errorf("%s: got kind %s, %q, hint %q", answer.Body, e.Kind, e, e.Hint)
			}
			if got := p.idp.Counts().Token; got != want.posts {
				t.Errorf("%s: %d token requests, want %d", answer.Body, got, want.posts)
			}
			delete(wants, e.Code)

			p.idp.Reset()
			p.idp.FailNext(1, fault)
			if _, err := p.get(t, p.service(t)); err != nil {
				t.Errorf("%s once: %v", answer.Body, err)
			}
		})
	}
	if len(wants) > 0 {
		t.Errorf("no answer has the codes of %v", wants)
	}
}

// discovered is a complete OpenID configuration with the issuer and the token endpoint.
func discovered(issuer, tokenEndpoint string) entra.Fault {
	return entra.FaultStatus(200, fmt.Sprintf(
		`{"issuer":%q,"authorization_endpoint":"https://login.example.test/authorize","token_endpoint":%q}`, issuer, tokenEndpoint))
}

func (p *pod) getInTime(t *testing.T, s *service) (tokens.Result, error) {
	t.Helper()
	began := time.Now()
	got, err := p.get(t, s)
	if took := time.Since(began); took > exchangeTimeout {
		t.Errorf("answered after %s, want within %s", took, exchangeTimeout)
	}
	return got, err
}

// checkRecovery ends the fault and checks that a request succeeds after the longest backoff.
func (p *pod) checkRecovery(t *testing.T, s *service) {
	t.Helper()
	p.idp.Heal()
	time.Sleep(exchange.MaxRetryAfter * 3 / 2)
	if _, err := p.get(t, s); err != nil {
		t.Errorf("after the fault: %v", err)
	}
}

// checkNoSecret checks that the log, the result and the error, in every format, contain neither
// secret nor the tokens of the pod.
func checkNoSecret(t *testing.T, p *pod, result tokens.Result, err error) {
	t.Helper()
	synctest.Wait() // the log is written after callers are answered
	token := p.token.Token()
	output := p.log.String() + fmt.Sprintf("%v %+v %s %#v", result, result, result, result)
	encoded, _ := json.Marshal(result)
	output += string(encoded)
	if err != nil {
		output += fmt.Sprintf("%v %+v %#v %q %d", err, err, err, err, err)
	}
	parts := strings.Split(token, ".")
	for _, hidden := range []string{secret, token, parts[1], parts[2], result.Token.AccessToken} {
		if hidden != "" && strings.Contains(output, hidden) {
			t.Errorf("%.20s... appears in: %s", hidden, output)
		}
	}
}
