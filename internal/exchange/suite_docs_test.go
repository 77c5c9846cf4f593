package exchange

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of AADSTS codes to the docs")

const troubleshooting = "../../docs/troubleshooting.md"

// sections has the section of docs/troubleshooting.md for each hint.
var sections = map[hint]string{
	hintNone:         "wait",
	hintCredential:   "[the federated credential](#the-federated-credential-does-not-match)",
	hintCase:         "[the federated credential](#the-federated-credential-does-not-match)",
	hintIssuer:       "[the issuer](#entra-cannot-use-the-issuer)",
	hintClock:        "[the federated token](#the-federated-token-is-refused)",
	hintClientID:     "[the client ID](#the-client-id-or-the-tenant-is-not-known)",
	hintResource:     "[the resource](#the-resource-is-not-known)",
	hintTenant:       "[the tenant](#the-client-id-or-the-tenant-is-not-known)",
	hintAccess:       "[access](#entra-refuses-the-application)",
	hintForeignToken: "[the federated token](#the-federated-token-is-refused)",

	hintPolicy:       "[access](#entra-refuses-the-application)",
	hintPublicClient: "[access](#entra-refuses-the-application)",
	hintRequest:      "[the way to Entra](#entra-cannot-be-reached)",
	hintRestriction:  "[the way to Entra](#entra-cannot-be-reached)",

	hintServicePrincipal: "[the client ID](#the-client-id-or-the-tenant-is-not-known)",
	hintAuthority:        "[the way to Entra](#entra-cannot-be-reached)",
	hintBindingCA:        "[the way to Entra](#entra-cannot-be-reached)",
	hintBinding:          "[the identity binding](#the-identity-binding-is-refused)",
	hintBindingAccess:    "[the identity binding](#the-identity-binding-is-refused)",
	hintBindingToken:     "[the identity binding](#the-identity-binding-is-refused)",
	hintBindingServer:    "[the identity binding](#the-identity-binding-is-refused)",
	hintUnbound:          "[the identity binding](#the-identity-binding-is-refused)",
	hintProxyCredentials: "[the way to Entra](#entra-cannot-be-reached)",
	hintProxyRules:       "[the way to Entra](#entra-cannot-be-reached)",
}

// TestCodesAreDocumented: the table in the docs equals the table rulings, and each section that
// it links to exists. The flag -update writes the table.
func TestCodesAreDocumented(t *testing.T) {
	content, err := os.ReadFile(troubleshooting)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- aadsts: written by go test ./internal/exchange -update -->\n", "<!-- /aadsts -->\n"
	before, rest, ok := strings.Cut(string(content), begin)
	got, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no markers for the table", troubleshooting)
	}
	want := codeTable()
	if *update {
		if err := os.WriteFile(troubleshooting, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if got != want {
		t.Errorf("%s: got\n%s\nwant (go test -update writes it)\n%s", troubleshooting, got, want)
	}
	for h, section := range sections {
		_, anchor, linked := strings.Cut(strings.TrimSuffix(section, ")"), "#")
		heading := strings.ReplaceAll(anchor, "-", " ")
		if linked && !strings.Contains(strings.ToLower(string(content)), "\n### "+heading+"\n") {
			t.Errorf("hint %d links to the section %q, which does not exist", h, heading)
		}
	}
}

func codeTable() string {
	var b strings.Builder
	b.WriteString("| code | meaning | kind | retried | fix |\n|---|---|---|---|---|\n")
	for _, r := range rulings {
		retried := map[Retry]string{RetryNever: "no", RetrySoon: "yes", RetryReread: "once, after rereading the token", RetryOnce: "once"}[r.retry]
		fmt.Fprintf(&b, "| AADSTS%d | %s | `%s` | %s | %s |\n", r.code, r.detail, r.kind, retried, sections[r.hint])
	}
	return b.String()
}
