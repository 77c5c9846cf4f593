package cniinstall

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
)

// copyBinary copies the program to path, unless it is there. It reports whether it copied.
func copyBinary(program, path string) (copied bool, err error) {
	source, err := os.Open(program)
	if err != nil {
		return false, err
	}
	defer source.Close()
	same, err := isCopy(source, path)
	if err != nil || same {
		return false, err
	}
	if _, err := source.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	// A rename, since the runtime may be running the old program, whose file cannot be written.
	return true, replaceFile(path, binaryMode, nil, source, func() error { return nil })
}

// binaryMode is the mode of a plugin.
const binaryMode = 0o755

// isCopy reports whether the file at path has the content of source, and can be run.
func isCopy(source io.Reader, path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || info.Mode() != binaryMode {
		return false, err
	}
	existing, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer existing.Close()
	return sameContent(source, existing)
}

// sameContent compares without reading whole programs into memory.
func sameContent(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		switch {
		case errA == nil && errB == nil:
		case isEnd(errA) && isEnd(errB):
			return true, nil
		default:
			return false, errors.Join(errA, errB)
		}
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
