package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestProgress checks that the progress is shown on a terminal after a second, and removed.
func TestProgress(t *testing.T) {
	var out strings.Builder
	start := time.Unix(0, 0)
	now := start
	p := &progress{to: &out, terminal: true, now: func() time.Time { return now }, began: start}
	p.show("pods")
	now = start.Add(quiet - 1)
	p.show("jobs.batch")
	p.end()
	if out.Len() > 0 {
		t.Errorf("in the first second: got %q", out.String())
	}
	now = start.Add(quiet)
	p.show("pods")
	p.show("secrets")
	p.end()
	if want := "\r\x1b[Kreading pods\r\x1b[Kreading secrets\r\x1b[K"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if newProgress(file).terminal || newProgress(&out).terminal {
		t.Error("a file is taken for a terminal")
	}
}
