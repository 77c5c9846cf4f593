package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// krew is the version of krew that installs the plugin. go run downloads it, so that its old
// Kubernetes libraries are in no go.mod.
const krew = "sigs.k8s.io/krew/cmd/krew@v0.4.3"

// TestKrew installs the plugin's archive by the manifest, as krew does, and calls it.
func TestKrew(t *testing.T) {
	r := newRelease(t)
	r.url = "https://git.example.test/a/releases/download/v1.2.3"
	for _, p := range clients {
		if err := writeFile(r.binary(migrate, p), []byte("#!/bin/sh\necho imds-migrate v1.2.3 \"$@\"\n")); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{migrate, "proxy", "proxy-init", "webhook", "imds-cni"} {
		if err := writeFile(r.licenses(name), []byte("licenses")); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.writeArchives(t.Context()); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	install := exec.Command("go", "run", krew, "install", "--manifest="+filepath.Join(r.out, migrate+".yaml"),
		"--archive="+filepath.Join(r.out, "imds-migrate_v1.2.3_linux_amd64.tar.gz"))
	install.Env = append(os.Environ(), "KREW_ROOT="+root, "KREW_OS=linux", "KREW_ARCH=amd64", "KREW_NO_UPGRADE_CHECK=1")
	install.Dir = root // no go.mod
	if out, err := install.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(filepath.Join(root, "bin/kubectl-imds_migrate"), "version").Output()
	if err != nil || strings.TrimSpace(string(out)) != "imds-migrate v1.2.3 version" {
		t.Errorf("kubectl imds-migrate: %v, %q", err, out)
	}
	files, err := filepath.Glob(filepath.Join(root, "store", migrate, r.version, "*"))
	if err != nil || len(files) != 4 {
		t.Errorf("krew has installed %v, %v, want the program, LICENSE, NOTICE and THIRD_PARTY", files, err)
	}
}
