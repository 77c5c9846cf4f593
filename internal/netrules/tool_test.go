package netrules

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// stuck is an iptables that does not exit until release is closed.
type stuck struct{ release chan struct{} }

func (s stuck) ListChains(string) ([]string, error)   { <-s.release; return nil, nil }
func (s stuck) List(string, string) ([]string, error) { <-s.release; return nil, nil }

// TestListingIsCanceled checks that this program exits on SIGTERM even if iptables hangs.
func TestListingIsCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stuck{make(chan struct{})}
		defer close(s.release)
		run, end := context.WithCancel(t.Context())
		b := &bounded{tables: s, backend: NFT, ended: run}
		start := time.Now()
		time.AfterFunc(time.Second, end)
		if _, err := b.ListChains("nat"); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "nat") {
			t.Errorf("got %v, want context.Canceled with the name of the table", err)
		}
		if got := time.Since(start); got != time.Second {
			t.Errorf("took %s, want a second", got)
		}
	})
}

func TestListingTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stuck{make(chan struct{})}
		defer close(s.release)
		b := &bounded{tables: s, backend: NFT, ended: t.Context()}
		start := time.Now()
		for _, list := range []func() ([]string, error){
			func() ([]string, error) { return b.ListChains("nat") },
			func() ([]string, error) { return b.List("nat", "OUTPUT") },
		} {
			if _, err := list(); kindOf(err) != TimedOut || !strings.Contains(err.Error(), "nat") {
				t.Errorf("got %v, want TimedOut with the name of the table", err)
			}
		}
		if got := time.Since(start); got != 2*commandTimeout {
			t.Errorf("took %s, want %s", got, 2*commandTimeout)
		}
	})
}
