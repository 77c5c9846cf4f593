package loglimit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imds-oidc-proxy/internal/loglimit"
)

// clock is a clock that only the test changes.
type clock struct{ now time.Time }

func newLimited(level zapcore.Level) (*zap.Logger, *observer.ObservedLogs, *loglimit.Limit, *clock) {
	core, logs := observer.New(level)
	c := &clock{now: time.Unix(1605152024, 0)}
	limit := loglimit.New(func() time.Time { return c.now })
	return limit.Apply(zap.New(core)), logs, limit, c
}

func acquired(log *zap.Logger, resource string, n int) {
	log.Info("successfully acquired token", zap.String("resource", resource), zap.Int("status", 200),
		zap.Duration("duration", time.Duration(n)), zap.String("request_id", fmt.Sprint(n)))
}

// TestOrdinaryRates: at a few requests a second no line is dropped, however long this takes.
func TestOrdinaryRates(t *testing.T) {
	log, logs, limit, c := newLimited(zap.InfoLevel)
	const requests = 5 * 600
	for n := range requests {
		acquired(log, "https://a.example.test", n)
		c.now = c.now.Add(time.Second / 5)
	}
	if logs.Len() != requests || limit.LeftOut() != 0 {
		t.Errorf("got %d lines of %d", logs.Len(), requests)
	}
}

// TestLoop: of a client in a loop, a burst of lines and then a few a second are written. All
// lines of other clients are written.
func TestLoop(t *testing.T) {
	log, logs, limit, c := newLimited(zap.InfoLevel)
	const rounds, each = 10, 1000 // 1,000 requests a second
	for second := range rounds {
		for n := range each {
			acquired(log, "https://loop.example.test", n)
			c.now = c.now.Add(time.Second / each)
		}
		acquired(log, "https://other.example.test", 0)
		log.Error("request failed", zap.Int("status", 500), zap.Error(fmt.Errorf("failure %d", second)))
	}
	looped := logs.FilterField(zap.String("resource", "https://loop.example.test")).Len()
	if want := 200 + 5*rounds; looped < want-5 || looped > want+5 {
		t.Errorf("got %d lines of the loop, want %d", looped, want)
	}
	if got := logs.FilterField(zap.String("resource", "https://other.example.test")).Len(); got != rounds {
		t.Errorf("got %d lines of another client, want %d", got, rounds)
	}
	if got := logs.FilterMessage("request failed").Len(); got != rounds {
		t.Errorf("got %d failures, want %d", got, rounds)
	}
	if got := logs.Len() + int(limit.LeftOut()); got != rounds*(each+2) {
		t.Errorf("%d lines are written or counted, want %d", got, rounds*(each+2))
	}
	c.now = c.now.Add(time.Hour)
	before := logs.Len()
	acquired(log, "https://loop.example.test", 0)
	if logs.Len() != before+1 {
		t.Error("a line after the end of the loop was dropped")
	}
}

// TestMadeUpRequests: if each request of a client is different, the limit of the message
// applies. It does not affect lines of another message.
func TestMadeUpRequests(t *testing.T) {
	log, logs, _, c := newLimited(zap.InfoLevel)
	for n := range 10_000 { // ten seconds of 1,000 requests a second
		log.Warn("refused request", zap.String("resource", fmt.Sprint(n)))
		c.now = c.now.Add(time.Millisecond)
	}
	if got := logs.Len(); got < 1150 || got > 1000+10*20 {
		t.Errorf("got %d lines, want about 1200", got)
	}
	acquired(log, "https://a.example.test", 0)
	if got := logs.FilterMessage("successfully acquired token").Len(); got != 1 {
		t.Errorf("got %d lines of success, want one", got)
	}
}

// TestErrorsAreKinds: lines with the same message and different errors have separate limits.
func TestErrorsAreKinds(t *testing.T) {
	log, logs, _, _ := newLimited(zap.InfoLevel)
	for range 500 {
		log.Error("request failed", zap.Error(errors.New("no route to host")))
	}
	log.Error("request failed", zap.Error(errors.New("certificate has expired")))
	if got := logs.Len(); got != 201 {
		t.Errorf("got %d lines, want a burst of 200 and one more", got)
	}
}

// TestPanicIsNotLost: the line of a panic is written despite many other lines, even if they
// have the same message at another level.
func TestPanicIsNotLost(t *testing.T) {
	log, logs, _, _ := newLimited(zap.DebugLevel)
	for n := range 200_000 { // enough to use up every bucket
		log.Error("request failed", zap.Error(fmt.Errorf("failure %d", n)))
		log.Debug("http server", zap.Error(fmt.Errorf("noise %d", n)))
	}
	log.Error("http server", zap.Error(errors.New("panic serving")))
	if got := logs.FilterLevelExact(zap.ErrorLevel).FilterMessage("http server").Len(); got != 1 {
		t.Errorf("got %d lines of the panic, want one", got)
	}
}

func TestFieldsAndLevelsPassThrough(t *testing.T) {
	log, logs, _, _ := newLimited(zap.InfoLevel)
	log.With(zap.String("tenant_id", "t")).Info("hello", zap.Int("n", 1))
	log.Debug("not logged")
	entries := logs.All()
	if len(entries) != 1 || fmt.Sprint(entries[0].ContextMap()) != "map[n:1 tenant_id:t]" {
		t.Errorf("got %+v", entries)
	}
}

// TestRun: it logs a line about dropped lines once a minute and at the end.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		log := zap.New(core)
		limit := loglimit.New(nil)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- limit.Run(ctx, log) }()
		reports := func() []observer.LoggedEntry { return logs.FilterMessageSnippet("left out lines").All() }

		time.Sleep(90 * time.Second)
		if got := reports(); len(got) != 0 {
			t.Errorf("got %v, though no line was dropped", got)
		}
		limited := limit.Apply(zap.NewNop().WithOptions(zap.WrapCore(func(zapcore.Core) zapcore.Core { return core })))
		for n := range 300 {
			acquired(limited, "https://a.example.test", n)
		}
		time.Sleep(2 * time.Minute)
		if got := reports(); len(got) != 1 || got[0].ContextMap()["lines"] != uint64(100) {
			t.Errorf("got %v, want 100 lines once", got)
		}
		acquired(limited, "https://a.example.test", 0)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestConcurrent(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	limit := loglimit.New(nil)
	log := limit.Apply(zap.New(core))
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for n := range 1000 {
				acquired(log, "https://a.example.test", n)
			}
		})
	}
	group.Wait()
	if got := logs.Len() + int(limit.LeftOut()); got != 8000 {
		t.Errorf("%d lines are written or counted, want 8000", got)
	}
}

func TestNoAllocations(t *testing.T) {
	limit := loglimit.New(nil)
	log := limit.Apply(zap.New(zapcore.NewNopCore()))
	core := log.Core()
	fields := []zap.Field{zap.String("resource", "https://a.example.test"), zap.Int("status", 200)}
	entry := zapcore.Entry{Level: zap.InfoLevel, Message: "successfully acquired token"}
	if got := testing.AllocsPerRun(300, func() { _ = core.Write(entry, fields) }); got != 0 {
		t.Errorf("got %v allocations for a line, want none", got)
	}
}
