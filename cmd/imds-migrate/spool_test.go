package main

import (
	"bytes"
	"io"
	"os"
	"testing"
)

// TestSpool checks that what is read is what was written, in memory and beyond, and that no file is
// left.
func TestSpool(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	for _, size := range []int{0, 1, spoolMemory, spoolMemory + 1, 3 * spoolMemory} {
		text := make([]byte, size)
		for i := range text {
			text[i] = byte(i % 251)
		}
		s, err := spooled(io.MultiReader(bytes.NewReader(text[:size/3]), bytes.NewReader(text[size/3:])))
		if err != nil {
			t.Fatal(err)
		}
		if inFile := s.file != nil; inFile != (size > spoolMemory) {
			t.Errorf("%d bytes: in a file: %t", size, inFile)
		}
		for _, start := range []int{0, size / 2, size} {
			got, err := io.ReadAll(s.after(int64(start)))
			if err != nil || !bytes.Equal(got, text[start:]) {
				t.Errorf("%d bytes from %d of %d, %v", len(got), start, size, err)
			}
		}
		s.close()
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
