package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// replacement is a temporary file with the new text of a file.
type replacement struct {
	name            string // for messages
	temporary, path string
}

// writeInPlace replaces the files that change. It first writes temporary files in the same
// directories for all of them, and then renames them, so that no file has changed if the disk is
// full or a directory is not writable.
func writeInPlace(files []*file) error {
	var replacements []replacement
	defer func() {
		for _, r := range replacements {
			os.Remove(r.temporary) // fails if it was renamed
		}
	}()
	for _, f := range files {
		if !f.changed {
			continue
		}
		r, err := prepare(f)
		if err != nil {
			return fmt.Errorf("nothing was written: %s: %w", f.name, err)
		}
		replacements = append(replacements, r)
	}
	return replace(replacements)
}

// prepare writes the temporary file, with the mode and owner of the file. It does not replace a
// symbolic link, but the file that it points to.
func prepare(f *file) (r replacement, err error) {
	path, err := filepath.EvalSymlinks(f.path)
	if err != nil {
		return r, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return r, err
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return r, err
	}
	_, err = io.Copy(temporary, f.after)
	keepOwner(temporary, info)
	if err := errors.Join(err, temporary.Chmod(info.Mode().Perm()), temporary.Sync(), temporary.Close()); err != nil {
		os.Remove(temporary.Name())
		return r, err
	}
	return replacement{name: f.name, temporary: temporary.Name(), path: path}, nil
}

// replace renames the temporary files. Each rename is atomic. It fails, for example, for a file
// that is a mount point.
func replace(replacements []replacement) error {
	var written []string
	for _, r := range replacements {
		if err := os.Rename(r.temporary, r.path); err != nil {
			return fmt.Errorf("%s: %w; files that were written: %s", r.name, withoutNames(err), cmp.Or(strings.Join(written, ", "), "none"))
		}
		written = append(written, r.name)
	}
	return nil
}

// withoutNames returns the reason of a failed rename, without the name of the temporary file.
func withoutNames(err error) error {
	if link, ok := errors.AsType[*os.LinkError](err); ok {
		return link.Err
	}
	return err
}
