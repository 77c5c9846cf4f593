package azure_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
)

const (
	guidWanted     = "must be a GUID: the application (client) ID, not a name or a resource ID"
	selectorWanted = "must be an object ID (a GUID) or the ARM resource ID of a user-assigned identity, before =CLIENT_ID"
	hexDigits      = "09AFaf"
)

func TestParseClientID(t *testing.T) {
	check(t, azure.ParseClientID, clientID, clientID, "")
	check(t, azure.ParseClientID, strings.ToUpper(clientID), clientID, "")
	for _, in := range []string{
		"", "app", clientID[1:], clientID + "0", "{" + clientID + "}", " " + clientID[1:], clientID[:35] + "\n",
		strings.ReplaceAll(clientID, "-", ""), strings.Replace(clientID, "-", "0", 1), strings.Replace(clientID, "6c", "6-", 1),
	} {
		check(t, azure.ParseClientID, in, "", guidWanted)
	}
	for i := range clientID {
		if clientID[i] == '-' {
			checkBytes(t, azure.ParseClientID, clientID[:i]+"^"+clientID[i+1:], "-")
		} else {
			checkBytes(t, azure.ParseClientID, clientID[:i]+"^"+clientID[i+1:], hexDigits)
		}
	}
}

func TestParseObjectID(t *testing.T) {
	check(t, azure.ParseObjectID, strings.ToUpper(objectID), objectID, "")
	check(t, azure.ParseObjectID, resourceID, "", "must be a GUID")
}

func TestParseResourceID(t *testing.T) {
	lower := azure.Selector(strings.ToLower(resourceID))
	check(t, azure.ParseResourceID, resourceID, lower, "")
	check(t, azure.ParseResourceID, strings.ToUpper(resourceID), lower, "")
	const reason = "must be /subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME"
	for _, in := range []string{
		"", objectID, resourceID[1:], "x" + resourceID, resourceID + "/", resourceID + "/x", "/" + resourceID,
		strings.Replace(resourceID, "/s/", "//", 1), strings.Replace(resourceID, "id1", "", 1), strings.Replace(resourceID, "/rg", "/", 1),
		strings.Replace(resourceID, "providers", "provider", 1), strings.Replace(resourceID, "Managed", "Unmanaged", 1),
		"/subscriptions/s/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/n",
		// Unicode's case folding would accept these as s and k.
		strings.Replace(resourceID, "s", "\u017f", 1), strings.Replace(resourceID, "id1", "\u212a", 1),
	} {
		check(t, azure.ParseResourceID, in, "", reason)
	}
	const visible = "!\"#$%&'()*+-.09:;<=>?@AFGZ[\\]^_`afgz{|}~"
	for _, segment := range []string{"/s/", "/rg/", "/id1"} {
		checkBytes(t, azure.ParseResourceID, strings.Replace(resourceID, segment, segment[:2]+"^"+segment[2:], 1), visible)
	}
	longest := resourceID + strings.Repeat("x", 512-len(resourceID))
	check(t, azure.ParseResourceID, longest, azure.Selector(strings.ToLower(longest)), "")
	check(t, azure.ParseResourceID, longest+"x", "", reason)
}

func TestParseIdentity(t *testing.T) {
	for _, test := range []struct {
		in, selector, clientID, reason string
	}{
		{objectID + "=" + clientID, objectID, clientID, ""},
		{strings.ToUpper(resourceID) + "=" + strings.ToUpper(clientID), strings.ToLower(resourceID), clientID, ""},
		{"/subscriptions/s/resourceGroups/a=b/providers/Microsoft.ManagedIdentity/userAssignedIdentities/n=" + clientID,
			"/subscriptions/s/resourcegroups/a=b/providers/microsoft.managedidentity/userassignedidentities/n", clientID, ""},
		{objectID, "", "", "must be SELECTOR=CLIENT_ID"},
		{"=" + clientID, "", "", selectorWanted},
		{"id1=" + clientID, "", "", selectorWanted},
		{"/subscriptions/s/resourceGroups/rg=" + clientID, "", "", selectorWanted},
		{strings.Replace(resourceID, "rg", strings.Repeat("g", 512), 1) + "=" + clientID, "", "", selectorWanted},
	} {
		check(t, azure.ParseIdentity, test.in, azure.Identity{Selector: azure.Selector(test.selector), ClientID: azure.ClientID(test.clientID)}, test.reason)
	}
	for _, in := range []string{objectID + "=", objectID + "=app", objectID + "=" + clientID + "="} {
		if _, err := azure.ParseIdentity(in); err == nil {
			t.Errorf("%q is accepted", in)
		}
	}
}

func TestIdentities(t *testing.T) {
	const otherID = "55555555-5555-4555-8555-555555555555"
	one, again := azure.Identity{Selector: objectID, ClientID: clientID}, azure.Identity{Selector: objectID, ClientID: otherID}
	other := azure.Identity{Selector: "x", ClientID: clientID}
	if got, err := azure.Identities([]azure.Identity{one, other, one}); err != nil || len(got) != 2 || got[objectID] != clientID {
		t.Errorf("got %v, %v", got, err)
	}
	want := `"` + objectID + `": must have one client ID, and has ` + clientID + " and " + otherID
	if got, err := azure.Identities([]azure.Identity{one, again}); got != nil || err == nil || err.Error() != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}
