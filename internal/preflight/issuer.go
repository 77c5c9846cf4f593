package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// maxDocument bounds a document of the issuer.
const maxDocument = 1 << 20

const issuerHint = "turn on the OIDC issuer: az aks update --enable-oidc-issuer"

// issuer checks that Entra can read the keys with which the cluster signs tokens.
func (r *run) issuer(ctx context.Context) {
	issuer := r.survey.Issuer
	switch {
	case issuer == "":
		r.add(Skipped, "ask for the ClusterRole system:service-account-issuer-discovery", "docs/plan.md#imds307", "the issuer is not known: %s", strings.TrimSuffix(r.survey.NoIssuer, "; or set --issuer"))
		return
	case !strings.HasPrefix(issuer, "https://") || strings.HasPrefix(issuer, "https://kubernetes.default.svc"):
		r.add(Fault, issuerHint, "docs/plan.md#imds145", "the issuer %s is not public", issuer)
		return
	}
	var discovery struct {
		Issuer  string `json:"issuer"`
		JWKSURI string `json:"jwks_uri"`
	}
	if err := r.document(ctx, strings.TrimSuffix(issuer, "/")+"/.well-known/openid-configuration", &discovery); err != nil {
		r.add(Warning, "Entra reads it from the internet; if it is reachable from there, the cause is your own network", "docs/plan.md#imds145", "the discovery document of the issuer cannot be read from here: %v", err)
		return
	}
	if discovery.Issuer != issuer {
		r.add(Fault, "federated credentials must have exactly the issuer of the tokens, with its slash at the end", "docs/plan.md#imds145", "the discovery document has the issuer %q, and tokens have %q", discovery.Issuer, issuer)
		return
	}
	var keys struct {
		Keys []struct {
			Algorithm string `json:"alg"`
			Type      string `json:"kty"`
		} `json:"keys"`
	}
	if err := r.document(ctx, discovery.JWKSURI, &keys); err != nil {
		r.add(Warning, "Entra reads them from the internet", "docs/plan.md#imds145", "the keys of the issuer cannot be read from here: %v", err)
		return
	}
	rsa := slices.ContainsFunc(keys.Keys, func(k struct {
		Algorithm string `json:"alg"`
		Type      string `json:"kty"`
	}) bool {
		return k.Type == "RSA" && (k.Algorithm == "" || k.Algorithm == "RS256")
	})
	if !rsa {
		r.add(Fault, "sign service account tokens with RS256, which is all that Entra accepts", "docs/plan.md#imds145", "the issuer has no key for RS256")
		return
	}
	r.ok("the issuer is published: %s", issuer)
}

// document reads a document of the issuer, without a redirect to another host.
func (r *run) document(ctx context.Context, address string, into any) error {
	if !strings.HasPrefix(address, "https://") {
		return fmt.Errorf("%q is no https URL", address)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	answer, err := r.HTTP.Do(request)
	if err != nil {
		return errors.New(strings.Join(strings.Fields(err.Error()), " "))
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", address, answer.Status)
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxDocument)).Decode(into); err != nil {
		return fmt.Errorf("%s is not JSON", address)
	}
	return nil
}
