package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// TestLock checks that the lock file has the same packages for each architecture, and that other
// lines than those of sha256sum are refused.
func TestLock(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, lockFile))
	if err != nil {
		t.Fatal(err)
	}
	locked, err := parseLock(string(text))
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string]int{}
	for _, d := range locked {
		packages[d.name]++
	}
	for _, want := range []string{"iptables", "libc6", "base-files"} {
		if packages[want] == 0 {
			t.Errorf("there is no %s", want)
		}
	}
	for name, n := range packages {
		if n != len(nodes) {
			t.Errorf("%s is there %d times, want once for each of %v", name, n, nodes)
		}
	}
	sum := strings.Repeat("0", 64)
	for _, line := range []string{"iptables_1.8.9-2_amd64.deb", sum + "  iptables_1.8.9-2_riscv64.deb", sum + "  ../iptables_1.8.9-2_amd64.deb", sum + "  iptables_1.8.9-2;_amd64.deb"} {
		if _, err := parseLock(line + "\n"); err == nil {
			t.Errorf("%q was accepted", line)
		}
	}
}

// TestDebianErrors checks that a package that is not what the lock file says, and a package that
// cannot be had, give one line each.
func TestDebianErrors(t *testing.T) {
	dir, change, _ := newRepository(t)
	r := &release{root: dir}
	line := strings.Repeat("0", 64) + "  iptables_1.8.9-2_amd64.deb"
	change(lockFile, line+"\n")
	change(".cache/debian/iptables_1.8.9-2_amd64.deb", "something else")
	t.Setenv("PATH", "")
	check := func(want string) {
		t.Helper()
		if err := r.fetchDebian(t.Context()); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	check("apt-get not found: it downloads the Debian packages of imds-oidc-proxy-init; ")
	change("bin/apt-get", "#!/bin/sh\ncase \"$*\" in *download*) echo \"E: Version '1.8.9-2' for 'iptables' was not found\" >&2; exit 100 ;; esac\n")
	if err := os.Chmod(filepath.Join(dir, "bin/apt-get"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Join(dir, "bin"))
	check("apt-get -q: exit status 100: E: Version '1.8.9-2' for 'iptables' was not found; another mirror: ")
	change("bin/apt-get", "#!/bin/sh\n")
	check("iptables_1.8.9-2_amd64.deb has the SHA-256 ")
}

// TestWithoutDebian checks that a snapshot without Debian's packages has no chart that names an
// image which is not there.
func TestWithoutDebian(t *testing.T) {
	r := newRelease(t)
	r.debs = nil
	_, err := r.withDigests([]byte("images:\n  proxyInit:\n    repository: imds-oidc-proxy-init\n    # a\n    digest: \"\"\n"))
	if err == nil || !strings.Contains(err.Error(), "images.proxy ") {
		t.Errorf("values without images.proxy: got %v", err)
	}
	text, err := os.ReadFile(filepath.Join(repository, "charts", chartName, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	values, err := r.withDigests(text)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(values, []byte("    repository: "+nativeImage+"\n")) || bytes.Contains(values, []byte("    repository: "+iptablesImage+"\n")) {
		t.Errorf("want the image %s:\n%s", nativeImage, values)
	}
}

// TestIptables runs iptables of the image with both backends, in its own root directory.
func TestIptables(t *testing.T) {
	if os.Getuid() != 0 || runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skip("needs root, for chroot, and linux/amd64")
	}
	r := newRelease(t)
	files := tree{}
	if err := r.addDebian(t.Context(), files, "amd64"); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	content, err := files.tar(r.time)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tar", "-x", "-C", root)
	cmd.Stdin = bytes.NewReader(content)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"iptables v1.8.9 (nf_tables)", "iptables v1.8.9 (legacy)"} {
		backend := map[bool]string{true: "nft", false: "legacy"}[strings.Contains(want, "nf_tables")]
		cmd := exec.Command("/usr/sbin/iptables-"+backend, "--version")
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=/usr/sbin"}
		if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("%s: got %v, %q, want %q", backend, err, out, want)
		}
	}
	if offer := files["licenses/DEBIAN"].content; !bytes.Contains(offer, []byte("Written offer: for at least three years")) {
		t.Errorf("there is no offer of the source in\n%s", offer)
	}
	for _, license := range []string{"usr/share/doc/iptables/copyright", "usr/share/doc/libc6/copyright", "usr/share/common-licenses/GPL-2", "usr/share/common-licenses/LGPL-2.1", "licenses/DEBIAN"} {
		if len(files[license].content) == 0 {
			t.Errorf("there is no %s", license)
		}
	}
}
