package diagnose_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/diagnose"
)

// TestIssuerChoosesNoHost: a claim must not lead to the metadata address or to
// others that only this node can reach, and is asked over https alone.
func TestIssuerChoosesNoHost(t *testing.T) {
	for issuer, want := range map[string]string{
		"https://169.254.169.254/metadata":               "link-local",
		"https://[::ffff:169.254.169.254]/metadata":      "link-local",
		"https://[fe80::1]/":                             "link-local",
		"http://127.0.0.1:1/":                            "no https URL",
		"file:///etc/passwd":                             "no https URL",
		"https://kubernetes.default.svc":                 "the cluster's own",
		"https://kubernetes.default.svc.cluster.local/x": "the cluster's own",
		"https://127.0.0.1:1/":                           "refused",
	} {
		claims := goodClaims()
		claims["iss"] = issuer
		report := diagnose.Run(t.Context(), config(t, claims), nil)
		if f := finding(t, report, diagnose.Issuer, "discovery"); !strings.Contains(f.Text, want) {
			t.Errorf("issuer %s: got %q, want it to hold %q", issuer, f.Text, want)
		}
	}
}
