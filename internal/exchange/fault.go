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

// FaultKind says what kept an answer from coming, or from being used. A refusal of
// Entra's is an answer, and no fault.
type FaultKind int

// The kinds of fault, each of which has its own fix.
const (
	FaultUnknown     FaultKind = iota // none of the others
	FaultHTTPProxy                    // the HTTP proxy cannot be reached, or refuses
	FaultDNS                          // the host's name is not resolved
	FaultTimeout                      // the connection or the answer takes too long
	FaultRefused                      // the connection is refused
	FaultBroken                       // the connection broke
	FaultAuthority                    // the certificate is of an authority that is not trusted
	FaultHostname                     // the certificate is for another host
	FaultExpired                      // the certificate has expired, or is not valid yet
	FaultCertificate                  // the certificate is not valid for another reason
	FaultNotTLS                       // the server does not speak TLS
	FaultNotHTTPS                     // the discovery document names an address that is not https
	FaultTooLarge                     // the answer is too large
	FaultNotJSON                      // the answer is not JSON
	FaultMisfit                       // the discovery document does not fit the authority
)

// Fault is what kept an answer from coming, or from being used.
type Fault struct {
	Kind FaultKind

	// Text is one lower-case clause in words of this package, safe to log. The texts of
	// the errors themselves are not repeated: net/http's hold URLs, and a server chooses
	// part of x509's.
	Text string

	// Certificate is the server's, where it was not accepted. The server, or who issued
	// it, chose what it says. Nil: it is not known.
	Certificate *x509.Certificate

	// Document is the discovery document of a FaultMisfit. The server chose what it says.
	Document *OpenIDConfiguration
}

// faults is the table of faults: the first row whose function accepts the error counts.
// In texts, PEER is the server that should have answered, and WAY how the request was to
// get there. What took too long has rows of its own: a resolver that cannot be reached and
// a firewall that drops packets are fixed in other places than a slow Entra.
var faults = [...]struct {
	kind     FaultKind
	timedOut bool
	is       func(error) bool
	text     string
}{
	{FaultHTTPProxy, true, failedTo("proxyconnect"), "the HTTP proxy (HTTPS_PROXY) did not answer in time"},
	{FaultDNS, true, is[*net.DNSError], "the name of PEER's host was not resolved in time"},
	{FaultTimeout, true, failedTo("dial"), "the connection to PEER was not accepted in time"},
	{FaultTimeout, true, is[error], "PEER did not answer in timeWAY"},

	{FaultNotJSON, false, is[msal.InvalidJsonErr], "PEER's answer is not the JSON that it should be"},
	{FaultMisfit, false, is[*misfit], "PEER's discovery document does not fit " + azure.EnvAuthorityHost + ": its issuer is of another host, or parts of it are missing"},
	{FaultHTTPProxy, false, failedTo("proxyconnect"), "the HTTP proxy (HTTPS_PROXY) cannot be reached"},
	{FaultDNS, false, is[*net.DNSError], "the name of PEER's host cannot be resolved"},
	{FaultAuthority, false, is[x509.UnknownAuthorityError], "PEER's certificate is of an authority that is not trusted here (--ca-file adds one)"},
	{FaultHostname, false, is[x509.HostnameError], "PEER's certificate is for another host"},
	{FaultExpired, false, expired, "PEER's certificate is not valid"},
	{FaultCertificate, false, is[x509.CertificateInvalidError], "PEER's certificate is not valid"},
	{FaultCertificate, false, is[*tls.CertificateVerificationError], "PEER's certificate is not valid"},
	{FaultNotTLS, false, is[tls.RecordHeaderError], "PEER's address does not speak TLSWAY"},
	{FaultNotTLS, false, errorIs(http.ErrSchemeMismatch), "PEER's address does not speak TLSWAY"}, // what net/http makes of the former
	{FaultTooLarge, false, errorIs(errBodyTooLarge), "PEER's answer is too large"},
	{FaultNotHTTPS, false, errorIs(errNotHTTPS), "PEER's discovery document names an address that is not https"},
	{FaultRefused, false, errorIs(syscall.ECONNREFUSED), "the connection to PEER was refused"},
	{FaultBroken, false, errorIs(syscall.ECONNRESET, io.EOF, io.ErrUnexpectedEOF), "the connection to PEER brokeWAY"},
	{FaultUnknown, false, is[error], "PEER could not be reached, or its answer could not be usedWAY"},
}

// FaultOf says what kept the answer of a server from coming. peer names it in the text,
// such as "the issuer".
func FaultOf(err error, peer string) Fault {
	return faultOf(err, timedOut(err), peer, "")
}

func faultOf(err error, timedOut bool, peer, way string) Fault {
	var f Fault
	for _, row := range faults {
		if row.timedOut == timedOut && row.is(err) {
			f.Kind, f.Text = row.kind, strings.NewReplacer("PEER", peer, "WAY", way).Replace(row.text)
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

// failedTo reports whether it was the operation of package net that failed.
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
