package cniinstall

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestReadFiles: files are sorted by name. Other extensions, temporary files and directories are
// left out.
func TestReadFiles(t *testing.T) {
	n := newNode(t, map[string]string{
		"10-b.conflist": lists["azure"], "05-a.conflist": lists["cilium"], "20-c.conf": `{"type":"bridge","name":"n"}`,
		"30-d.json": `{"type":"loopback"}`, "40-e.conflist": "{", "41-f.conf": lists["azure"], "42-g.json": "x",
		".imds-cni-1.tmp": lists["azure"], "10-b.conflist.bak": lists["azure"], "README": "",
		"49-largest.conflist": lists["azure"] + strings.Repeat(" ", maxFile-len(lists["azure"])),
		"50-large.conflist":   `{"name":"` + strings.Repeat("x", maxFile) + `"}`,
	})
	if err := os.Mkdir(n.conf("00-dir.conflist"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(n.conf("01-fifo.conflist"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("gone", n.conf("02-gone.conflist")); err != nil {
		t.Fatal(err)
	}
	files, err := readFiles(n.ConfDir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files {
		state := "list"
		if f.list == nil {
			state = "single"
		}
		if f.err != nil {
			state = f.err.Error()
		}
		got = append(got, filepath.Base(f.path)+": "+strings.ReplaceAll(state, n.ConfDir+"/", ""))
	}
	want := `01-fifo.conflist: it is not a regular file
02-gone.conflist: stat 02-gone.conflist: no such file or directory
05-a.conflist: list
10-b.conflist: list
20-c.conf: single
30-d.json: single
40-e.conflist: its JSON ends too early
41-f.conf: it is no plugin's configuration
42-g.json: it is no plugin's configuration
49-largest.conflist: list
50-large.conflist: it is larger than 1048576 bytes`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// TestWriteKeepsMode: the new file has the mode of the old one, and also its owner, for which
// this test runs as root.
func TestWriteKeepsMode(t *testing.T) {
	n := newNode(t, map[string]string{"10.conflist": lists["azure"]})
	path := n.conf("10.conflist")
	wantUID, wantGID := os.Geteuid(), os.Getegid()
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		switch err := os.Chown(path, 1000, 1001); {
		case err == nil:
			wantUID, wantGID = 1000, 1001
		case !errors.Is(err, syscall.EINVAL): // the user namespace of make mutate has no other user
			t.Fatal(err)
		}
	}
	if err := readFile(path).write([]byte("new")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	if info.Mode() != 0o640 || int(stat.Uid) != wantUID || int(stat.Gid) != wantGID || n.read(path) != "new" {
		t.Errorf("got mode %v, owner %d:%d, %q", info.Mode(), stat.Uid, stat.Gid, n.read(path))
	}
	n.checkNoTemporary()
}

func (n *node) checkNoTemporary() {
	n.t.Helper()
	for _, dir := range []string{n.ConfDir, n.BinDir} {
		if left, _ := filepath.Glob(filepath.Join(dir, tempPattern)); len(left) > 0 {
			n.t.Errorf("left over: %q", left)
		}
	}
}

// TestWriteConflict: a file that another program changed after the reading stays as it is.
func TestWriteConflict(t *testing.T) {
	n := newNode(t, map[string]string{"10.conflist": lists["azure"]})
	path := n.conf("10.conflist")
	f := readFile(path)
	n.write(path, lists["cilium"])
	if err := f.write([]byte("new")); !errors.Is(err, errChanged) || n.read(path) != lists["cilium"] {
		t.Errorf("got %v and %q, want the other program's text", err, n.read(path))
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := f.write([]byte("new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed meanwhile: got %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("the file was made again")
	}
	n.checkNoTemporary()
}

// TestWriteLink: a symbolic link is not replaced.
func TestWriteLink(t *testing.T) {
	n := newNode(t, nil)
	n.write(n.Program+".conflist", lists["azure"])
	if err := os.Symlink(n.Program+".conflist", n.conf("10.conflist")); err != nil {
		t.Fatal(err)
	}
	if err := readFile(n.conf("10.conflist")).write([]byte("new")); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("got %v", err)
	}
	if n.read(n.conf("10.conflist")) != lists["azure"] {
		t.Error("the file changed")
	}
}

// TestReplaceFileFails: after a failure to write, the old file is there and no temporary one.
func TestReplaceFileFails(t *testing.T) {
	n := newNode(t, map[string]string{"10.conflist": "old"})
	failing := errors.New("disk failed")
	err := replaceFile(n.conf("10.conflist"), 0o600, nil, &failingReader{failing}, func() error { return nil })
	if !errors.Is(err, failing) || n.read(n.conf("10.conflist")) != "old" {
		t.Errorf("got %v and %q", err, n.read(n.conf("10.conflist")))
	}
	n.checkNoTemporary()
	if err := replaceFile(n.ConfDir+"/no/such/dir", 0o600, nil, bytes.NewReader(nil), func() error { return nil }); err == nil {
		t.Error("got no error for a missing directory")
	}
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }
