package main

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// stdinName is the file name that means standard input.
const stdinName = "-"

// file is a file of manifests, or standard input.
type file struct {
	name    string // for messages
	path    string // empty: standard input
	stdin   *spool
	changed bool
	after   *io.SectionReader // the text with all changes
}

// open returns the text before the changes.
func (f *file) open() (io.ReadCloser, error) {
	if f.path == "" {
		return io.NopCloser(f.stdin.after(0)), nil
	}
	return os.Open(f.path)
}

// isUTF16 reports whether a text begins with the byte order mark of UTF-16, which PowerShell's >
// writes.
func isUTF16(in *bufio.Reader) bool {
	mark, _ := in.Peek(2)
	return string(mark) == "\xff\xfe" || string(mark) == "\xfe\xff"
}

// find returns the named files, and those in named directories. It reads standard input.
func find(names []string, stdin io.Reader) ([]*file, error) {
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
				continue // named twice, for example as dir and dir/a.yaml
			}
			seen[filepath.Clean(path)] = true
			f, err := newFile(path, stdin)
			if err != nil {
				return nil, err
			}
			files = append(files, f)
		}
	}
	return files, nil
}

func newFile(name string, stdin io.Reader) (f *file, err error) {
	if name != stdinName {
		return &file{name: name, path: name}, nil
	}
	f = &file{name: "stdin"}
	f.stdin, err = spooled(stdin)
	return f, err
}

// expand returns the paths of the manifests in a directory, sorted by name. For a file it returns
// the name.
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
		err = fmt.Errorf("%s: contains no .yaml, .yml or .json file", name)
	}
	return found, err
}

// write writes the result in place, as differences, or to stdout.
func (o *options) write(files []*file, stdout io.Writer) error {
	switch {
	case o.inPlace:
		return writeInPlace(files)
	case o.diff:
		for _, f := range files {
			if err := f.writeDiff(stdout); err != nil {
				return err
			}
		}
		return nil
	}
	return writeJoined(files, stdout)
}

// writeDiff writes the differences of one file, which it holds in memory.
func (f *file) writeDiff(stdout io.Writer) error {
	if !f.changed {
		return nil
	}
	in, err := f.open()
	if err != nil {
		return err
	}
	defer in.Close()
	before, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	after, err := io.ReadAll(f.after)
	if err != nil {
		return err
	}
	name := diffName(f.name)
	_, err = stdout.Write(diff.Diff("a/"+name, before, "b/"+name, after))
	return err
}

// diffName returns a file's name after a/ and b/. A file outside of the working directory has its
// absolute path, for patch -p1 -d /, because patch does not accept paths with "..".
func diffName(name string) string {
	if !filepath.IsAbs(name) && !filepath.IsLocal(name) {
		if absolute, err := filepath.Abs(name); err == nil {
			name = absolute
		}
	}
	name = strings.TrimPrefix(filepath.ToSlash(filepath.Clean(name)), "/")
	if strings.Contains(name, " ") {
		name += "\t" // as git does: otherwise the name ends at the space
	}
	return name
}

// writeJoined writes all files as one stream of documents. A single file is not changed. If the
// first file begins with a brace, the stream begins with a marker: until 1.33, kubectl reads a stream
// that begins with a brace as JSON without markers, and fails at the second file.
func writeJoined(files []*file, stdout io.Writer) error {
	buffer := bufio.NewWriter(stdout)
	out := &lastByte{to: buffer}
	for i, f := range files {
		in := bufio.NewReader(f.after)
		switch {
		case i > 0:
			if mark, _ := in.Peek(3); string(mark) == "\xef\xbb\xbf" {
				in.Discard(3) // a byte order mark is valid only at the start of a stream
			}
			io.WriteString(out, between(out.last, in))
		case len(files) > 1 && beginsWithBrace(f.after):
			io.WriteString(out, "---\n")
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	return buffer.Flush()
}

// lastByte is a writer that knows the last byte that was written, or 0.
type lastByte struct {
	to   io.Writer
	last byte
}

func (w *lastByte) Write(text []byte) (int, error) {
	if len(text) > 0 {
		w.last = text[len(text)-1]
	}
	return w.to.Write(text)
}

// beginsWithBrace reports whether the first character that is not white space is a brace. It does
// not change the position of the text.
func beginsWithBrace(text *io.SectionReader) bool {
	in := bufio.NewReader(io.NewSectionReader(text, 0, text.Size()))
	for {
		switch b, err := in.ReadByte(); {
		case err != nil:
			return false
		case !strings.ContainsRune(" \t\r\n", rune(b)):
			return b == '{'
		}
	}
}

// between returns the text between two files: a marker, unless the next file begins with one. If
// the next file begins with directives, it is the end of a document.
func between(last byte, next *bufio.Reader) string {
	var text string
	if last != 0 && last != '\n' {
		text = "\n"
	}
	switch start, _ := next.Peek(3); {
	case string(start) == "---":
		return text
	case strings.HasPrefix(string(start), "%"):
		return text + "...\n"
	}
	return text + "---\n"
}
