package diagnose_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/diagnose"
)

// TestIssuerSSRF: an issuer must not cause a request to the metadata address or another
// address that only this node can reach, nor a request without TLS.
func TestIssuerSSRF(t *testing.T) {
	for issuer, want := range map[string]string{
		"https://169.254.169.254/metadata":               "link-local",
		"https://[::ffff:169.254.169.254]/metadata":      "link-local",
		"https://[fe80::1]/":                             "link-local",
		"http://127.0.0.1:1/":                            "not an https URL",
		"file:///etc/passwd":                             "not an https URL",
		"https://kubernetes.default.svc":                 "inside the cluster",
		"https://kubernetes.default.svc.cluster.local/x": "inside the cluster",
		"https://127.0.0.1:1/":                           "refused",
	} {
		claims := goodClaims()
		claims["iss"] = issuer
		report := diagnose.Run(t.Context(), config(t, claims), nil)
		if f := finding(t, report, diagnose.Issuer, "discovery"); !strings.Contains(f.Text, want) {
			t.Errorf("issuer %s: got %q, want it to contain %q", issuer, f.Text, want)
		}
	}
}
