package main

import (
	"net/http"
	"net/url"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/tokens"
)

// What of the configuration is for which room.

// exchangeConfig is what package exchange is told, for the proxy and for its check.
func (c *config) exchangeConfig() exchange.Config {
	proxyFor := c.httpProxy.ProxyFunc()
	return exchange.Config{
		TenantID:           c.tenantID,
		AuthorityHost:      c.authorityHost,
		FederatedTokenFile: c.federatedTokenFile,
		CAFile:             c.caFile,
		Binding:            c.binding,
		Proxy:              func(r *http.Request) (*url.URL, error) { return proxyFor(r.URL) },
	}
}

// prefetched are the requests for --prefetch.
func (c *config) prefetched() []tokens.Request {
	var requests []tokens.Request
	for _, resource := range c.prefetch {
		requests = append(requests, tokens.Request{ClientID: c.defaultClientID, Resource: resource})
	}
	return requests
}

// handlerConfig is what package imds is told.
func (c *config) handlerConfig() (imds.Config, error) {
	identities, err := c.parsedIdentities()
	if err != nil {
		return imds.Config{}, err
	}
	cfg := imds.Config{
		TenantID:         c.tenantID,
		DefaultClientID:  c.defaultClientID,
		Identities:       identities,
		AllowedClientIDs: c.allowedClientIDs,
		StrictAPIVersion: c.strictAPIVersion,
		Version:          version,
	}
	if c.imdsPassthrough == passthroughOn {
		cfg.Passthrough.Address = c.imdsAddress
	}
	return cfg, nil
}

// checkHandler says what package imds would refuse.
func (c *config) checkHandler() error {
	cfg, err := c.handlerConfig()
	if err != nil {
		return err
	}
	if err := cfg.Validate(); err != nil {
		return configError{err}
	}
	return nil
}

// parsedIdentities is --identity as package imds takes it.
func (c *config) parsedIdentities() (map[string]string, error) {
	identities := make(map[string]string, len(c.identities))
	for _, pair := range c.identities {
		selector, clientID, err := imds.ParseIdentity(pair)
		if err != nil {
			return nil, configErrorf("--identity (PROXY_IDENTITY) %w", err)
		}
		if other, taken := identities[selector]; taken && other != clientID {
			return nil, configErrorf("--identity (PROXY_IDENTITY) %q: the selector also stands for client ID %q", pair, other)
		}
		identities[selector] = clientID
	}
	return identities, nil
}
