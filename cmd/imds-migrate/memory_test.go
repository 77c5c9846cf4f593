//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"imds-oidc-proxy/test/kit/local"
	"imds-oidc-proxy/test/kit/memory"
)

// TestMemory checks that the memory of a run depends on the largest document and not on the number
// of documents: the parsed documents of the long stream together would need several times the bound.
func TestMemory(t *testing.T) {
	const document = `apiVersion: apps/v1
kind: Deployment
metadata: {name: app-%d}
spec:
  template:
    metadata:
      labels: {azure.workload.identity/use: "true"}
      annotations: {azure.workload.identity/inject-proxy-sidecar: "true"}
    spec:
      containers:
      - name: app
        image: registry.example.test/app:1
        args: [%s]
---
`
	args := strings.TrimSuffix(strings.Repeat("argument, ", 200), ", ")
	run := func(documents int) (bytes int64, lines string) {
		executable, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		var messages strings.Builder
		cmd := exec.Command(executable, append([]string{commandInject}, configuration...)...)
		cmd.Args[0] = "imds-migrate" // for TestMain
		cmd.Env = append(os.Environ(), "GOGC=50", "GOMAXPROCS=1")
		in, out := io.Pipe()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, io.Discard, &messages
		go func() {
			for i := range documents {
				fmt.Fprintf(out, document, i, args)
			}
			out.Close()
		}()
		peak, err := memory.Run(cmd)
		if err != nil {
			t.Fatalf("%v: %s", err, &messages)
		}
		return peak, messages.String()
	}
	few, _ := run(20)
	many, messages := run(400)
	if !strings.HasSuffix(messages, "400 injected, 0 unchanged, 0 skipped\n") {
		t.Fatalf("got %q", messages)
	}
	// bound is for two spools of 4 MiB and uncollected garbage. A program that keeps all parsed
	// documents uses 70 MiB more.
	bound := int64(24 << 20)
	if local.RaceEnabled {
		bound = 64 << 20 // the detector's own memory follows the garbage
	}
	if many-few > bound {
		t.Errorf("%d MiB for 20 documents and %d MiB for 400: at most %d MiB more are allowed", few>>20, many>>20, bound>>20)
	}
}
