package exchange_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
)

// TestFaultOf: each error of a request has its kind, and a text that does not quote the error.
func TestFaultOf(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	proxyConnect := func(err error) error { return &net.OpError{Op: "proxyconnect", Net: "tcp", Err: err} }
	unverified := func(err error) error { return &tls.CertificateVerificationError{Err: err} }
	for name, test := range map[string]struct {
		err  error
		want exchange.FaultKind
		text string
	}{
		"HTTP proxy, timeout": {proxyConnect(os.ErrDeadlineExceeded), exchange.FaultHTTPProxy, "did not answer in time"},
		"HTTP proxy":          {proxyConnect(dial(syscall.ECONNREFUSED)), exchange.FaultHTTPProxy, "cannot be reached"},
		"name, timeout":       {dial(&net.DNSError{Err: secret, Name: secret, IsTimeout: true}), exchange.FaultDNS, "was not resolved in time"},
		"name":                {dial(&net.DNSError{Err: secret, Name: secret, IsNotFound: true}), exchange.FaultDNS, "cannot be resolved"},
		"connection, timeout": {dial(os.ErrDeadlineExceeded), exchange.FaultTimeout, "not accepted in time"},
		"response, timeout":   {context.DeadlineExceeded, exchange.FaultTimeout, "the issuer did not answer in time"},
		"refused":             {dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), exchange.FaultRefused, "was refused"},
		"reset":               {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, exchange.FaultBroken, "broke"},
		"closed":              {io.EOF, exchange.FaultBroken, "broke"},
		"closed in the body":  {io.ErrUnexpectedEOF, exchange.FaultBroken, "broke"},
		"authority":           {unverified(x509.UnknownAuthorityError{}), exchange.FaultAuthority, "unknown authority"},
		"host name":           {unverified(x509.HostnameError{Certificate: &x509.Certificate{}, Host: secret}), exchange.FaultHostname, "for another host"},
		"expired":             {unverified(x509.CertificateInvalidError{Reason: x509.Expired, Detail: secret}), exchange.FaultExpired, "not valid"},
		"invalid":             {unverified(x509.CertificateInvalidError{Reason: x509.NameMismatch, Detail: secret}), exchange.FaultCertificate, "not valid"},
		"not verified":        {unverified(errors.New(secret)), exchange.FaultCertificate, "not valid"},
		"no TLS":              {tls.RecordHeaderError{Msg: secret}, exchange.FaultNotTLS, "does not speak TLS"},
		"plain HTTP":          {http.ErrSchemeMismatch, exchange.FaultNotTLS, "does not speak TLS"},
		"no route":            {dial(syscall.ENETUNREACH), exchange.FaultUnknown, "could not be reached"},
		"anything else":       {errors.New(secret), exchange.FaultUnknown, "could not be reached"},
	} {
		t.Run(name, func(t *testing.T) {
			wrapped := fmt.Errorf("wrapped: %w", &url.Error{Op: "Get", URL: "https://" + secret, Err: test.err})
			got := exchange.FaultOf(wrapped, "the issuer")
			if got.Kind != test.want || !strings.Contains(got.Text, test.text) {
				t.Errorf("got kind %d, %q, want %d and %q", got.Kind, got.Text, test.want, test.text)
			}
			if strings.Contains(got.Text, secret) || strings.Contains(got.Text, "PEER") || strings.Contains(got.Text, "VIA") {
				t.Errorf("got text %q", got.Text)
			}
		})
	}
}

// TestFaultsOfRealResponses: the errors of MSAL, net/http and crypto/tls for a server that is not
// Entra have their kind, and the certificate or the document that was not accepted.
func TestFaultsOfRealResponses(t *testing.T) {
	idp, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idp.Close() })
	ca := caFile(t, idp)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	overLimit := strings.Repeat("x", exchange.MaxBody+1)
	for name, test := range map[string]struct {
		host, ca string
		fault    *entra.Fault
		want     exchange.FaultKind
	}{
		"authority": {idp.AuthorityHost(), "", nil, exchange.FaultAuthority},
		"host name": {"https://login.example.test/", ca, nil, exchange.FaultHostname},
		"no TLS":    {"https://" + plain.Listener.Addr().String() + "/", ca, nil, exchange.FaultNotTLS},
		"refused":   {"https://127.0.0.1:1/", ca, nil, exchange.FaultRefused},
		"broken":    {idp.AuthorityHost(), ca, new(entra.FaultReset()), exchange.FaultBroken},
		"not JSON":  {idp.AuthorityHost(), ca, new(entra.FaultHTML(200)), exchange.FaultNotJSON},
		"too large": {idp.AuthorityHost(), ca, new(entra.FaultStatus(200, overLimit)), exchange.FaultTooLarge},
		"endpoint":  {idp.AuthorityHost(), ca, new(discovered(idp.AuthorityHost(), "https://login.example.test/token")), exchange.FaultMisfit},
		"misfit":    {idp.AuthorityHost(), ca, new(discovered("https://sts.example.test/", "https://login.example.test/token")), exchange.FaultMisfit},
	} {
		t.Run(name, func(t *testing.T) {
			idp.Reset()
			if test.fault != nil {
				idp.FailAlways(test.fault.On(entra.TenantDiscovery))
			}
			s, err := exchange.New(exchange.Config{
				TenantID: azure.Tenant(idp.TenantID()), AuthorityHost: azure.AuthorityHost(test.host), CAFile: test.ca,
				FederatedTokenFile: filepath.Join(t.TempDir(), "missing"),
				Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					if address == "login.example.test:443" { // a name that is not in the certificate
						address = strings.Trim(strings.TrimPrefix(idp.AuthorityHost(), "https://"), "/")
					}
					return new(net.Dialer).DialContext(ctx, network, address)
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			failed, ok := errors.AsType[*exchange.Error](s.Discover(t.Context()))
			if !ok || failed.Fault == nil || failed.Fault.Kind != test.want || failed.Detail != failed.Fault.Text {
				t.Fatalf("got %+v, want a fault of kind %d", failed, test.want)
			}
			wantCertificate := test.want == exchange.FaultAuthority || test.want == exchange.FaultHostname
			if c := failed.Fault.Certificate; (c != nil) != wantCertificate || c != nil && c.NotAfter.Before(time.Now()) {
				t.Errorf("got certificate %v, want a certificate: %t", c, wantCertificate)
			}
			if d := failed.Fault.Document; (d != nil) != (test.want == exchange.FaultMisfit) || d != nil && d.Issuer != "https://sts.example.test/" && d.TokenEndpoint != "https://login.example.test/token" {
				t.Errorf("got document %+v", d)
			}
		})
	}
}
