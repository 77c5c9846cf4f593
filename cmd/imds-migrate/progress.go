package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// quiet is how long a run takes before it shows its progress.
const quiet = time.Second

// progress shows on a terminal what a run is doing, in one line that is replaced.
type progress struct {
	to       io.Writer
	terminal bool
	first    *time.Timer // draws the line that is due when the run is no longer quiet

	mu                 sync.Mutex
	what               string
	due, shown, closed bool
}

func newProgress(stderr io.Writer) *progress {
	if r, isRenamer := stderr.(*renamer); isRenamer {
		stderr = r.to // a line of progress does not end
	}
	f, isFile := stderr.(*os.File)
	return startProgress(stderr, isFile && term.IsTerminal(int(f.Fd())))
}

// startProgress begins with the cluster, which may not answer the first request.
func startProgress(to io.Writer, terminal bool) *progress {
	p := &progress{to: to, terminal: terminal, what: "the cluster"}
	p.first = time.AfterFunc(quiet, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.due = true
		p.draw()
	})
	return p
}

// show replaces the line. It does nothing if standard error is no terminal, and in the first second writes
// nothing yet.
func (p *progress) show(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what = what
	p.draw()
}

// draw writes the line. The caller holds mu.
func (p *progress) draw() {
	if !p.terminal || !p.due || p.closed {
		return
	}
	p.shown = true
	fmt.Fprintf(p.to, "\r\x1b[Kreading %s", p.what)
}

// end removes the line.
func (p *progress) end() {
	p.first.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.shown {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}
