// Package loglimit rate-limits log lines, so that a client that sends requests in a loop
// cannot fill the disk.
//
// At ordinary rates it writes every line. At higher rates, it drops repeated lines first.
// Two lines are of the same kind if they have the same level, message and fields, except for
// the fields that differ in every line (duration and request ID). Each kind has its own rate
// limit, so that frequent lines of one kind, such as successes, do not cause the loss of a
// line of another kind, such as a failure or a panic. Dropped lines are counted, and once a
// minute a line reports their number.
package loglimit

import (
	"context"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/time/rate"
)

const (
	// kindPerSecond and kindBurst limit the lines of one kind. SDKs cache their tokens, and
	// a client without a cache sends a few requests a second at most. The start of a
	// deployment is a burst.
	kindPerSecond = 5
	kindBurst     = 200

	// messagePerSecond and messageBurst limit all lines of one level and message, for a
	// client that makes up a new resource for each request. With some 400 bytes a line,
	// they are 8 KiB a second in the log files that the kubelet rotates. The messages are
	// constants.
	messagePerSecond = 20
	messageBurst     = 1000

	// buckets is the number of rate limits for the kinds of one message. It bounds the
	// memory. Kinds that share a bucket share its limit, so that more of their lines are
	// dropped; the number of dropped lines is still correct.
	buckets = 512

	// reportInterval is the time between two lines about dropped lines.
	reportInterval = time.Minute
)

// varies reports whether a field differs in every line.
func varies(field string) bool { return field == "duration" || field == "request_id" }

// Limit limits the rate of log lines. It is safe for concurrent use.
type Limit struct {
	now     func() time.Time
	seed    maphash.Seed
	leftOut atomic.Uint64 // number of dropped lines

	mu       sync.Mutex // guards the fields below
	messages map[message]*messageLimit
}

// message is the level and the text of a line, without its fields.
type message struct {
	level zapcore.Level
	text  string
}

// messageLimit has the rate limits of one message.
type messageLimit struct {
	all   *rate.Limiter
	kinds [buckets]bucket
}

func newMessageLimit() *messageLimit {
	m := &messageLimit{all: rate.NewLimiter(messagePerSecond, messageBurst)}
	for i := range m.kinds {
		m.kinds[i].left = kindBurst
	}
	return m
}

// New returns a Limit with a clock. Nil: time.Now.
func New(now func() time.Time) *Limit {
	if now == nil {
		now = time.Now
	}
	return &Limit{now: now, seed: maphash.MakeSeed(), messages: make(map[message]*messageLimit)}
}

// LeftOut returns the number of dropped lines.
func (l *Limit) LeftOut() uint64 { return l.leftOut.Load() }

// Apply returns a logger with rate limits that writes to log. Lines that are logged to log
// itself are not limited.
func (l *Limit) Apply(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(inner zapcore.Core) zapcore.Core {
		return &core{Core: inner, limit: l}
	}))
}

// Run logs a line once a minute, and when ctx ends, if lines were dropped since the last
// such line. It returns when ctx ends.
func (l *Limit) Run(ctx context.Context, log *zap.Logger) error {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	reported := uint64(0)
	report := func() {
		if all := l.LeftOut(); all > reported {
			log.Warn("left out lines about requests, because there were too many", zap.Uint64("lines", all-reported))
			reported = all
		}
	}
	for {
		select {
		case <-ticker.C:
			report()
		case <-ctx.Done():
			report()
			return nil
		}
	}
}

// allow reports whether a line may be written, and counts it if not.
func (l *Limit) allow(kind uint64, m message) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.messages[m]
	if limit == nil {
		limit = newMessageLimit()
		l.messages[m] = limit
	}
	if limit.kinds[kind%buckets].take(now) && limit.all.AllowN(now, 1) {
		return true
	}
	l.leftOut.Add(1)
	return false
}

// bucket is a token bucket of 16 bytes. There are many of them, and those of package rate
// take ten times as much memory.
type bucket struct {
	left float32 // lines that may be written
	last int64   // time of the last line, in Unix nanoseconds; zero: there was none
}

func (b *bucket) take(now time.Time) bool {
	at := now.UnixNano()
	if b.last != 0 && at > b.last {
		b.left = min(kindBurst, b.left+float32(time.Duration(at-b.last).Seconds()*kindPerSecond))
	}
	b.last = at
	if b.left < 1 {
		return false
	}
	b.left--
	return true
}

// core is a zapcore.Core with the rate limits of a Limit.
type core struct {
	zapcore.Core
	limit *Limit
}

// With implements [zapcore.Core].
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{Core: c.Core.With(fields), limit: c.limit}
}

// Check implements [zapcore.Core].
func (c *core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write implements [zapcore.Core].
func (c *core) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	if !c.limit.allow(kindOf(c.limit.seed, fields), message{entry.Level, entry.Message}) {
		return nil
	}
	return c.Core.Write(entry, fields)
}

// kindOf returns the same number for the fields of lines of the same kind. Because of the
// random seed, a client cannot find requests whose lines share a bucket with lines that it
// wants to suppress.
func kindOf(seed maphash.Seed, fields []zapcore.Field) uint64 {
	kind := uint64(0)
	for _, f := range fields {
		if varies(f.Key) {
			continue
		}
		text := f.String
		if err, ok := f.Interface.(error); ok {
			text = err.Error()
		}
		kind = kind*31 + maphash.String(seed, f.Key) + maphash.String(seed, text)*7 + uint64(f.Integer)
	}
	return kind
}
