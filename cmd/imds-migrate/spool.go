package main

import (
	"io"
	"os"
)

// spoolMemory is how many bytes a spool holds in memory.
const spoolMemory = 4 << 20

// spool holds a stream that is read later: standard input, which is read twice, and the output,
// which is written only if nothing is refused. A long one is in a temporary file, so that the memory
// of a run does not grow with its stream. The file has no name while it is used, where the system
// allows this: manifests may contain secrets.
type spool struct {
	memory []byte
	file   *os.File // nil: all is in memory
	named  bool     // the file has a name that close must remove, as on Windows
	size   int64
}

// spooled returns a spool with everything in a stream.
func spooled(in io.Reader) (*spool, error) {
	s := new(spool)
	_, err := io.Copy(s, in)
	return s, err
}

// Write implements io.Writer.
func (s *spool) Write(text []byte) (int, error) {
	if s.file == nil && s.size+int64(len(text)) > spoolMemory {
		if err := s.spill(); err != nil {
			return 0, err
		}
	}
	s.size += int64(len(text))
	if s.file == nil {
		s.memory = append(s.memory, text...)
		return len(text), nil
	}
	return s.file.Write(text)
}

// spill moves the stream to a temporary file.
func (s *spool) spill() (err error) {
	if s.file, err = os.CreateTemp("", "imds-migrate.*"); err != nil {
		return err
	}
	s.named = os.Remove(s.file.Name()) != nil
	_, err = s.file.Write(s.memory)
	s.memory = nil
	return err
}

// ReadAt implements io.ReaderAt.
func (s *spool) ReadAt(into []byte, offset int64) (int, error) {
	if s.file != nil {
		return s.file.ReadAt(into, offset)
	}
	n := copy(into, s.memory[min(offset, s.size):])
	if n < len(into) {
		return n, io.EOF
	}
	return n, nil
}

// after returns a reader of what was written after a position.
func (s *spool) after(start int64) *io.SectionReader {
	return io.NewSectionReader(s, start, s.size-start)
}

func (s *spool) close() {
	if s == nil || s.file == nil {
		return
	}
	s.file.Close()
	if s.named {
		os.Remove(s.file.Name())
	}
}
