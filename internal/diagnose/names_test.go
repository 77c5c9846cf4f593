package diagnose_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/diagnose"
	"imds-oidc-proxy/test/kit/entra"
)

// TestNames: the report says by which names requests get the identity's token, and which of them
// --identity maps otherwise.
func TestNames(t *testing.T) {
	const (
		otherID    = "8e2f5d0a-3c41-4b7e-9f65-0d1c2b3a4f50"
		objectID   = "b7a1c9de-52f0-4e83-8d6b-9a0f1e2d3c01"
		otherName  = "b7a1c9de-52f0-4e83-8d6b-9a0f1e2d3c02"
		resourceID = "/subscriptions/s/resourcegroups/g/providers/microsoft.managedidentity/userassignedidentities/cart"
	)
	idp, err := entra.Start(entra.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idp.Close() })
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "federated")
	if err := idp.WriteCA(ca); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token, []byte(idp.SignFederatedToken(entra.Claims{Subject: subject})), 0o600); err != nil {
		t.Fatal(err)
	}
	opaque := entra.FaultEdit("opaque", func(a map[string]any) { a["access_token"] = "opaque" }).On(entra.TokenEndpoint)
	for _, test := range []struct {
		name       string
		resourceID string // of the identity
		fault      *entra.Fault
		configured []azure.ClientID
		identities []azure.Identity
		want       []string // status, item, part of the text
	}{
		{"learned", "", nil, []azure.ClientID{clientID}, nil,
			[]string{"ok", "object ID", objectID + "; requests with this object_id get this identity's token -> "}},
		{"with a resource ID", resourceID, nil, []azure.ClientID{clientID}, nil,
			[]string{"ok", "object ID", objectID, "ok", "resource ID", resourceID + "; requests with this msi_res_id get this identity's token"}},
		{"mapped", "", nil, nil, []azure.Identity{{Selector: objectID, ClientID: clientID}},
			[]string{"ok", "object ID", "get this identity's token"}},
		{"not configured", "", nil, []azure.ClientID{otherID}, nil,
			[]string{"ok", "object ID", "are refused: " + clientID + " is not configured -> if applications need it, list the client ID in --allowed-client-ids"}},
		{"mapped to another identity", "", nil, []azure.ClientID{clientID}, []azure.Identity{{Selector: objectID, ClientID: otherID}},
			[]string{"note", "object ID", "get the token of " + otherID + ", because --identity says so -> remove it from --identity"}},
		{"another object ID mapped to it", "", nil, []azure.ClientID{clientID}, []azure.Identity{{Selector: otherName, ClientID: clientID}, {Selector: resourceID, ClientID: clientID}},
			[]string{"ok", "object ID", objectID, "note", "--identity", "maps " + otherName + " to this identity, whose token has another object ID -> correct it in --identity"}},
		{"opaque", "", &opaque, []azure.ClientID{clientID}, nil,
			[]string{"note", "object ID", "cannot read it"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			idp.Heal()
			if test.fault != nil {
				idp.FailAlways(*test.fault)
			}
			idp.AddApplication(entra.Application{ClientID: clientID, ObjectID: objectID, ResourceID: test.resourceID, Credentials: []entra.FederatedCredential{{Subject: subject}}})
			cfg := config(t, goodClaims())
			cfg.Exchange.TenantID, cfg.Exchange.AuthorityHost = azure.Tenant(idp.TenantID()), azure.AuthorityHost(idp.AuthorityHost())
			cfg.Exchange.CAFile, cfg.Exchange.FederatedTokenFile = ca, token
			cfg.ClientIDs, cfg.Identities = test.configured, test.identities
			var found []diagnose.Finding
			for _, step := range diagnose.Run(t.Context(), cfg, nil).Steps {
				if step.Name == diagnose.Exchange {
					found = step.Findings
				}
			}
			if len(found) != 1+len(test.want)/3 || found[0].Status != diagnose.OK {
				t.Fatalf("got %+v, want the token and %d findings", found, len(test.want)/3)
			}
			for i, f := range found[1:] {
				want := test.want[3*i : 3*i+3]
				if string(f.Status) != want[0] || f.Item != want[1] || !strings.Contains(f.Text+" -> "+f.Remedy, want[2]) {
					t.Errorf("got %+v, want %q", f, want)
				}
			}
		})
	}
}
