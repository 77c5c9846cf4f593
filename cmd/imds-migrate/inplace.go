package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// replacement is what a file is to become, written and not yet in its place.
type replacement struct {
	name            string // for messages
	temporary, path string
}

// writeInPlace writes the files that change beside what they replace, all of them before
// the first is put in its place: a full disk or a directory that cannot be written is
// found while all is as it was.
func writeInPlace(files []*file) error {
	var replacements []replacement
	defer func() {
		for _, r := range replacements {
			os.Remove(r.temporary) // if it is there still
		}
	}()
	for _, f := range files {
		if !f.changed() {
			continue
		}
		r, err := prepare(f)
		if err != nil {
			return fmt.Errorf("nothing is written: %s: %w", f.name, err)
		}
		replacements = append(replacements, r)
	}
	return replace(replacements)
}

// prepare keeps mode and owner. A symbolic link goes on pointing where it does.
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
	_, err = temporary.Write(f.after)
	keepOwner(temporary, info)
	if err := errors.Join(err, temporary.Chmod(info.Mode().Perm()), temporary.Sync(), temporary.Close()); err != nil {
		os.Remove(temporary.Name())
		return r, err
	}
	return replacement{name: f.name, temporary: temporary.Name(), path: path}, nil
}

// replace has each name show the old or the new text at any time, and nothing between.
// What can fail here is, for instance, a file that is a mount of its own.
func replace(replacements []replacement) error {
	var written []string
	for _, r := range replacements {
		if err := os.Rename(r.temporary, r.path); err != nil {
			return fmt.Errorf("%s: %w; written before it: %s", r.name, withoutNames(err), cmp.Or(strings.Join(written, ", "), "nothing"))
		}
		written = append(written, r.name)
	}
	return nil
}

// withoutNames returns why a rename failed, without the name of the temporary file.
func withoutNames(err error) error {
	if link, ok := errors.AsType[*os.LinkError](err); ok {
		return link.Err
	}
	return err
}
