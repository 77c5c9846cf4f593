package entra

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"time"
)

// The certificates are valid at every time of a test's clock: a testing/synctest bubble
// begins in the year 2000.
var (
	certificatesFrom  = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	certificatesUntil = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
)

// certificates are a temporary CA and a server certificate that it has signed.
type certificates struct {
	caPEM []byte
	pool  *x509.CertPool
	leaf  tls.Certificate
}

func newCertificates(host string, names []string) (*certificates, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := certificateTemplate(1, "stand-in Entra CA")
	ca.IsCA = true
	ca.KeyUsage = x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}

	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := certificateTemplate(2, "stand-in Entra")
	leaf.KeyUsage = x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	leaf.DNSNames = append([]string{"localhost"}, names...)
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	addSubject(leaf, host)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), caKey)
	if err != nil {
		return nil, err
	}

	c := &certificates{
		caPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}),
		pool:  x509.NewCertPool(),
		leaf:  tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: leafKey},
	}
	c.pool.AppendCertsFromPEM(c.caPEM)
	return c, nil
}

func certificateTemplate(serial int64, name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(serial),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             certificatesFrom,
		NotAfter:              certificatesUntil,
		BasicConstraintsValid: true,
	}
}

// addSubject makes the certificate valid for host, which may have a port.
func addSubject(c *x509.Certificate, host string) {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if ip := net.ParseIP(host); ip != nil {
		c.IPAddresses = append(c.IPAddresses, ip)
		return
	}
	c.DNSNames = append(c.DNSNames, host)
}

// CAPEM returns the CA certificate in PEM.
func (s *Server) CAPEM() []byte { return append([]byte(nil), s.tls.caPEM...) }

// WriteCA writes CAPEM to path, readable by every user, for --ca-file or SSL_CERT_FILE.
func (s *Server) WriteCA(path string) error {
	return os.WriteFile(path, s.tls.caPEM, 0o644)
}

// Certificate returns the server's certificate, for another server that has one of its names.
func (s *Server) Certificate() tls.Certificate { return s.tls.leaf }

// TLSConfig returns the configuration of a client that trusts only this server's CA. It has
// no ServerName, so that tests of SNI can set it.
func (s *Server) TLSConfig() *tls.Config {
	return &tls.Config{RootCAs: s.tls.pool, MinVersion: tls.VersionTLS12}
}

// ServerTLSConfig returns the configuration for a server of Handler on a listener or a pipe
// of the caller. It offers only HTTP/1.1, so that a reset of a connection affects only one
// request.
func (s *Server) ServerTLSConfig() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{s.tls.leaf},
		NextProtos:   []string{"http/1.1"},
		MinVersion:   tls.VersionTLS12,
	}
}
