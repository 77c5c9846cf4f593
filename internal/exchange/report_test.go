package exchange_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// lines are the log lines with the message.
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

func TestFailureIsLoggedWithWhatMendsIt(t *testing.T) {
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
		last := p.idp.Exchanges()[exchange.MaxTries-1]
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

// A subject is chosen by whoever may make service accounts elsewhere; the hint is
// pasted into an operator's shell.
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

// An issuer is the word of whoever wrote the token: at the place of a URL, curl would
// read an option.
func TestHintGivesNoCommandForWhatIsNoURL(t *testing.T) {
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

func TestFailuresThatRepeatDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		s := p.service(t)
		p.idp.FailAlways(entra.FaultStatus(503, ""))
		began := time.Now()
		for time.Since(began) < time.Hour {
			if err := p.token.Renew(); err != nil {
				t.Fatal(err)
			}
			_, err := p.get(t, s)
			wantKind(t, err, exchange.Unavailable)
			time.Sleep(5 * time.Second)
		}
		synctest.Wait()
		loud, quiet := len(p.lines(t, "token exchange failed")), len(p.lines(t, "token exchange failed again"))
		if loud < 5 || loud > 7 {
			t.Errorf("%d warnings in an hour, want about one each %s", loud, exchange.RepeatInterval)
		}
		if quiet < 50 {
			t.Errorf("%d debug lines, want one for each further exchange", quiet)
		}
		p.idp.FailAlways(entra.FaultAADSTS(700016))
		time.Sleep(time.Minute)
		_, err := p.get(t, s)
		wantKind(t, err, exchange.UnknownIdentity)
		synctest.Wait()
		if got := len(p.lines(t, "token exchange failed")); got != loud+1 {
			t.Errorf("another failure: %d warnings, want %d", got, loud+1)
		}
		p.idp.Heal()
		time.Sleep(4 * time.Minute)
		if _, err := p.get(t, s); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := len(p.lines(t, "token exchange works again")); got != 1 {
			t.Errorf("%d lines about the end of it, want 1", got)
		}
	})
}

func TestFailuresOfManyKeysDoNotFloodTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.InvalidResource, Detail: "unknown"})
		p := &pod{}
		cfg := fakeConfig(f)
		cfg.Log = newLogger(&p.log)
		s := newService(t, cfg)
		for i := range 10_000 {
			_, err := ask(t, s, exchange.Request{Resource: fmt.Sprintf("https://%d.example.test/%s", i, strings.Repeat("x", 1000))})
			wantKind(t, err, exchange.InvalidResource)
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		lines := p.lines(t, "token exchange failed")
		if got := len(lines); got < 30 || got > 50 {
			t.Errorf("%d warnings in ten seconds, want about 40", got)
		}
		if got := len(fmt.Sprint(lines[0]["resource"])); got > 300 {
			t.Errorf("a resource of %d bytes in the log", got)
		}
	})
}

func TestKindsHaveNames(t *testing.T) {
	for kind := exchange.Kind(-1); kind < 200; kind++ {
		known := !strings.HasPrefix(kind.String(), "kind(")
		want := kind >= exchange.UnknownIdentity && kind <= exchange.InvalidTenant ||
			kind >= exchange.FederationMismatch && kind <= exchange.DeadlineExceeded
		if known != want {
			t.Errorf("kind %d is called %s", int(kind), kind)
		}
	}
}
