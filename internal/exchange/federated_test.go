package exchange_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// jwt returns an unsigned token with the claims. Its signature is secret, to detect leaks.
func jwt(claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(claims)) + "." + secret
}

const goodClaims = `{"iss":"https://issuer.example.test/","sub":"system:serviceaccount:shop:cart","aud":["api://AzureADTokenExchange"],"exp":4102444800}`

func TestReadFederatedToken(t *testing.T) {
	for name, content := range map[string]string{
		"plain":                jwt(goodClaims),
		"with a line break":    jwt(goodClaims) + "\n",
		"with one audience":    jwt(strings.NewReplacer("[", "", "]", "").Replace(goodClaims)),
		"with a fraction":      jwt(strings.Replace(goodClaims, "4102444800", "4102444800.5", 1)),
		"with unknown members": jwt(strings.Replace(goodClaims, "{", `{"kubernetes.io":{"pod":{}},`, 1)),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token")
			write(t, path, content)
			got, err := exchange.ReadFederatedToken(path)
			if err != nil {
				t.Fatal(err)
			}
			if got.Issuer != "https://issuer.example.test/" || got.Subject != subject ||
				!slices.Equal(got.Audiences, []string{"api://AzureADTokenExchange"}) || got.ExpiresOn.Unix() != 4102444800 {
				t.Errorf("got %v", got)
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Each reason why a file is unusable has its own error, which does not quote the file.
func TestUnusableFederatedTokenFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		write(t, path, content)
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(dir, "dangling")
	if err := os.Symlink("nowhere", dangling); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, path, want string }{
		{"missing", filepath.Join(dir, "missing"), "does not exist"},
		{"dangling symlink", dangling, "does not exist"},
		{"directory", dir, "is a directory"},
		{"FIFO", fifo, "is not a regular file"},
		{"empty", file("empty", ""), "is empty"},
		{"blank", file("blank", " \n\t\n"), "is empty"},
		{"oversized", file("oversized", jwt(goodClaims)+strings.Repeat("x", 64<<10)), "is larger than"},
		{"a key", file("key", "-----BEGIN PRIVATE KEY-----\n"+secret), "does not contain a JSON web token"},
		{"not base64", file("base64", "a.!"+secret+"!.c"), "does not contain a JSON web token"},
		{"not JSON", file("json", jwt(secret)), "does not contain a JSON web token"},
		{"JSON of another kind", file("list", jwt(`["`+secret+`"]`)), "does not contain a JSON web token"},
		{"no exp", file("exp", jwt(`{"iss":"`+secret+`"}`)), "without a usable exp"},
		{"negative exp", file("negative", jwt(`{"exp":-1}`)), "without a usable exp"},
		{"exp past all calendars", file("huge", jwt(`{"exp":1e300}`)), "without a usable exp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := exchange.ReadFederatedToken(c.path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.path) {
				t.Fatalf("got error %v, want one with the path and %q", err, c.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error quotes the file: %v", err)
			}
		})
	}
	if _, err := exchange.ReadFederatedToken(dangling); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want one that is fs.ErrNotExist", err)
	}
}

func TestFederatedTokenIsNeverShown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write(t, path, jwt(goodClaims))
	token, err := exchange.ReadFederatedToken(path)
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	newLogger(&log).Info("x", zap.Any("any", token), zap.Object("object", token), zap.Stringer("stringer", token), zap.Reflect("reflect", token))
	encoded, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	type nested struct{ inner exchange.FederatedToken }
	output := log.String() + string(encoded)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		output += fmt.Sprintf(verb, token) + fmt.Sprintf(verb, &token) + fmt.Sprintf(verb, nested{token}) + fmt.Sprintf(verb, []any{token})
	}
	hex := fmt.Sprintf("%x", secret)
	if strings.Contains(output, secret) || strings.Contains(output, hex) {
		t.Errorf("the token's signature appears in %s", output)
	}
	if !strings.Contains(log.String(), subject) {
		t.Errorf("the log does not contain the subject: %s", log.String())
	}
}

// Claims, which users of the cluster choose, cannot break a log line or make it too long.
func TestClaimsAreQuotedSafely(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	claims, err := json.Marshal(map[string]any{
		"iss": "https://x\n\x1b[31m", "sub": strings.Repeat("s", 10_000), "aud": strings.Split(strings.Repeat("a,", 1000), ","), "exp": 4102444800,
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, jwt(string(claims)))
	token, err := exchange.ReadFederatedToken(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := token.String(); len(got) > 1000 || strings.ContainsAny(got, "\n\x1b") {
		t.Errorf("got %d bytes: %.300q", len(got), got)
	}
}

func TestFederatedTokenExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "token")
		expiry := time.Now().Add(time.Hour).Truncate(time.Second)
		write(t, path, jwt(fmt.Sprintf(`{"exp":%d}`, expiry.Unix())))
		s, err := exchange.New(exchange.Config{TenantID: "example.test", FederatedTokenFile: path})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(expiry) - 1)
		if err := s.Ready(); err != nil {
			t.Errorf("1 ns before expiry: %v", err)
		}
		time.Sleep(time.Nanosecond)
		err = s.Ready()
		if err == nil || !strings.Contains(err.Error(), "AZURE_FEDERATED_TOKEN_FILE") || !strings.Contains(err.Error(), "expired at") {
			t.Errorf("at expiry: got %v", err)
		}
	})
}

func TestUnusableFederatedTokenIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		s := p.service(t)
		for _, c := range []struct{ content, want string }{
			{"", "is empty"},
			{secret, "does not contain a JSON web token"},
			{p.idp.SignFederatedToken(entra.Claims{Subject: subject, Expiry: time.Now()}), "expired at"},
		} {
			if err := p.token.Write(c.content); err != nil {
				t.Fatal(err)
			}
			_, err := p.get(t, s)
			e := wantKind(t, err, exchange.FederatedTokenUnusable)
			whole := "federated token file " + p.token.Path() + " " + c.want // in the log, the text has no other context
			if !strings.HasPrefix(e.Detail, whole) || strings.Contains(e.Detail, secret) {
				t.Errorf("got detail %q, want prefix %q", e.Detail, whole)
			}
			if err := s.Ready(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Ready: got %v, want %q", err, c.want)
			}
			time.Sleep(4 * time.Minute)
		}
		if got := p.idp.Counts(); got != (entra.Counts{}) {
			t.Errorf("requests to Entra: %+v", got)
		}
		if err := p.token.Renew(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.get(t, s); err != nil {
			t.Errorf("with a valid token again: %v", err)
		}
	})
}

// Reads succeed while the kubelet replaces the file.
func TestFederatedTokenIsReadWhileItIsReplaced(t *testing.T) {
	idp, err := entra.New(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := idp.ProjectToken(entra.ProjectedTokenConfig{Dir: t.TempDir(), Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(done)
		for range 200 {
			if err := token.Renew(); err != nil {
				t.Error(err)
			}
		}
	})
	reads := 0
	for running := true; running; reads++ {
		select {
		case <-done:
			running = false
		default:
		}
		if got, err := exchange.ReadFederatedToken(token.Path()); err != nil || got.Subject != subject {
			t.Fatalf("read %d: %v, %v", reads, got, err)
		}
	}
}

// The federated token is reread too if a later try is the first that Entra refuses because of it.
func TestFederatedTokenIsRereadAfterALaterTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		p.idp.FailNext(1, entra.FaultStatus(503, ""))
		p.idp.FailNext(1, entra.FaultAADSTS(700024))
		if _, err := p.get(t, p.service(t)); err != nil {
			t.Error(err)
		}
		if got := p.idp.Counts().Token; got != 3 {
			t.Errorf("%d token requests, want 3", got)
		}
	})
}

func TestFederatedTokenIsRereadAfterARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := bubblePod(t, entra.Config{})
		s := p.service(t)
		stale := entra.FaultAADSTS(700024)
		p.idp.FailWhen(func(x entra.Exchange) *entra.Fault {
			if len(p.idp.Exchanges()) > 1 {
				return nil
			}
			if err := p.token.Renew(); err != nil { // the kubelet renews the token just now
				t.Error(err)
			}
			return &stale
		})
		if _, err := p.get(t, s); err != nil {
			t.Fatal(err)
		}
		x := p.idp.Exchanges()
		if len(x) != 2 || x[0].AssertionID == x[1].AssertionID {
			t.Errorf("got %d token requests, the second with the assertion of the first: %v", len(x), x)
		}
	})
}
