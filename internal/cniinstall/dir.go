package cniinstall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// maxFile is the maximum size of a configuration file in bytes. They have some hundred.
const maxFile = 1 << 20

// The extensions of the files that runtimes read. A file with another extension than listExtension
// configures a single plugin.
const listExtension = ".conflist"

var extensions = []string{".conf", listExtension, ".json"}

// tempPattern is the pattern of temporary files. They are in the directory of the file that they
// replace: containerd does not notice a file that is renamed into its directory from another one.
// Their extension is none that a runtime reads.
const tempPattern = ".imds-cni-*.tmp"

// file is a configuration file.
type file struct {
	path string
	text []byte
	list *list // nil: it is invalid, or configures a single plugin
	err  error // why it is invalid
}

// readFiles reads the configuration files of a directory, sorted by name, as runtimes do.
func readFiles(dir string) ([]file, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		return nil, err
	}
	var files []file
	for _, entry := range entries {
		if !entry.IsDir() && slices.Contains(extensions, filepath.Ext(entry.Name())) {
			files = append(files, readFile(filepath.Join(dir, entry.Name())))
		}
	}
	return files, nil
}

func readFile(path string) (f file) {
	f.path = path
	if f.text, f.err = readBounded(path); f.err != nil {
		return f
	}
	if filepath.Ext(path) == listExtension {
		f.list, f.err = parseList(f.text)
		return f
	}
	var single struct{ Type string }
	if err := json.Unmarshal(f.text, &single); err != nil || single.Type == "" {
		f.err = errors.New("it is no plugin's configuration")
	}
	return f
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // reading a FIFO would block
		return nil, errors.New("it is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return text, err
}

// errChanged means that another program changed the file between the reading and the edit.
var errChanged = errors.New("another program changed the file at the same time")

// write replaces the content of the file atomically. The new file has the mode and the owner of
// the old one.
func (f file) write(text []byte) error {
	info, err := os.Lstat(f.path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() { // a rename would replace a symbolic link, and not the file that it names
		return errors.New("it is not a regular file")
	}
	owner, _ := info.Sys().(*syscall.Stat_t)
	return replaceFile(f.path, info.Mode().Perm(), owner, bytes.NewReader(text), func() error {
		now, err := readBounded(f.path)
		if err == nil && !bytes.Equal(now, f.text) {
			err = errChanged
		}
		return err
	})
}

// replaceFile writes a temporary file with this mode and owner, calls ready, and renames the file
// to path. A nil owner is this process's user.
func replaceFile(path string, mode fs.FileMode, owner *syscall.Stat_t, content io.Reader, ready func() error) (err error) {
	temp, err := os.CreateTemp(filepath.Dir(path), tempPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp.Name())
		}
	}()
	_, err = io.Copy(temp, content)
	// Synced before the rename: after a power failure, the file must not be empty.
	if err = errors.Join(err, setOwner(temp, owner), temp.Chmod(mode), temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err = ready(); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// setOwner changes the owner of the file. If it is another one than this process's user, this needs
// the capability CHOWN.
func setOwner(f *os.File, owner *syscall.Stat_t) error {
	if owner == nil {
		return nil
	}
	if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
		return fmt.Errorf("cannot keep its owner %d:%d: %w", owner.Uid, owner.Gid, err)
	}
	return nil
}

// removeTemporary removes the temporary files of a run that was killed.
func removeTemporary(dirs ...string) {
	for _, dir := range dirs {
		left, _ := filepath.Glob(filepath.Join(dir, tempPattern))
		for _, path := range left {
			os.Remove(path)
		}
	}
}
