package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"
)

// quiet is how long a run takes before it shows its progress.
const quiet = time.Second

// progress shows on a terminal what a run is doing, in one line that is replaced.
type progress struct {
	to       io.Writer
	terminal bool
	now      func() time.Time
	began    time.Time
	shown    bool
}

func newProgress(stderr io.Writer) *progress {
	if r, isRenamer := stderr.(*renamer); isRenamer {
		stderr = r.to // a line of progress does not end
	}
	f, isFile := stderr.(*os.File)
	return &progress{to: stderr, terminal: isFile && term.IsTerminal(int(f.Fd())), now: time.Now, began: time.Now()}
}

// show replaces the line. It does nothing if standard error is no terminal, and in the first second.
func (p *progress) show(what string) {
	if !p.terminal || p.now().Sub(p.began) < quiet {
		return
	}
	p.shown = true
	fmt.Fprintf(p.to, "\r\x1b[Kreading %s", what)
}

// end removes the line.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}
