//go:build unix

package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestInPlaceKeepsOwner checks that root does not become the owner of a changed file.
func TestInPlaceKeepsOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may change the owner of a file; CI runs as root")
	}
	path := filepath.Join(t.TempDir(), "a.yaml")
	writeFile(t, path, "old")
	if err := os.Chown(path, 1000, 1001); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := writeInPlace([]*file{changedFile(path)}); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 1000 || stat.Gid != 1001 || info.Mode().Perm() != 0o640 {
		t.Errorf("%d:%d, %v", stat.Uid, stat.Gid, info.Mode())
	}
}
