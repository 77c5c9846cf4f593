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

const (
	// armHost is the host from which az gets the subscriptions of the identity at login.
	armHost = "management.azure.com"

	// blobHost is the host from which rclone and pyarrow list the containers of the account shop.
	blobHost = "shop.blob.core.windows.net"
)

// resourceManager is a stand-in for Azure Resource Manager, with the requests that az login
// needs: it lists one subscription if the request has a token from the pod's Entra. It also
// stands in for Azure Storage, where it lists one container, whose name is the request's token: the
// driver of pyarrow sees the token only there. It has a new certificate for each run.
type resourceManager struct {
	server *http.Server
	caFile string
	entra  atomic.Pointer[entra.Server]
}

// startResourceManager listens on port 443, because az has no setting for the port. The
// process has its own network namespace and its own hosts file.
func startResourceManager() (*resourceManager, error) {
	certificate, caPEM, err := selfSigned(armHost, blobHost)
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

// trust sets the Entra whose tokens are accepted.
func (m *resourceManager) trust(e *entra.Server) { m.entra.Store(e) }

// ServeHTTP lists the subscription, or the container of the storage account.
func (m *resourceManager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Host == blobHost {
		m.listContainers(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if !m.authorized(r, "management") {
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
		id, id, m.entra.Load().TenantID())
}

func (m *resourceManager) listContainers(w http.ResponseWriter, r *http.Request) {
	if !m.authorized(r, "storage") {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Containers><Container><Name>%s</Name><Properties>`+
		`<Last-Modified>Sat, 28 Nov 2026 00:00:00 GMT</Last-Modified><Etag>"0x8"</Etag></Properties></Container></Containers><NextMarker/></EnumerationResults>`,
		bearer(r))
}

// authorized reports whether the request has a token from the pod's Entra for a service, whose
// name is part of the token's resource.
func (m *resourceManager) authorized(r *http.Request, service string) bool {
	token, err := m.entra.Load().VerifyAccessToken(bearer(r))
	return err == nil && strings.Contains(token.Resource, service)
}

func bearer(r *http.Request) string {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}

// selfSigned makes a self-signed certificate for hosts.
func selfSigned(hosts ...string) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: hosts, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
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
