package imds

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// countingConn counts how often a deadline is set.
type countingConn struct {
	net.Conn
	reads, writes int
}

func (c *countingConn) SetReadDeadline(t time.Time) error {
	c.reads++
	return c.Conn.SetReadDeadline(t)
}

func (c *countingConn) SetWriteDeadline(t time.Time) error {
	c.writes++
	return c.Conn.SetWriteDeadline(t)
}

// lazily runs test in a bubble with a connection and its other end.
func lazily(t *testing.T, test func(t *testing.T, c *lazyConn, inner *countingConn, peer net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		here, peer := net.Pipe()
		defer here.Close()
		defer peer.Close()
		inner := &countingConn{Conn: here}
		test(t, newLazyConn(inner), inner, peer)
	})
}

// wantWait has wait end after so long, by its deadline or without one.
func wantWait(t *testing.T, wait func() error, after time.Duration, want error) {
	t.Helper()
	began := time.Now()
	if err := wait(); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	if took := time.Since(began); took != after {
		t.Errorf("after %s, want %s", took, after)
	}
}

func TestDeadlinesEndWaits(t *testing.T) {
	const long, short = time.Hour, time.Minute
	for name, ways := range map[string]struct {
		wait func(net.Conn) error
		set  func(net.Conn, time.Time) error
	}{
		"reading": {func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }, net.Conn.SetReadDeadline},
		"writing": {func(c net.Conn) error { _, err := c.Write([]byte("x")); return err }, net.Conn.SetWriteDeadline},
		"both":    {func(c net.Conn) error { _, err := c.Read(make([]byte, 1)); return err }, net.Conn.SetDeadline},
	} {
		for change, test := range map[string]struct {
			before, meanwhile time.Duration // 0: none
			want              time.Duration
		}{
			"as set before":         {short, short, short},
			"set meanwhile":         {0, short, short},
			"sooner meanwhile":      {long, short, short},
			"later meanwhile":       {short, long, long},
			"at once, meanwhile":    {long, 1, time.Second},
			"at once, without one":  {0, 1, time.Second},
			"in the past from then": {-1, -1, 0},
		} {
			t.Run(name+" "+change, func(t *testing.T) {
				lazily(t, func(t *testing.T, c *lazyConn, _ *countingConn, _ net.Conn) {
					began := time.Now()
					at := func(d time.Duration) time.Time {
						if d == 0 {
							return time.Time{}
						}
						return began.Add(d)
					}
					ways.set(c, at(test.before))
					go func() {
						time.Sleep(time.Second)
						ways.set(c, at(test.meanwhile))
					}()
					wantWait(t, func() error { return ways.wait(c) }, test.want, os.ErrDeadlineExceeded)
					time.Sleep(2 * time.Second) // for the change, where it comes late
				})
			})
		}
	}
}

// TestDeadlineTakenBack: the one that was set ends no wait.
func TestDeadlineTakenBack(t *testing.T) {
	lazily(t, func(t *testing.T, c *lazyConn, _ *countingConn, peer net.Conn) {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		go func() {
			time.Sleep(time.Second)
			c.SetReadDeadline(time.Time{})
			time.Sleep(time.Hour)
			io.WriteString(peer, "x")
		}()
		wantWait(t, func() error { _, err := c.Read(make([]byte, 1)); return err }, time.Hour+time.Second, nil)
	})
}

// TestWriteGoesOn: what was written before a deadline that is not wanted any more is not
// written twice.
func TestWriteGoesOn(t *testing.T) {
	lazily(t, func(t *testing.T, c *lazyConn, _ *countingConn, peer net.Conn) {
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		var got [4]byte
		go func() {
			io.ReadFull(peer, got[:2])
			c.SetWriteDeadline(time.Now().Add(time.Hour))
			time.Sleep(2 * time.Minute)
			io.ReadFull(peer, got[2:])
		}()
		wantWait(t, func() error {
			n, err := c.Write([]byte("abcd"))
			if n != 4 {
				t.Errorf("%d bytes written, want 4", n)
			}
			return err
		}, 2*time.Minute, nil)
		synctest.Wait()
		if string(got[:]) != "abcd" {
			t.Errorf("the other end read %q", got)
		}
	})
}

// TestDeadlinesOfRequestsCostLittle: what net/http asks for with each request of a
// connection, and how much of it is set. A bare server, which has no limits, sets six.
func TestDeadlinesOfRequestsCostLittle(t *testing.T) {
	for name, test := range map[string]struct {
		waits bool // net/http's reading ahead has begun when the answer is written
		sets  int
	}{
		"answered at once": {false, 0},
		"waited for":       {true, 2},
	} {
		t.Run(name, func(t *testing.T) { requestsSet(t, test.waits, test.sets) })
	}
}

func requestsSet(t *testing.T, waits bool, sets int) {
	lazily(t, func(t *testing.T, c *lazyConn, inner *countingConn, peer net.Conn) {
		const requests = 100
		next := make(chan struct{})
		go func() {
			for range requests {
				<-next
				io.WriteString(peer, "request")
				io.ReadFull(peer, make([]byte, 6))
			}
		}()
		none, past := time.Time{}, time.Unix(1, 0)
		for range requests {
			c.SetReadDeadline(time.Now().Add(idleTime))
			next <- struct{}{}
			if _, err := c.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(none)
			c.SetReadDeadline(time.Now().Add(headerTime))
			c.SetReadDeadline(none)
			c.SetWriteDeadline(time.Now().Add(writeTime))
			start, background := make(chan struct{}), make(chan error)
			go func() { <-start; _, err := c.Read(make([]byte, 1)); background <- err }()
			if waits {
				close(start)
				synctest.Wait()
			}
			if _, err := c.Write([]byte("answer")); err != nil {
				t.Fatal(err)
			}
			c.SetReadDeadline(past)
			if !waits {
				close(start)
			}
			if err := <-background; !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			c.SetReadDeadline(none)
		}
		if inner.reads > sets*requests+1 || inner.writes > 1 {
			t.Errorf("%d requests set %d deadlines for reading and %d for writing", requests, inner.reads, inner.writes)
		}
	})
}
