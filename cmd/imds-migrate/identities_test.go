package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMaxIdentities: a pod gets no more identities than the limit, and the message names the ways
// to get fewer.
func TestMaxIdentities(t *testing.T) {
	for n, want := range map[int]int{maxIdentities: exitOK, maxIdentities + 1: exitRefused} {
		var items []string
		for i := range n {
			items = append(items, fmt.Sprintf(`{"clientId": "11111111-1111-4111-8111-%012d", "principalId": "66666666-6666-4666-8666-%012d"}`, i, i))
		}
		dir := t.TempDir()
		identities, app := filepath.Join(dir, "az.json"), filepath.Join(dir, "app.yaml")
		for name, text := range map[string]string{identities: "[" + strings.Join(items, ",\n") + "]", app: `apiVersion: v1
kind: Pod
metadata:
  name: app
  labels: {azure.workload.identity/use: "true"}
  annotations: {azure.workload.identity/inject-proxy-sidecar: "true"}
spec:
  containers: [{name: app, image: app}]
`} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var out, messages strings.Builder
		code := run(append([]string{"inject", "--identity-file=" + identities, app}, configuration...), nil, &out, &messages)
		if code != want || code == exitRefused && !strings.Contains(messages.String(), fmt.Sprintf("--identity-file: %d identities for this pod: must be at most %d; list the client IDs in annotation", n, maxIdentities)) {
			t.Errorf("%d identities: got exit code %d, %s", n, code, &messages)
		}
		if got := strings.Count(out.String(), "66666666-6666-4666-8666-"); code == exitOK && got != 2*n {
			t.Errorf("%d identities: %d in the output, want them in the annotation and in the variable", n, got)
		}
	}
}
