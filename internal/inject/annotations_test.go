package inject_test

import (
	"strings"
	"testing"

	"imds-oidc-proxy/internal/inject"
)

// TestShownValuesAreBounded checks that a message repeats at most 100 bytes of a name from the
// pod.
func TestShownValuesAreBounded(t *testing.T) {
	const prefix = "imds-oidc-proxy/"
	for length, want := range map[int]string{
		100: prefix + strings.Repeat("x", 100-len(prefix)) + ": ",
		101: prefix + strings.Repeat("x", 100-len(prefix)) + "…: ",
	} {
		pod := injected(annotate(prefix+strings.Repeat("x", length-len(prefix)), ""))
		_, err := inject.Pod(pod, account(), config())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("name of %d bytes: got %v, want %s", length, err, want)
		}
	}
}
