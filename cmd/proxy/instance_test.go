package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestInstanceMetadataFile: a running proxy without forwarding serves the file, with the fields that
// it lacks. The file is a link, as in the volume of a ConfigMap.
func TestInstanceMetadataFile(t *testing.T) {
	p := newPod(t)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "..2026"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "..2026", "instance.json"), []byte(`{"compute": {"location": "westeurope", "subscriptionId": "7d1b0c9a-4f3e-4a2d-8b6c-5e0f9a8b7c6d"}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "instance.json")
	if err := os.Symlink("..2026/instance.json", path); err != nil {
		t.Fatal(err)
	}
	p.environment["PROXY_INSTANCE_METADATA"] = path
	// As Kubernetes expands $(IMDS_NODE_NAME), and a label that the pod does not have.
	p.environment["PROXY_INSTANCE_METADATA_FIELDS"] = "compute/name=node-1,compute/osProfile/computerName=node-1,compute/location="
	log := runPod(t, p)
	for target, want := range map[string]string{
		"/metadata/instance/compute?api-version=2021-02-01":                                    `{"location":"westeurope","subscriptionId":"7d1b0c9a-4f3e-4a2d-8b6c-5e0f9a8b7c6d","name":"node-1","osProfile":{"computerName":"node-1"}}`,
		"/metadata/instance/compute/location?api-version=2021-10-01&format=text":               "westeurope",
		"/metadata/instance/compute/osProfile/computerName?api-version=2025-04-07&format=text": "node-1",
	} {
		if status, body := fetch(t, p.port, target, http.Header{"Metadata": {"true"}}); status != http.StatusOK || body != want {
			t.Errorf("%s: got %d %s, want %s\n%s", target, status, body, want, log)
		}
	}
	if status, body := fetch(t, p.admin, "/metadata/instance?api-version=2021-02-01", http.Header{"Metadata": {"true"}}); status != http.StatusNotFound {
		t.Errorf("admin port: got %d %s, want 404", status, body)
	}
	if _, body := fetch(t, p.admin, "/metrics", nil); !strings.Contains(body, `imds_oidc_proxy_request_duration_seconds_count{handler="instance"} 3`) {
		t.Errorf("metrics:\n%s", body)
	}
}

// TestInstanceMetadataFileIsBounded: a file of 10 MB and a named pipe end the start, with one line.
func TestInstanceMetadataFileIsBounded(t *testing.T) {
	dir := t.TempDir()
	large, pipe := filepath.Join(dir, "large.json"), filepath.Join(dir, "pipe.json")
	if err := os.WriteFile(large, []byte(`{"compute":{"userData":"`+strings.Repeat("x", 10<<20)+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{large: "must have at most 524288 bytes", pipe: "must be a regular file"} {
		var stderr bytes.Buffer
		code := run(t.Context(), []string{"--instance-metadata=" + file}, podEnvironment(nil), &stderr, &stderr)
		if got := stderr.String(); code != exitUsage || got != "proxy: --instance-metadata (PROXY_INSTANCE_METADATA) "+file+": "+want+"\n" {
			t.Errorf("got exit code %d, %s", code, got)
		}
	}
}

// TestCheckInstanceMetadata: `proxy check` reports the file, or what is wrong with it.
func TestCheckInstanceMetadata(t *testing.T) {
	p := newCheckedPod(t, nil)
	p.startProxy()
	path := filepath.Join(t.TempDir(), "instance.json")
	p.environment["PROXY_INSTANCE_METADATA"] = path
	if out, code := p.check(); code != 10 || !strings.Contains(out, "--instance-metadata (PROXY_INSTANCE_METADATA) "+path+": cannot be read: no such file or directory") {
		t.Errorf("no file: got exit code %d:\n%s", code, out)
	}
	if err := os.WriteFile(path, []byte(`{"compute": {}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := p.check(); code != exitOK || !strings.Contains(out, "--instance-metadata") || !strings.Contains(out, path+": the answer to requests for /metadata/instance") {
		t.Errorf("got exit code %d:\n%s", code, out)
	}
}
