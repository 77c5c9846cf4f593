package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"
)

// maxOpens bounds the attempts to open a file that does not exist. The kubelet does not replace
// it more often within microseconds.
const maxOpens = 5

// readyTimeout bounds reading the federated token for readiness and metrics: the kubelet's
// probe waits for a second, and the file is on a tmpfs.
const readyTimeout = time.Second

// caFileTimeout bounds reading the CA file of an identity binding, which is on a tmpfs too.
// After it, the roots that were read before are used.
const caFileTimeout = time.Second

// sharedFile reads a file once for all callers that want it at the same time. A read may hang
// in a file system: then its callers leave when their context ends, and later callers join
// it, so that only one goroutine hangs.
type sharedFile[T any] struct {
	what  string // for errors, before the path
	path  string
	load  func(path string) (T, error)
	group singleflight.Group
}

func newTokenFile(path string) *sharedFile[FederatedToken] {
	return &sharedFile[FederatedToken]{what: "federated token file ", path: path, load: ReadFederatedToken}
}

// errReadTooSlow continues a sentence that names the file.
var errReadTooSlow = errors.New("cannot be read in time: its file system does not respond")

func (f *sharedFile[T]) read(ctx context.Context) (T, error) {
	read := f.group.DoChan("", func() (any, error) { return f.load(f.path) })
	select {
	case result := <-read:
		return result.Val.(T), result.Err
	case <-ctx.Done():
		var nothing T
		return nothing, f.about(errReadTooSlow)
	}
}

// about puts the name of the file before err, which continues the sentence. It returns nil for
// nil.
func (f *sharedFile[T]) about(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s%s %w", f.what, f.path, err)
}

// readSwapped reads a file that the kubelet replaces by changing a symlink. The kubelet removes
// the old version immediately, possibly after the symlink was resolved and before its target
// is opened: then readSwapped opens the new version.
func readSwapped(path string, limit int64) (content []byte, err error) {
	for range maxOpens {
		if content, err = readBounded(path, limit); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return content, err
}

// readBounded reads a regular file of at most limit bytes. Other files may be endless, or block
// until there is a writer.
func readBounded(path string, limit int64) ([]byte, error) {
	// Without O_NONBLOCK, opening a FIFO waits for its writer.
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, openError(err)
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, openError(err)
	case info.IsDir():
		return nil, errors.New("is a directory")
	case !info.Mode().IsRegular():
		return nil, errors.New("is not a regular file")
	}
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	switch {
	case err != nil:
		return nil, openError(err)
	case int64(len(content)) > limit:
		return nil, fmt.Errorf("is larger than %d bytes", limit)
	}
	return content, nil
}

// fileError is an error of package fs with a text that continues a sentence.
type fileError struct {
	text  string
	cause error
}

func (e *fileError) Error() string { return e.text }
func (e *fileError) Unwrap() error { return e.cause }

func openError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &fileError{"does not exist", err}
	case errors.Is(err, fs.ErrPermission):
		return &fileError{fmt.Sprintf("is not readable by UID %d", os.Getuid()), err}
	}
	return fmt.Errorf("cannot be read: %w", err)
}
