package exchange

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	msal "github.com/AzureAD/microsoft-authentication-library-for-go/apps/errors"

	"imds-oidc-proxy/internal/azure"
)

// FaultKind says why there was no response, or none that can be used. An error response of
// Entra is a response, not a fault.
type FaultKind int

// The kinds of fault. Each has its own fix.
const (
	FaultUnknown     FaultKind = iota // none of the others
	FaultHTTPProxy                    // the HTTP proxy cannot be reached, or refuses the request
	FaultDNS                          // the host name cannot be resolved
	FaultTimeout                      // the connection or the response takes too long
	FaultRefused                      // the connection is refused
	FaultBroken                       // the connection broke
	FaultAuthority                    // the certificate is signed by an unknown authority
	FaultHostname                     // the certificate is for another host
	FaultExpired                      // the certificate has expired, or is not valid yet
	FaultCertificate                  // the certificate is not valid for another reason
	FaultNotTLS                       // the server does not speak TLS
	FaultNotHTTPS                     // the discovery document names an address that is not https
	FaultTooLarge                     // the response is too large
	FaultNotJSON                      // the response is not JSON
	FaultMisfit                       // the discovery document does not match the authority host
)

// Fault says why there was no response, or none that can be used.
type Fault struct {
	Kind FaultKind

	// Text is one lower-case clause, safe to log. It does not quote the errors of
	// net/http, which contain URLs, or those of crypto/x509, which contain text that a
	// server chooses.
	Text string

	// Certificate is the server's certificate if it was not accepted. Its content was
	// chosen by the server or the issuer. Nil: unknown.
	Certificate *x509.Certificate

	// Document is the discovery document of a FaultMisfit. The server chose its content.
	Document *OpenIDConfiguration
}

// faults is the table of faults. The first row whose function accepts the error applies. In
// texts, PEER stands for the server that should have answered, and VIA for the HTTP proxy in
// between. Timeouts have their own rows: a resolver that cannot be reached and a firewall that
// drops packets have other fixes than a slow Entra.
var faults = [...]struct {
	kind     FaultKind
	timedOut bool
	is       func(error) bool
	text     string
}{
	{FaultHTTPProxy, true, failedTo("proxyconnect"), "the HTTP proxy (HTTPS_PROXY) did not answer in time"},
	{FaultDNS, true, is[*net.DNSError], "the name of PEER's host was not resolved in time"},
	{FaultTimeout, true, failedTo("dial"), "the connection to PEER was not accepted in time"},
	{FaultTimeout, true, is[error], "PEER did not answer in timeVIA"},

	{FaultNotJSON, false, is[msal.InvalidJsonErr], "PEER's response is not the expected JSON"},
	{FaultMisfit, false, is[*misfit], misfitText},
	{FaultMisfit, false, errorIs(errForeignHost), misfitText},
	{FaultHTTPProxy, false, failedTo("proxyconnect"), "the HTTP proxy (HTTPS_PROXY) cannot be reached"},
	{FaultDNS, false, is[*net.DNSError], "the name of PEER's host cannot be resolved"},
	{FaultAuthority, false, is[x509.UnknownAuthorityError], "PEER's certificate is signed by an unknown authority (--ca-file adds one)"},
	{FaultHostname, false, is[x509.HostnameError], "PEER's certificate is for another host"},
	{FaultExpired, false, expired, "PEER's certificate is not valid"},
	{FaultCertificate, false, is[x509.CertificateInvalidError], "PEER's certificate is not valid"},
	{FaultCertificate, false, is[*tls.CertificateVerificationError], "PEER's certificate is not valid"},
	{FaultNotTLS, false, is[tls.RecordHeaderError], "PEER does not speak TLSVIA"},
	{FaultNotTLS, false, errorIs(http.ErrSchemeMismatch), "PEER does not speak TLSVIA"}, // net/http's error for a response without TLS
	{FaultTooLarge, false, errorIs(errBodyTooLarge), "PEER's response is too large"},
	{FaultNotHTTPS, false, errorIs(errNotHTTPS), "PEER's discovery document names an address that is not https"},
	{FaultRefused, false, errorIs(syscall.ECONNREFUSED), "the connection to PEER was refused"},
	{FaultBroken, false, errorIs(syscall.ECONNRESET, io.EOF, io.ErrUnexpectedEOF), "the connection to PEER brokeVIA"},
	{FaultUnknown, false, is[error], "PEER could not be reached, or its response could not be usedVIA"},
}

const misfitText = "PEER's discovery document does not match " + azure.EnvAuthorityHost +
	": its issuer or its token endpoint is of another host, or fields are missing"

// FaultOf returns the fault of a request that failed with err. peer names the server in the
// text, such as "the issuer".
func FaultOf(err error, peer string) Fault {
	return faultOf(err, timedOut(err), peer, "")
}

func faultOf(err error, timedOut bool, peer, via string) Fault {
	var f Fault
	for _, row := range faults {
		if row.timedOut == timedOut && row.is(err) {
			f.Kind, f.Text = row.kind, strings.NewReplacer("PEER", peer, "VIA", via).Replace(row.text)
			break
		}
	}
	if offered, ok := errors.AsType[*tls.CertificateVerificationError](err); ok && len(offered.UnverifiedCertificates) > 0 {
		f.Certificate = offered.UnverifiedCertificates[0]
	}
	if document, ok := errors.AsType[*misfit](err); ok && f.Kind == FaultMisfit {
		f.Document = document.OpenIDConfiguration.bounded()
	}
	return f
}

func timedOut(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// is reports whether an error of type E is in the tree of err.
func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

func errorIs(targets ...error) func(error) bool {
	return func(err error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
}

// failedTo returns a function that reports whether the operation of package net failed.
func failedTo(operation string) func(error) bool {
	return func(err error) bool {
		failed, ok := errors.AsType[*net.OpError](err)
		return ok && failed.Op == operation
	}
}

func expired(err error) bool {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	return ok && invalid.Reason == x509.Expired
}
