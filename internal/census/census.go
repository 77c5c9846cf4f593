// Package census keeps who asks for tokens: by which SDK, in which version, and
// whether that already speaks workload identity, in which case it needs no proxy.
//
// It reads what clients say of themselves, in User-Agent and in the headers of the
// MSAL libraries. That is a hint for those who migrate, no proof of anything.
//
// # Security considerations
//
// The headers are hostile bytes. Nothing of them is kept but a version of digits,
// dots and a few known words: SDKs are named by the table of this package, and what
// is not in it is called unknown. What is kept is bounded, however many kinds of
// clients a program makes up.
package census

import (
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxCallers bounds the kinds of clients told apart. A pod has a handful.
	maxCallers = 32

	// maxKnown bounds the headers whose meaning is remembered. Beyond it they are
	// read anew for each request, at the cost of a microsecond.
	maxKnown = 128

	// maxHeader bounds what is read of a header. Real ones are 150 bytes.
	maxHeader = 256
)

// WorkloadIdentity says whether a client can do without the proxy.
type WorkloadIdentity string

// The values of WorkloadIdentity, as they stand in logs and metrics.
const (
	// Yes: this version has a credential for it.
	Yes WorkloadIdentity = "yes"
	// No: a later version has one, or another library.
	No WorkloadIdentity = "no"
	// Unknown: the client does not say enough of itself.
	Unknown WorkloadIdentity = "unknown"
)

// Caller is one kind of client.
type Caller struct {
	// SDK names the client by the table of this package, such as go-azidentity.
	SDK string `json:"sdk"`
	// Version is its version. Empty: it does not say.
	Version string `json:"version"`
	// WorkloadIdentity says whether this version needs no proxy.
	WorkloadIdentity WorkloadIdentity `json:"workload_identity"`
	// Upgrade says what to do about it. Empty: there is nothing to say.
	Upgrade string `json:"upgrade,omitempty"`
}

// Entry is a Caller with when it was seen.
type Entry struct {
	Caller
	Requests  uint64    `json:"requests"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
}

// Config says who is told of callers.
type Config struct {
	// New is told of each caller the first time that it is seen. Nil: nobody is.
	New func(Caller)

	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Census counts callers. It is safe for concurrent use.
type Census struct {
	isNew func(Caller)
	now   func() time.Time

	mu      sync.RWMutex // guards the maps, not what the pointers lead to
	known   map[signature]*tally
	callers map[Caller]*tally
}

// signature is what a client says of itself.
type signature struct{ userAgent, sku, version string }

// tally is what is counted of a caller.
type tally struct {
	first    time.Time
	requests atomic.Uint64
	last     atomic.Int64 // Unix time in seconds
}

// New returns an empty Census.
func New(cfg Config) *Census {
	c := &Census{
		isNew:   cfg.New,
		now:     cfg.Now,
		known:   make(map[signature]*tally),
		callers: make(map[Caller]*tally),
	}
	if c.isNew == nil {
		c.isNew = func(Caller) {}
	}
	if c.now == nil {
		c.now = time.Now
	}
	return c
}

// Count counts one request by its header. For a client that is known it allocates
// nothing.
func (c *Census) Count(header http.Header) {
	s := signature{
		userAgent: first(header["User-Agent"]),
		sku:       first(header["X-Client-Sku"]),
		version:   first(header["X-Client-Ver"]),
	}
	now := c.now()
	c.mu.RLock()
	t := c.known[s]
	c.mu.RUnlock()
	if t == nil {
		t = c.meet(s, now)
	}
	t.requests.Add(1)
	t.last.Store(now.Unix())
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0][:min(len(values[0]), maxHeader)]
}

// meet finds out who a signature is of, and makes room for it where there is some.
func (c *Census) meet(s signature, now time.Time) *tally {
	caller := identify(s)
	c.mu.Lock()
	t, isNew := c.tallyOf(caller, now)
	if len(c.known) < maxKnown {
		// The header's strings are parts of the whole request in memory.
		c.known[signature{strings.Clone(s.userAgent), strings.Clone(s.sku), strings.Clone(s.version)}] = t
	}
	c.mu.Unlock()
	if isNew {
		c.isNew(caller)
	}
	return t
}

// tallyOf returns the tally of a caller, or that of all who came when there was no
// room. Census.mu is held.
func (c *Census) tallyOf(caller Caller, now time.Time) (t *tally, isNew bool) {
	if t = c.callers[caller]; t != nil {
		return t, false
	}
	if len(c.callers) >= maxCallers {
		caller = Caller{SDK: "other", WorkloadIdentity: Unknown}
		if t = c.callers[caller]; t != nil {
			return t, false
		}
	} else {
		isNew = true
	}
	t = &tally{first: now}
	t.last.Store(now.Unix()) // a scrape may come before Count has stored it
	c.callers[caller] = t
	return t, isNew
}

// Entries returns all callers, those that need the proxy first.
func (c *Census) Entries() []Entry {
	c.mu.RLock()
	entries := make([]Entry, 0, len(c.callers))
	for caller, t := range c.callers {
		entries = append(entries, Entry{
			Caller:    caller,
			Requests:  t.requests.Load(),
			FirstSeen: t.first.UTC().Truncate(time.Second),
			LastSeen:  time.Unix(t.last.Load(), 0).UTC(),
		})
	}
	c.mu.RUnlock()
	slices.SortFunc(entries, func(a, b Entry) int {
		return strings.Compare(string(a.WorkloadIdentity)+" "+a.SDK+" "+a.Version, string(b.WorkloadIdentity)+" "+b.SDK+" "+b.Version)
	})
	return entries
}
