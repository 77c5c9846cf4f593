package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// stdinName is standard input among the files.
const stdinName = "-"

// file is a stream of manifests.
type file struct {
	name  string // for messages
	path  string // empty: standard input
	text  []byte
	after []byte // with everything done
}

func (f *file) changed() bool { return !bytes.Equal(f.text, f.after) }

// read takes the files that are named, and those in directories.
func read(names []string, stdin io.Reader) ([]*file, error) {
	if len(names) == 0 {
		names = []string{stdinName}
	}
	var files []*file
	seen := map[string]bool{}
	for _, name := range names {
		paths, err := expand(name)
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			if seen[filepath.Clean(path)] {
				continue // named twice, as dir and dir/a.yaml
			}
			seen[filepath.Clean(path)] = true
			f, err := readFile(path, stdin)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
}

func readFile(name string, stdin io.Reader) (*file, error) {
	if name == stdinName {
		text, err := io.ReadAll(stdin)
		return &file{name: "stdin", text: text}, err
	}
	text, err := os.ReadFile(name)
	return &file{name: name, path: name, text: text}, err
}

// expand is the manifests of a directory, in the order of their names; or the name.
func expand(name string) ([]string, error) {
	if name == stdinName {
		return []string{name}, nil
	}
	info, err := os.Stat(name)
	if err != nil || !info.IsDir() {
		return []string{name}, err
	}
	var found []string
	err = filepath.WalkDir(name, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != name && strings.HasPrefix(entry.Name(), "."):
			return filepath.SkipDir
		case !entry.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(path)):
			found = append(found, path)
		}
		return nil
	})
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s: no .yaml, .yml or .json in it", name)
	}
	return found, err
}

// write puts the result where it is to go.
func (o *options) write(files []*file, stdout io.Writer) error {
	switch {
	case o.inPlace:
		return writeInPlace(files)
	case o.diff:
		for _, f := range files {
			name := diffName(f.name)
			if _, err := stdout.Write(diff.Diff("a/"+name, f.text, "b/"+name, f.after)); err != nil {
				return err
			}
		}
		return nil
	}
	_, err := stdout.Write(joined(files))
	return err
}

// diffName is a file's name below a/ and b/. What is not below the working directory is
// named from the root, for patch -p1 -d /: patch follows no .. out of where it runs.
func diffName(name string) string {
	if !filepath.IsAbs(name) && !filepath.IsLocal(name) {
		if absolute, err := filepath.Abs(name); err == nil {
			name = absolute
		}
	}
	name = strings.TrimPrefix(filepath.ToSlash(filepath.Clean(name)), "/")
	if strings.Contains(name, " ") {
		name += "\t" // ends it, as git does: a blank alone would
	}
	return name
}

// joined is all files as one stream; a single file is what it is. kubectl takes what
// begins with a brace for JSON to the end, where there are no markers (until 1.33): it
// would read the first file and stop at the second.
func joined(files []*file) []byte {
	var out bytes.Buffer
	for i, f := range files {
		text := f.after
		if i > 0 {
			text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // it stands before a stream, not in one
			out.WriteString(between(out.Bytes(), text))
		}
		out.Write(text)
	}
	if len(files) > 1 && bytes.HasPrefix(bytes.TrimSpace(out.Bytes()), []byte("{")) {
		return append([]byte("---\n"), out.Bytes()...)
	}
	return out.Bytes()
}

// between ends what was written and begins the next file: by a marker, if it does not
// bring its own, and by the end of a document, if it begins with directives.
func between(before, next []byte) string {
	var text string
	if len(before) > 0 && !bytes.HasSuffix(before, []byte("\n")) {
		text = "\n"
	}
	switch {
	case bytes.HasPrefix(next, []byte("---")):
		return text
	case bytes.HasPrefix(next, []byte("%")):
		return text + "...\n"
	}
	return text + "---\n"
}
