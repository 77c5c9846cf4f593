package diagnose

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

const (
	// maxText bounds one text of a report. The longest of its own, a command with
	// issuer and subject in it twice, fits.
	maxText = 2048

	// maxClipped bounds what is quoted of others' words within a text.
	maxClipped = 256
)

// printable returns s as bounded printable ASCII, so that it can neither drive a
// terminal nor break a line.
func printable(s string) string { return bounded(s, maxText) }

// clip is printable for a part of a text.
func clip(s string) string { return bounded(s, maxClipped) }

func bounded(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// withoutQuotes drops what could end single quotes in a command that is pasted into
// a shell.
func withoutQuotes(r rune) rune {
	if strings.ContainsRune("'\\`$\"", r) {
		return '?'
	}
	return r
}

// errLinkLocal refuses a connection that a token's claim asks for.
var errLinkLocal = errors.New("a link-local address")

// refuseLinkLocal is for net.Dialer.Control: it runs after the name was resolved, so
// that no name gets by.
func refuseLinkLocal(_, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w: %w", errLinkLocal, err)
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsLinkLocalUnicast() {
		return errLinkLocal
	}
	return nil
}
