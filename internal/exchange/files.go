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

// maxOpens is how often a file that does not exist is opened: it is not swapped more often
// within microseconds.
const maxOpens = 5

// readyTimeout bounds the reading of the federated token for readiness and metrics: the
// kubelet waits for a second, and the file is in memory.
const readyTimeout = time.Second

// caFileTimeout bounds the reading of an identity binding's CA file, which is in memory too.
// After it the roots that were read before are used.
const caFileTimeout = time.Second

// sharedFile reads a file once for all callers that want it at the same time. A read may hang
// in a file system: its callers leave when their time is over, and later callers join it. So
// one goroutine hangs, however many callers come.
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
var errReadTooSlow = errors.New("cannot be read in time: its file system does not answer")

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

// about begins the sentence that err continues. Nil stays nil.
func (f *sharedFile[T]) about(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s%s %w", f.what, f.path, err)
}

// readSwapped reads a file that the kubelet swaps by a symlink. The kubelet removes the old
// version at once, possibly between the lookup of the symlink and the opening of its target:
// then it opens the new version.
func readSwapped(path string, limit int64) (content []byte, err error) {
	for range maxOpens {
		if content, err = readBounded(path, limit); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return content, err
}

// readBounded reads a regular file. Other files may have no end, or wait for a writer.
func readBounded(path string, limit int64) ([]byte, error) {
	// O_NONBLOCK: opening a FIFO would otherwise wait for its writer.
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
		return &fileError{fmt.Sprintf("may not be read by UID %d", os.Getuid()), err}
	}
	return fmt.Errorf("cannot be read: %w", err)
}
