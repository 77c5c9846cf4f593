package exchange_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// lines returns the log lines with the message.
func (p *pod) lines(t *testing.T, message string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(p.log.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("not JSON: %s", line)
		}
		if fields["msg"] == message {
			out = append(out, fields)
		}
	}
	return out
}

func TestFailureIsLoggedWithItsFix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		p.idp.AddApplication(entra.Application{ClientID: clientID}) // without a credential
		s := p.service(t)
		_, err := p.get(t, s)
		e := wantKind(t, err, exchange.FederationMismatch)
		synctest.Wait()
		lines := p.lines(t, "token exchange failed")
		if len(lines) != 1 {
			t.Fatalf("got %d lines: %s", len(lines), p.log.String())
		}
		line := lines[0]
		last := p.idp.Exchanges()[maxTries-1]
		for field, want := range map[string]any{
			"level":          "warn",
			"tenant_id":      p.idp.TenantID(),
			"client_id":      clientID,
			"resource":       resource,
			"aadsts":         float64(last.Code),
			"trace_id":       last.TraceID,
			"correlation_id": last.CorrelationID,
		} {
			if line[field] != want {
				t.Errorf("%s: got %v, want %v", field, line[field], want)
			}
		}
		if e.TraceID != last.TraceID || e.CorrelationID != last.CorrelationID {
			t.Errorf("the error has trace ID %s and correlation ID %s", e.TraceID, e.CorrelationID)
		}
		token, ok := line["federated_token"].(map[string]any)
		if !ok || token["iss"] != p.idp.Issuer() || token["sub"] != subject || token["aud"] != entra.DefaultAudience || token["exp"] == "" {
			t.Errorf("federated_token: got %v", line["federated_token"])
		}
		hint := fmt.Sprint(line["hint"])
		for _, want := range []string{
			"az identity federated-credential create --name ",
			fmt.Sprintf("--issuer '%s' --subject '%s' --audiences '%s'", p.idp.Issuer(), subject, entra.DefaultAudience),
			"az ad app federated-credential create --id '" + clientID + "'",
		} {
			if !strings.Contains(hint, want) {
				t.Errorf("the hint lacks %q: %s", want, hint)
			}
		}
	})
}

// Claims are chosen by people who may create service accounts. An operator pastes the hint into a
// shell.
func TestHintIsSafeToPaste(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		p.idp.FailAlways(entra.FaultAADSTS(700213))
		hostile := "x'; rm -rf ~; echo '`id`$(id)\"\\\n\x1b[2J"
		if err := p.token.Write(p.idp.SignFederatedToken(entra.Claims{Subject: hostile, Issuer: hostile, Audience: hostile})); err != nil {
			t.Fatal(err)
		}
		_, err := p.get(t, p.service(t))
		hint := wantKind(t, err, exchange.FederationMismatch).Hint
		inside := strings.Split(hint, "'")
		if len(inside) != 11 { // five quoted parts
			t.Fatalf("the quotes do not match: %s", hint)
		}
		for i := 1; i < 10; i += 2 {
			if strings.ContainsAny(inside[i], "`$\\\n\x1b") {
				t.Errorf("unsafe: %q", inside[i])
			}
		}
	})
}

// The issuer is chosen by the author of the token. curl takes one that begins with a dash for an
// option.
func TestHintHasNoCommandForAnInvalidURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		p.idp.FailAlways(entra.FaultAADSTS(50166))
		if err := p.token.Write(p.idp.SignFederatedToken(entra.Claims{Issuer: "-K/tmp/x"})); err != nil {
			t.Fatal(err)
		}
		_, err := p.get(t, p.service(t))
		if e, ok := errors.AsType[*exchange.Error](err); !ok || e.Hint == "" || strings.Contains(e.Hint, "curl") || strings.Contains(e.Hint, "-K") {
			t.Errorf("got %v", err)
		} else {
			t.Log(e.Hint)
		}
	})
}

// TestLabelsAreBounded: unknown codes in responses make no new labels.
func TestLabelsAreBounded(t *testing.T) {
	for _, test := range []struct {
		err  exchange.Error
		want string
	}{
		{exchange.Error{Kind: exchange.UnknownIdentity, Code: 700016}, "700016"},
		{exchange.Error{Kind: exchange.Unavailable, Code: 123456789}, "other"},
		{exchange.Error{Kind: exchange.FederationMismatch, Code: 7002139}, "7002139"},
		{exchange.Error{Kind: exchange.Unavailable, Code: -1}, "other"},
		{exchange.Error{Kind: exchange.Throttled}, "throttled"},
		{exchange.Error{Kind: exchange.FederatedTokenUnusable}, "federated_token_unusable"},
	} {
		if got := test.err.Label(); got != test.want {
			t.Errorf("%+v: got %q, want %q", test.err, got, test.want)
		}
	}
}

func TestKindsHaveNames(t *testing.T) {
	for kind := exchange.Kind(-1); kind < 200; kind++ {
		known := !strings.HasPrefix(kind.String(), "kind(")
		want := kind >= exchange.UnknownIdentity && kind <= exchange.DeadlineExceeded
		if known != want {
			t.Errorf("kind %d has the name %s", int(kind), kind)
		}
		if want := known && kind <= exchange.InvalidTenant; kind.Permanent() != want {
			t.Errorf("%s: permanent %t, want %t", kind, kind.Permanent(), want)
		}
	}
}
