package inject_test

import (
	"testing"

	"imds-oidc-proxy/internal/imds"
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
		if got, want := err == nil, imds.ValidResource(resource); got != want {
			t.Errorf("%s: injected %t (%v), taken by the proxy %t", resource, got, err, want)
		}
	}
}
