package netrules

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// stuck is an iptables that never ends.
type stuck struct{ release chan struct{} }

func (s stuck) ListChains(string) ([]string, error)   { <-s.release; return nil, nil }
func (s stuck) List(string, string) ([]string, error) { <-s.release; return nil, nil }

// TestListingEndsWithTheRun: a SIGTERM is not kept waiting by an iptables that hangs.
func TestListingEndsWithTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stuck{make(chan struct{})}
		defer close(s.release)
		run, end := context.WithCancel(t.Context())
		b := &bounded{tables: s, mode: ModeNFT, ended: run}
		start := time.Now()
		time.AfterFunc(time.Second, end)
		if _, err := b.ListChains("nat"); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nat") {
			t.Errorf("got %v, want the run's end, naming the table", err)
		}
		if got := time.Since(start); got != time.Second {
			t.Errorf("took %s, want a second", got)
		}
	})
}

func TestListingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stuck{make(chan struct{})}
		defer close(s.release)
		b := &bounded{tables: s, mode: ModeNFT, ended: t.Context()}
		start := time.Now()
		for _, list := range []func() ([]string, error){
			func() ([]string, error) { return b.ListChains("nat") },
			func() ([]string, error) { return b.List("nat", "OUTPUT") },
		} {
			if _, err := list(); kindOf(err) != TimedOut || !strings.Contains(err.Error(), "nat") {
				t.Errorf("got %v, want TimedOut, naming the table", err)
			}
		}
		if got := time.Since(start); got != 2*commandTimeout {
			t.Errorf("took %s, want %s", got, 2*commandTimeout)
		}
	})
}
