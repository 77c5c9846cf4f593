package inject_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

// TestPrefetchIsWhatTheProxyTakes: a pod whose proxy would refuse to start is
// refused here, where its author reads why.
func TestPrefetchIsWhatTheProxyTakes(t *testing.T) {
	for _, resource := range []string{
		"https://vault.azure.net", "https://vault.azure.net/", "api://app/.default", "https://a.example.test/%2f?x=[1]",
		"00000002-0000-0000-c000-000000000000", "00000002-0000-0000-c000-000000000000/.default",
		"vault.azure.net", "https:", ":x", "1a:x", "https://a.example.test/#part", "https://a.example.test/%2", "https://a.example.test/ü",
		"https://a example.test", `https://"`, "00000002-0000-0000-c000", "a+b-c.1:x",
	} {
		_, err := inject.Pod(injected(annotate(inject.PrefetchAnnotation, resource)), account(), config())
		_, wanted := azure.ParseResource(resource)
		if got, want := err == nil, wanted == nil; got != want {
			t.Errorf("%s: injected %t (%v), taken by the proxy %t", resource, got, err, want)
		}
	}
}

// TestIdentitiesAreWhatTheProxyTakes, as are resources.
func TestIdentitiesAreWhatTheProxyTakes(t *testing.T) {
	const group = "/subscriptions/33333333-0000-4000-8000-000000000001/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/"
	for _, selector := range []string{
		objectID, strings.ToUpper(objectID), objectID[1:], "{" + objectID + "}", "name", "",
		group + "app", strings.ToUpper(group) + "app", group + "a!~'(b)", group, group + "a/b", group + "a b", group + "ü", "/" + group + "app",
		strings.Replace(group, "s", "ſ", 1) + "app", strings.Replace(group, "k", "K", 1) + "app",
		group + strings.Repeat("a", 512-len(group)), group + strings.Repeat("a", 513-len(group)),
	} {
		pair := selector + "=" + clientID
		_, err := inject.Pod(injected(annotate(inject.IdentitiesAnnotation, pair)), account(), config())
		_, wanted := azure.ParseIdentity(pair)
		if (err == nil) != (wanted == nil) {
			t.Errorf("%s: injected: %v, taken by the proxy: %v", selector, err, wanted)
		}
	}
}
