package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"imds-oidc-proxy/internal/azure"
)

const (
	// askResource is the default resource of the token: every tenant of the public cloud has it.
	askResource = "https://management.azure.com/"
	// askTimeout is longer than the proxy's own timeout of a token request with retries.
	askTimeout = 30 * time.Second
	// askLimit bounds how much of an answer is read. Tokens have a few KiB.
	askLimit = 64 << 10
)

// ask is the command `webhook ask [RESOURCE]`, which the chart's test runs in an injected pod. It requests a
// token for a resource from IMDS as an application does, and reports which identity the token is for. It prints
// no token. An answer that is not the proxy's is an error: without the redirect, IMDS would return a
// token of the node's identity.
func ask(ctx context.Context, resource string, getenv func(string) string, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	address := cmp.Or(getenv(azure.EnvIMDSHost), "http://"+azure.MetadataIP)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(address, "/")+
		"/metadata/identity/oauth2/token?api-version=2018-02-01&resource="+url.QueryEscape(resource), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Metadata", "true")
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: nil}}).Do(req)
	if err != nil {
		return fmt.Errorf("no answer from %s: %w", address, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, askLimit))
	if err != nil {
		return fmt.Errorf("answer of %s: %w", address, err)
	}
	if server := resp.Header.Get("Server"); !strings.HasPrefix(server, "imds-oidc-proxy/") {
		return fmt.Errorf("%s answered in place of the proxy (Server %.100q): the pod is not injected, or has no redirect", address, server)
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.Status, body)
	}
	claims, err := tokenClaims(body)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stdout, "webhook: token for %s, object ID %s, valid until %s\n", claims.Audience, claims.ObjectID, time.Unix(claims.Expiry, 0).UTC().Format(time.RFC3339))
	return err
}

// refusal returns the error of an answer without a token.
func refusal(status string, body []byte) error {
	var answer struct {
		Description string `json:"error_description"`
	}
	_ = json.Unmarshal(body, &answer) // then there is no description
	return fmt.Errorf("the proxy answered %s: %.1000q", status, answer.Description)
}

// claims are what is printed of a token.
type claims struct {
	Audience string `json:"aud"`
	ObjectID string `json:"oid"`
	Expiry   int64  `json:"exp"`
}

// tokenClaims returns the claims of the token in an answer of IMDS. Nothing of the token is in the error.
func tokenClaims(body []byte) (c claims, err error) {
	var answer struct {
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.AccessToken == "" {
		return c, errors.New("the proxy's answer has no access_token")
	}
	parts := strings.Split(answer.AccessToken, ".")
	if len(parts) != 3 {
		return c, errors.New("the access token is not a JWT")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &c) != nil {
		return c, errors.New("the access token is not a JWT")
	}
	return c, nil
}
