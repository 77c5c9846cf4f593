package cniinstall

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestCopyBinary(t *testing.T) {
	large := strings.Repeat("x", 64<<10)
	for name, before := range map[string]func(n *node) error{
		"missing":        func(n *node) error { return nil },
		"older":          func(n *node) error { return os.WriteFile(n.binary(), []byte("an old program"), 0o755) },
		"shorter":        func(n *node) error { return os.WriteFile(n.binary(), []byte(large), 0o755) },
		"longer":         func(n *node) error { return os.WriteFile(n.binary(), []byte(large+large+"x"), 0o755) },
		"one byte":       func(n *node) error { return os.WriteFile(n.binary(), []byte(large+large[1:]+"y"), 0o755) },
		"not executable": func(n *node) error { return os.WriteFile(n.binary(), []byte(large+large), 0o644) },
		"a link":         func(n *node) error { return os.Symlink(n.Program, n.binary()) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			n.write(n.Program, large+large)
			if err := before(n); err != nil {
				t.Fatal(err)
			}
			for i, want := range []bool{true, false} {
				copied, err := copyBinary(n.Program, n.binary())
				if err != nil || copied != want {
					t.Errorf("call %d: got %t, %v, want %t", i+1, copied, err, want)
				}
			}
			if info, err := os.Lstat(n.binary()); err != nil || info.Mode() != 0o755 || n.read(n.binary()) != large+large {
				t.Errorf("got %v, %v", info, err)
			}
			n.checkNoTemporary()
		})
	}
}

func TestCopyBinaryFails(t *testing.T) {
	n := newNode(t, nil)
	if _, err := copyBinary(n.Program+"-not", n.binary()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: got %v", err)
	}
	if err := os.Mkdir(n.binary(), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := copyBinary(n.Program, n.binary()); err == nil {
		t.Error("a directory in its place: got no error")
	}
	n.checkNoTemporary()
}
