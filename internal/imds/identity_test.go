package imds_test

import (
	"bufio"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/imds"
)

const (
	ambiguous = "Multiple user assigned identities exist, please specify the clientId / resourceId of the identity in the token request"
	notFound  = "Identity not found"

	learnedID = "88888888-8888-8888-8888-888888888888" // an object ID
	unknownID = "99999999-9999-9999-9999-999999999999"
)

// TestIdentityOfToken: the client ID for a request depends on the configured identities. No
// selector gets the token of an identity that it does not name.
func TestIdentityOfToken(t *testing.T) {
	one := identities(objectID, mappedID)
	two := identities(objectID, mappedID, resourceID, otherID)
	for _, test := range []struct {
		name       string
		defaultID  azure.ClientID
		identities map[azure.Selector]azure.ClientID
		allowed    []azure.ClientID
		selector   string
		want       string // a client ID, or an error's description
	}{
		{"default", defaultID, two, nil, "", defaultID},
		{"no default, none known", "", nil, nil, "", notFound},
		{"no default, one known", "", one, nil, "", mappedID},
		{"no default, one allowed", "", nil, []azure.ClientID{otherID}, "", otherID},
		{"no default, two known", "", two, nil, "", ambiguous},
		{"no default, two allowed", "", nil, []azure.ClientID{otherID, defaultID}, "", ambiguous},
		{"two selectors of one identity", "", identities(objectID, mappedID, resourceID, mappedID), nil, "", mappedID},
		{"any client_id", defaultID, nil, nil, "client_id=" + otherID, otherID},
		{"client_id without a default", "", nil, nil, "client_id=" + otherID, otherID},
		{"client_id allowed", defaultID, nil, []azure.ClientID{defaultID, otherID}, "client_id=" + otherID, otherID},
		{"client_id not allowed", defaultID, nil, []azure.ClientID{defaultID}, "client_id=" + otherID, notFound},
		{"client_id allowed in another case", "", nil, []azure.ClientID{"abcdef00-0000-0000-0000-000000000000"}, "client_id=ABCDEF00-0000-0000-0000-000000000000", "abcdef00-0000-0000-0000-000000000000"},
		{"object_id known", defaultID, two, nil, "object_id=" + objectID, mappedID},
		{"object_id unknown", defaultID, two, nil, "object_id=" + unknownID, notFound},
		{"object_id without configured identities", "", nil, nil, "object_id=" + learnedID, notFound},
		{"object_id learned", defaultID, two, nil, "object_id=" + learnedID, otherID},
		{"object_id learned, in another case", defaultID, two, nil, "object_id=" + strings.ToUpper(learnedID), otherID},
		{"object_id learned, without a default", "", two, nil, "object_id=" + learnedID, otherID},
		{"principal_id learned", defaultID, two, nil, "principal_id=" + learnedID, otherID},
		{"the learned object_id given as client_id", defaultID, two, []azure.ClientID{defaultID, mappedID, otherID}, "client_id=" + learnedID, notFound},
		{"the default client_id given as object_id", defaultID, two, nil, "object_id=" + defaultID, defaultID},
		{"the client_id of a mapping given as object_id", defaultID, two, nil, "object_id=" + mappedID, mappedID},
		{"an allowed client_id given as object_id", defaultID, nil, []azure.ClientID{defaultID, otherID}, "object_id=" + otherID, otherID},
		{"a client_id that is not configured given as object_id", defaultID, nil, nil, "object_id=" + otherID, notFound},
		{"a client_id mapped to another", defaultID, identities(mappedID, otherID, objectID, mappedID), nil, "object_id=" + mappedID, otherID},
		{"mi_res_id learned", defaultID, nil, nil, "mi_res_id=" + resourceID + "learned", otherID},
		{"the object_id given as client_id", defaultID, two, []azure.ClientID{defaultID, mappedID, otherID}, "client_id=" + objectID, notFound},
		{"the object_id given as msi_res_id", defaultID, two, nil, "msi_res_id=" + objectID, notFound},
		{"the resource ID given as object_id", defaultID, two, nil, "object_id=" + resourceID, notFound},
		{"msi_res_id", defaultID, two, nil, "msi_res_id=" + resourceID, otherID},
		{"mi_res_id in upper case", defaultID, two, nil, "mi_res_id=" + strings.ToUpper(resourceID), otherID},
		{"mi_res_id with a trailing slash", defaultID, two, nil, "mi_res_id=" + resourceID + "/", notFound},
	} {
		t.Run(test.name, func(t *testing.T) {
			tokens := &tokenSource{learned: identities(learnedID, otherID, resourceID+"learned", otherID)}
			h := newHandler(t, imds.Config{
				Tokens: tokens, TenantID: tenantID, Now: config(nil).Now,
				DefaultClientID: test.defaultID, Identities: test.identities, AllowedClientIDs: test.allowed,
			})
			w := get(h, tokenPath+"?resource="+vault+"&"+test.selector)
			if w.Code == http.StatusOK {
				if got := tokens.seen(); len(got) != 1 || string(got[0].ClientID) != test.want {
					t.Errorf("asked for %+v, want %s", got, test.want)
				}
				if !strings.Contains(w.Body.String(), `"client_id":"`+test.want+`"`) {
					t.Errorf("got %s, want the client ID %s", w.Body, test.want)
				}
				return
			}
			if got := decodeError(t, w).Description; got != test.want || w.Code != http.StatusBadRequest {
				t.Errorf("got %d %q, want %q", w.Code, got, test.want)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*imds.Config)
		want   string
	}{
		{"no tokens", func(c *imds.Config) { c.Tokens = nil }, "no token source"},
		{"no tenant", func(c *imds.Config) { c.TenantID = "" }, "no tenant ID"},
		{"default not allowed", func(c *imds.Config) { c.Identities, c.AllowedClientIDs = nil, []azure.ClientID{otherID} }, `AZURE_CLIENT_ID "` + defaultID + `": must be among --allowed-client-ids`},
		{"mapped to a client ID that is not allowed", func(c *imds.Config) { c.AllowedClientIDs = []azure.ClientID{defaultID} }, "the client ID must be among --allowed-client-ids"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := config(&tokenSource{})
			test.change(&cfg)
			if _, err := imds.New(cfg); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestRequestsOfClients sends requests that unmodified clients send, with the names of
// selectors that do not belong to IMDS. Each gets the identity that it names, or an error.
func TestRequestsOfClients(t *testing.T) {
	const first, second, third = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222", "33333333-3333-3333-3333-333333333333"
	source := &tokenSource{}
	h := newHandler(t, imds.Config{
		Tokens: source, TenantID: tenantID, Now: config(nil).Now, DefaultClientID: first,
		Identities: identities("66666666-6666-4666-8666-666666666666", second,
			"/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i", third),
	})
	file, err := os.Open("testdata/selectors/requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	wants := []struct{ selector, clientID string }{
		{"resource_id=", third},
		{"clientid=", third},
		{"principal_id=", second},
		{"msi-res-id=", ""}, // no identity has this resource ID
	}
	lines := bufio.NewScanner(file)
	for _, want := range wants {
		if !lines.Scan() || !strings.Contains(lines.Text(), "&"+want.selector) {
			t.Fatalf("got the line %q, want one with %s", lines.Text(), want.selector)
		}
		method, target, _ := strings.Cut(lines.Text(), " ")
		r := httptest.NewRequest(method, target, nil)
		r.Host = "169.254.169.254"
		r.Header.Set("Metadata", "true")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		asked := source.seen()
		switch {
		case want.clientID == "" && (w.Code != http.StatusBadRequest || len(asked) != 0):
			t.Errorf("%s: got %d, asked for %+v, want 400", want.selector, w.Code, asked)
		case want.clientID != "" && (len(asked) != 1 || string(asked[0].ClientID) != want.clientID):
			t.Errorf("%s: got %d, asked for %+v, want %s", want.selector, w.Code, asked, want.clientID)
		}
	}
	if lines.Scan() {
		t.Errorf("no expectation for %q", lines.Text())
	}
}
