package shell_test

import (
	"os/exec"
	"testing"

	"imds-oidc-proxy/internal/shell"
)

// TestQuote checks that a shell reads each text back as it was.
func TestQuote(t *testing.T) {
	for _, text := range []string{"", "app", "a b", "'", "it's $(x) `y` \"z\" \\", "*", "~", "-n", "a\nb", "a;b&c|d>e", "{\"a\": null}", "#", "!", "é"} {
		got, err := exec.Command("sh", "-c", "printf %s "+shell.Quote(text)).Output()
		if err != nil || string(got) != text {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}
