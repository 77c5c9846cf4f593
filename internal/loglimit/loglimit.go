// Package loglimit keeps a log from filling the disk when a program asks in a
// loop.
//
// At ordinary rates it does nothing: each line is written. Beyond, it leaves out
// repetitions first. Lines are alike if they have the same level, message and fields, but
// for those that differ in every line (durations, request IDs); each kind has an
// allowance of its own, so that a failure is not lost among successes, nor one
// failure among others, nor a panic among failures. What is left out is counted, and told
// once a minute.
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
	// Alike lines: SDKs keep their tokens, and a client that does not asks a few
	// times a second at the most. A deployment's start is a burst.
	alikePerSecond = 5
	alikeBurst     = 200

	// All lines of one level and message together, for a program that makes up what it asks
	// for: at some 400 bytes a line, 8 KiB a second of the kubelet's rotated files. The
	// messages are constants.
	messagePerSecond = 20
	messageBurst     = 1000

	// kinds is how many kinds of lines of one message are told apart: their memory is
	// bounded. Two that share a place share their allowance, which costs lines and no truth.
	kinds = 512

	// tellInterval is between the lines about lines left out.
	tellInterval = time.Minute
)

// apart names the fields that differ from line to line, whatever the line says.
func apart(field string) bool { return field == "duration" || field == "request_id" }

// Limit is an allowance of lines. It is safe for concurrent use.
type Limit struct {
	now     func() time.Time
	seed    maphash.Seed
	leftOut atomic.Uint64

	mu       sync.Mutex // guards what follows
	messages map[message]*allowances
}

// message is what a line says, without its fields.
type message struct {
	level zapcore.Level
	text  string
}

// allowances are those of one message.
type allowances struct {
	all   *rate.Limiter
	kinds [kinds]allowance
}

func newAllowances() *allowances {
	a := &allowances{all: rate.NewLimiter(messagePerSecond, messageBurst)}
	for i := range a.kinds {
		a.kinds[i].left = alikeBurst
	}
	return a
}

// New returns a Limit by the given clock. Nil: time.Now.
func New(now func() time.Time) *Limit {
	if now == nil {
		now = time.Now
	}
	return &Limit{now: now, seed: maphash.MakeSeed(), messages: make(map[message]*allowances)}
}

// LeftOut is how many lines there would have been more.
func (l *Limit) LeftOut() uint64 { return l.leftOut.Load() }

// Apply returns a logger whose lines come out of the allowance. Those of log
// itself do not.
func (l *Limit) Apply(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(inner zapcore.Core) zapcore.Core {
		return &core{Core: inner, limit: l}
	}))
}

// Run tells log once a minute how many lines were left out, if any were, until ctx
// ends.
func (l *Limit) Run(ctx context.Context, log *zap.Logger) error {
	ticker := time.NewTicker(tellInterval)
	defer ticker.Stop()
	told := uint64(0)
	tell := func() {
		if all := l.LeftOut(); all > told {
			log.Warn("left out lines about requests, of which there were too many", zap.Uint64("lines", all-told))
			told = all
		}
	}
	for {
		select {
		case <-ticker.C:
			tell()
		case <-ctx.Done():
			tell()
			return nil
		}
	}
}

// allow takes a line of the kind and message out of the allowance, if there is one
// left.
func (l *Limit) allow(kind uint64, m message) bool {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.messages[m]
	if a == nil {
		a = newAllowances()
		l.messages[m] = a
	}
	if a.kinds[kind%kinds].take(now) && a.all.AllowN(now, 1) {
		return true
	}
	l.leftOut.Add(1)
	return false
}

// allowance is a token bucket of 16 bytes, of which there are many; package rate's
// are ten times that.
type allowance struct {
	left float32
	seen int64 // Unix time in nanoseconds; 0: never
}

func (a *allowance) take(now time.Time) bool {
	at := now.UnixNano()
	if a.seen != 0 && at > a.seen {
		a.left = min(alikeBurst, a.left+float32(time.Duration(at-a.seen).Seconds()*alikePerSecond))
	}
	a.seen = at
	if a.left < 1 {
		return false
	}
	a.left--
	return true
}

// core is a zapcore.Core that asks a Limit before it writes.
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

// kindOf is the same for the fields of lines that are alike. The seed keeps a caller from
// finding lines that share a place with those that it wants left out.
func kindOf(seed maphash.Seed, fields []zapcore.Field) uint64 {
	kind := uint64(0)
	for _, f := range fields {
		if apart(f.Key) {
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
