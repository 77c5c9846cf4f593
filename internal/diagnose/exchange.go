package diagnose

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// exchange asks Entra for a token, as the proxy would.
func (w *walk) exchange(ctx context.Context) []Finding {
	switch {
	case w.exchanger == nil:
		return skipped("token", "the environment has to be in order first")
	case !w.tokenUsable():
		return skipped("token", "there is no federated token that Entra would take")
	case !w.reached:
		return skipped("token", "the authority has to be reached first")
	case w.clientID() == "":
		return skipped("token", "there is no client ID to ask a token for: --client-id=CLIENT_ID")
	}
	asked := fmt.Sprintf("for %q as %s", clip(string(w.cfg.Resource)), w.clientID())
	service, err := tokens.New(tokens.Config{Exchanger: w.exchanger}) // tries as often as the proxy
	if err != nil {
		return skipped("token", err.Error())
	}
	result, err := service.Token(ctx, tokens.Request{ClientID: w.clientID(), Resource: w.cfg.Resource})
	if err == nil {
		return []Finding{{Status: OK, Item: "token", Text: fmt.Sprintf("%s, until %s", asked, result.Token.ExpiresOn.UTC().Format(time.RFC3339))}}
	}
	failed, _ := errors.AsType[*exchange.Error](err)
	return append([]Finding{failure("token", failed), {Status: Note, Item: "asked", Text: asked}}, w.circumstances(failed)...)
}

// circumstances are what to have at hand for a failed exchange: the claims that Entra
// compared, and where Entra's own logs have the attempt.
func (w *walk) circumstances(e *exchange.Error) []Finding {
	var findings []Finding
	if e.Kind == exchange.FederationMismatch {
		findings = append(findings,
			Finding{Status: Note, Item: "compared", Text: fmt.Sprintf("byte for byte, with the credentials' own: issuer %q, subject %q, audience %q",
				clip(w.token.Issuer), clip(w.token.Subject), clip(strings.Join(w.token.Audiences, " ")))},
			Finding{Status: Note, Item: "trailing slash", Text: trailingSlash(w.token.Issuer)},
			Finding{Status: Note, Item: "what there is", Text: "az identity federated-credential list --identity-name IDENTITY --resource-group GROUP"})
	}
	if e.TraceID != "" {
		findings = append(findings, Finding{Status: Note, Item: "trace ID", Text: e.TraceID})
	}
	if e.CorrelationID != "" {
		findings = append(findings, Finding{Status: Note, Item: "correlation ID", Text: e.CorrelationID})
	}
	return findings
}

func trailingSlash(issuer string) string {
	if strings.HasSuffix(issuer, "/") {
		return "the token's issuer ends in one: so must the credential's"
	}
	return "the token's issuer ends in none: nor may the credential's"
}
