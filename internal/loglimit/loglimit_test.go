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

// clock is set by hand.
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

// TestOrdinaryRates: at a few requests a second each has its line, for as long as
// it goes on.
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

// TestLoop: a client in a loop gets a burst and then a trickle, and what others do
// is written all the same.
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
		t.Errorf("the loop got %d lines, want %d", looped, want)
	}
	if got := logs.FilterField(zap.String("resource", "https://other.example.test")).Len(); got != rounds {
		t.Errorf("another client got %d lines, want %d", got, rounds)
	}
	if got := logs.FilterMessage("request failed").Len(); got != rounds {
		t.Errorf("got %d failures, want %d", got, rounds)
	}
	if got := logs.Len() + int(limit.LeftOut()); got != rounds*(each+2) {
		t.Errorf("%d lines are accounted for, want %d", got, rounds*(each+2))
	}
	c.now = c.now.Add(time.Hour)
	before := logs.Len()
	acquired(log, "https://loop.example.test", 0)
	if logs.Len() != before+1 {
		t.Error("after the loop has ended it gets no line")
	}
}

// TestMadeUpRequests: who makes each request different meets the bound on all, and
// takes nothing from the lines of another level.
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

// TestErrorsAreToldApart: the same message for different reasons is not the same.
func TestErrorsAreToldApart(t *testing.T) {
	log, logs, _, _ := newLimited(zap.InfoLevel)
	for range 500 {
		log.Error("request failed", zap.Error(errors.New("no route to host")))
	}
	log.Error("request failed", zap.Error(errors.New("certificate has expired")))
	if got := logs.Len(); got != 201 {
		t.Errorf("got %d lines, want a burst of 200 and the other", got)
	}
}

// TestPanicIsNotLost: no flood of other lines, even with the same message at another level,
// takes the place of a panic's line.
func TestPanicIsNotLost(t *testing.T) {
	log, logs, _, _ := newLimited(zap.DebugLevel)
	for n := range 200_000 { // enough to use up the allowance of every kind
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
	log.Debug("unheard")
	entries := logs.All()
	if len(entries) != 1 || fmt.Sprint(entries[0].ContextMap()) != "map[n:1 tenant_id:t]" {
		t.Errorf("got %+v", entries)
	}
}

// TestRunTells: once a minute, where lines were left out, and at the end.
func TestRunTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		log := zap.New(core)
		limit := loglimit.New(nil)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- limit.Run(ctx, log) }()
		told := func() []observer.LoggedEntry { return logs.FilterMessageSnippet("left out lines").All() }

		time.Sleep(90 * time.Second)
		if got := told(); len(got) != 0 {
			t.Errorf("nothing was left out: got %v", got)
		}
		limited := limit.Apply(zap.NewNop().WithOptions(zap.WrapCore(func(zapcore.Core) zapcore.Core { return core })))
		for n := range 300 {
			acquired(limited, "https://a.example.test", n)
		}
		time.Sleep(2 * time.Minute)
		if got := told(); len(got) != 1 || got[0].ContextMap()["lines"] != uint64(100) {
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
		t.Errorf("%d lines are accounted for, want 8000", got)
	}
}

func TestNothingIsAllocated(t *testing.T) {
	limit := loglimit.New(nil)
	log := limit.Apply(zap.New(zapcore.NewNopCore()))
	core := log.Core()
	fields := []zap.Field{zap.String("resource", "https://a.example.test"), zap.Int("status", 200)}
	entry := zapcore.Entry{Level: zap.InfoLevel, Message: "successfully acquired token"}
	if got := testing.AllocsPerRun(300, func() { _ = core.Write(entry, fields) }); got != 0 {
		t.Errorf("got %v allocations for a line, want none", got)
	}
}
