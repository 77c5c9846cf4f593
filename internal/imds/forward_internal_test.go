package imds

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestForwarderHasNoProxy: forwarded requests ignore HTTP_PROXY, because IMDS is reachable
// from the node only. A test outside the package cannot show this: net/http uses no proxy
// for loopback addresses, and reads the environment only once in a process.
func TestForwarderHasNoProxy(t *testing.T) {
	f := newForwarder("http://192.0.2.1", 0, forwardLimits{})
	if f.transport.Proxy != nil {
		t.Error("the transport may use a proxy")
	}
}

// TestForwardSlots: forwarded and waiting requests together take at most a quarter of the
// connections. The proxy has 64 connections or more, which give 8 slots or more.
func TestForwardSlots(t *testing.T) {
	for connections, want := range map[int]int{0: 16, 1: 1, 15: 1, 16: 2, 64: 8, 127: 15, 128: 16, 1112: 16} {
		f := newForwarder("http://192.0.2.1", connections, forwardLimits{})
		if cap(f.slots) != want || cap(f.admitted) != 2*want {
			t.Errorf("%d connections: got %d slots and %d requests in all, want %d and %d",
				connections, cap(f.slots), cap(f.admitted), want, 2*want)
		}
	}
}

// TestUnreadAnswerIsDropped: an answer that its client does not read is dropped if another
// request waits for its slot, but not before forwardUnreadTime.
func TestUnreadAnswerIsDropped(t *testing.T) {
	for begins, want := range map[time.Duration]time.Duration{
		time.Millisecond:               forwardUnreadTime,
		time.Second + time.Millisecond: time.Second + forwardUnreadTime,
	} {
		synctest.Test(t, func(t *testing.T) {
			f, p, began := unreadReply(t)
			time.Sleep(begins)
			if dropped(p) {
				t.Errorf("dropped after %s, though no other request waits", begins)
			}
			if !f.acquire(t.Context(), nil) {
				t.Error("the waiting request got no slot")
			}
			if got := time.Since(began); got != want || !dropped(p) {
				t.Errorf("the slot was free after %s, want %s; dropped: %t", got, want, dropped(p))
			}
			if n, err := p.Read(make([]byte, 10)); err != io.ErrUnexpectedEOF {
				t.Errorf("read %d bytes, %v, of a dropped answer", n, err)
			}
		})
	}
}

// TestUnreadAnswerHasDeadline: an answer is dropped at its deadline also if no other request
// waits.
func TestUnreadAnswerHasDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p, _ := unreadReply(t)
		time.Sleep(forwardUnreadTime + forwardTimeout - 1)
		synctest.Wait()
		if dropped(p) {
			t.Error("dropped before the deadline")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !dropped(p) || len(f.slots) > 0 || len(f.admitted) > 0 {
			t.Errorf("dropped: %t, with %d slots taken", dropped(p), len(f.slots))
		}
	})
}

// TestWrittenAnswerIsNotDropped: the watch ends with the answer, and the slot is released by
// the caller only.
func TestWrittenAnswerIsNotDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, p := newForwarder("http://192.0.2.1", 0, forwardLimits{slots: 1}), &reply{unsent: []byte("unread")}
		written := make(chan struct{})
		f.watch(p, written, func() { t.Error("released by the watch") })
		time.Sleep(2 * forwardUnreadTime)
		close(written)
		time.Sleep(2 * forwardTimeout)
		if dropped(p) {
			t.Error("dropped")
		}
	})
}

// unreadReply returns an answer that holds the only slot and that is not read.
func unreadReply(t *testing.T) (f *forwarder, p *reply, began time.Time) {
	f = newForwarder("http://192.0.2.1", 0, forwardLimits{slots: 1})
	if !f.acquire(t.Context(), nil) {
		t.Fatal("no slot")
	}
	p = &reply{unsent: []byte("unread")}
	f.watch(p, nil, sync.OnceFunc(f.release))
	return f, p, time.Now()
}

func dropped(p *reply) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dropped
}
