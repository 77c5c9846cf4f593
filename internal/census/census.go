// Package census records which clients ask for tokens: the SDK, its version, and
// whether this version supports workload identity and so needs no proxy.
//
// It reads the User-Agent header and the headers that MSAL libraries send. A client
// can send any value, so the result is a hint for a migration and no proof.
//
// # Security considerations
//
// The headers are untrusted input. From their text the package keeps only a version:
// digits, dots and a few known words. The SDK's name comes from a table in this
// package, or is "unknown". Memory is bounded, however many clients a program invents.
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
	// maxCallers bounds the callers that are counted separately. A pod has a handful.
	maxCallers = 32

	// maxKnown bounds the cache from headers to callers. A header that is not in it is
	// parsed again for each request, which takes a microsecond.
	maxKnown = 128

	// maxHeader bounds the bytes that are read of a header. Real ones have 150 bytes.
	maxHeader = 256
)

// WorkloadIdentity says whether a client supports workload identity, so that it does
// not need the proxy.
type WorkloadIdentity string

// The values of WorkloadIdentity, which logs and metrics show.
const (
	// Yes: this version has a credential for workload identity.
	Yes WorkloadIdentity = "yes"
	// No: this version has none; a later version or another library has one.
	No WorkloadIdentity = "no"
	// Unknown: the headers do not identify the client or its version.
	Unknown WorkloadIdentity = "unknown"
)

// Caller is one kind of client.
type Caller struct {
	// SDK is the client's name from the table of this package, such as go-azidentity.
	SDK string `json:"sdk"`
	// Version is the client's version. Empty: the headers have none.
	Version string `json:"version"`
	// WorkloadIdentity says whether this version supports workload identity.
	WorkloadIdentity WorkloadIdentity `json:"workload_identity"`
	// Upgrade says how the application can do without the proxy. Empty: not known.
	Upgrade string `json:"upgrade,omitempty"`
}

// Entry is a Caller with the number and the times of its requests.
type Entry struct {
	Caller
	Requests  uint64    `json:"requests"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
}

// Config configures a Census.
type Config struct {
	// New is called with each caller at its first request. Nil: it is not called.
	New func(Caller)

	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Census counts callers. It is safe for concurrent use.
type Census struct {
	isNew func(Caller) // nil: it is not called
	now   func() time.Time

	mu      sync.RWMutex // guards the maps; the tallies that they point to are atomic
	known   map[signature]*tally
	callers map[Caller]*tally
}

// signature holds what identifies a client.
type signature struct {
	userAgent, sku, version string // headers
	unencoded               bool   // there is no Accept-Encoding
}

// tally counts the requests of one caller.
type tally struct {
	first    time.Time
	requests atomic.Uint64
	last     atomic.Int64 // Unix time in seconds
}

// New returns an empty Census.
func New(cfg Config) *Census {
	c := &Census{isNew: cfg.New, now: cfg.Now, known: make(map[signature]*tally), callers: make(map[Caller]*tally)}
	if c.now == nil {
		c.now = time.Now
	}
	return c
}

// Count counts one request by its header. It does not allocate if the header is in the
// cache.
func (c *Census) Count(header http.Header) {
	s := signature{bounded(header.Get("User-Agent")), bounded(header.Get("X-Client-Sku")), bounded(header.Get("X-Client-Ver")), header["Accept-Encoding"] == nil}
	now := c.now()
	c.mu.RLock()
	t := c.known[s]
	c.mu.RUnlock()
	if t == nil {
		t = c.learn(s, now)
	}
	t.requests.Add(1)
	t.last.Store(now.Unix())
}

func bounded(value string) string { return value[:min(len(value), maxHeader)] }

// learn identifies the caller of a signature, adds the signature to the cache unless
// the cache is full, and returns the caller's tally.
func (c *Census) learn(s signature, now time.Time) *tally {
	caller := identify(s)
	c.mu.Lock()
	t, isNew := c.tallyOf(caller, now)
	if len(c.known) < maxKnown {
		// The header's strings share memory with the whole request and would keep it alive.
		c.known[signature{strings.Clone(s.userAgent), strings.Clone(s.sku), strings.Clone(s.version), s.unencoded}] = t
	}
	c.mu.Unlock()
	if isNew && c.isNew != nil {
		c.isNew(caller)
	}
	return t
}

// tallyOf returns the tally of a caller. New callers beyond maxCallers share the tally
// of the caller "other". The caller of tallyOf holds Census.mu.
func (c *Census) tallyOf(caller Caller, now time.Time) (t *tally, isNew bool) {
	full := len(c.callers) >= maxCallers
	if full && c.callers[caller] == nil {
		caller = Caller{SDK: "other", WorkloadIdentity: Unknown}
	}
	if t = c.callers[caller]; t != nil {
		return t, false
	}
	t = &tally{first: now}
	t.last.Store(now.Unix()) // Entries may run before Count stores the time
	c.callers[caller] = t
	return t, !full
}

// Entries returns all callers, those that need the proxy first: WorkloadIdentity no,
// then unknown, then yes.
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
