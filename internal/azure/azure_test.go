package azure_test

import (
	"errors"
	"net/url"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
)

const (
	objectID   = "33333333-3333-4333-8333-333333333333"
	clientID   = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	resourceID = "/subscriptions/s/resourcegroups/rg/providers/Microsoft.ManagedIdentity/userAssignedIdentities/id1"
)

// check compares the value that a parser returns for a text. If reason is not empty, the
// parser must refuse the text, with an error that ends in reason.
func check[T comparable](t *testing.T, parse func(string) (T, error), in string, want T, reason string) {
	t.Helper()
	got, err := parse(in)
	if got != want || (err == nil) != (reason == "") || err != nil && !strings.HasSuffix(err.Error(), reason) {
		t.Errorf("%.200q: got %#v, %v, want %#v, %q", in, got, err, want, reason)
	}
	if err == nil {
		return
	}
	if _, ok := errors.AsType[*azure.Error](err); !ok || strings.Contains(err.Error(), "\n") || len(err.Error()) > 1000 {
		t.Errorf("%.200q: got %T %q, want one line in an *azure.Error", in, err, err)
	}
}

// around are the bytes just inside and just outside the ranges of the parsers, and some with a
// meaning elsewhere. A parser must accept each byte only where the byte is valid.
const around = "\x00\t\n !\"#$%&'()*+,-./09:;<=>?@AFGZ[\\]^_`afgz{|}~\x7f\x80\xff"

// checkBytes replaces "^" in a text by each byte, and compares the bytes that the parser
// accepts there with those that it must accept.
func checkBytes[T any](t *testing.T, parse func(string) (T, error), text, accepted string) {
	t.Helper()
	for _, c := range []byte(around) {
		in := strings.Replace(text, "^", string([]byte{c}), 1)
		if _, err := parse(in); (err == nil) != (strings.IndexByte(accepted, c) >= 0) {
			t.Errorf("%q: got %v, want it accepted: %t", in, err, err != nil)
		}
	}
}

func TestErrorIsShort(t *testing.T) {
	long := strings.Repeat("x", 101)
	for value, want := range map[string]string{
		"a\nb":     `"a\nb": must be y`,
		long[:100]: `"` + long[:100] + `": must be y`,
		long:       `"` + long[:100] + `…": must be y`,
	} {
		if got := azure.Invalid(value, "must be y").Error(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// FuzzHTTPS checks that the parsers and net/url, which net/http uses, agree on the parts of an
// accepted URL.
func FuzzHTTPS(f *testing.F) {
	for _, s := range []string{"https://login.example.test", "https://[::1]:443/a%2fb", "HTTPS://a:0443/", "https://a@b", "https://a?b#c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		proxy, err := azure.ParseTokenProxy(s)
		if err != nil {
			return
		}
		u, err := url.Parse(string(proxy))
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
			t.Errorf("%q: net/url reads %#v, %v", s, u, err)
		}
		host, err := azure.ParseAuthorityHost(s)
		if (err == nil) != (u.Path == "" || u.Path == "/") || err == nil && string(host) != "https://"+u.Host+"/" {
			t.Errorf("%q: got %q, %v; net/url reads the path %q", s, host, err, u.Path)
		}
	})
}
