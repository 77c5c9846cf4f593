package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"imds-oidc-proxy/test/kit/entra"
)

// armHost is where az looks for the subscriptions of the identity that it logs in.
const armHost = "management.azure.com"

// resourceManager stands in for Azure Resource Manager, as far as az login asks it:
// it lists one subscription to whoever comes with a token that the pod's Entra
// signed. Its certificate is thrown away with it.
type resourceManager struct {
	server *http.Server
	caFile string
	entra  atomic.Pointer[entra.Server]
}

// startResourceManager listens on the port that az cannot be told to change; the
// process has a network namespace, and a hosts file, of its own.
func startResourceManager() (*resourceManager, error) {
	certificate, caPEM, err := selfSigned(armHost)
	if err != nil {
		return nil, err
	}
	file, err := os.CreateTemp("", "arm-ca-*.pem")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := file.Write(caPEM); err != nil {
		return nil, err
	}
	if err := file.Chmod(0o644); err != nil { // the application reads it
		return nil, err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:443", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		return nil, fmt.Errorf("the stand-in for %s: %w", armHost, err)
	}
	m := &resourceManager{caFile: file.Name()}
	m.server = &http.Server{Handler: m, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	go m.server.Serve(listener) // ends with close
	return m, nil
}

func (m *resourceManager) close() {
	m.server.Close()
	os.Remove(m.caFile)
}

// trust says whose tokens are good from now on.
func (m *resourceManager) trust(e *entra.Server) { m.entra.Store(e) }

// ServeHTTP lists the subscription.
func (m *resourceManager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	bearer, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	idp := m.entra.Load()
	token, err := idp.VerifyAccessToken(bearer)
	if err != nil || !strings.Contains(token.Resource, "management") {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":{"code":"InvalidAuthenticationToken","message":"not a token for this service"}}`)
		return
	}
	if r.URL.Path != "/subscriptions" {
		http.NotFound(w, r)
		return
	}
	const id = "7d1b0c9a-4f3e-4a2d-8b6c-5e0f9a8b7c6d"
	fmt.Fprintf(w, `{"value":[{"id":"/subscriptions/%s","subscriptionId":%q,"tenantId":%q,"displayName":"shop","state":"Enabled"}]}`,
		id, id, idp.TenantID())
}

// selfSigned makes a certificate for a host, which is its own authority.
func selfSigned(host string) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{host}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
