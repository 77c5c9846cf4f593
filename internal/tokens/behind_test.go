package tokens_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/tokens"
)

// slowLog takes a line whenever somebody reads the channel.
type slowLog struct {
	zapcore.Core
	taken chan zapcore.Entry
}

func (l slowLog) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return c.AddCore(e, l)
}
func (l slowLog) Enabled(zapcore.Level) bool        { return true }
func (l slowLog) With([]zapcore.Field) zapcore.Core { return l }
func (l slowLog) Write(e zapcore.Entry, _ []zapcore.Field) error {
	l.taken <- e
	return nil
}

// A log that takes no line (a full pipe, a disk that hangs) keeps nobody from an answer;
// the end of the service waits for the line.
func TestSlowLogHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeEntra{}
		f.failWith(&exchange.Error{Kind: exchange.Unavailable, Detail: "down"})
		log := slowLog{zapcore.NewNopCore(), make(chan zapcore.Entry)}
		cfg := tokens.Config{Exchanger: f}
		cfg.Log = zap.New(log)
		s := newService(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		if e := <-log.taken; e.Message != "connected to entra" {
			t.Fatalf("the first line is %q", e.Message)
		}
		began := time.Now()
		_, err := ask(t, s, tokens.Request{})
		wantKind(t, err, exchange.Unavailable)
		if took := time.Since(began); took != 0 {
			t.Errorf("answered after %s", took)
		}
		cancel()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("Run ended before the line was written")
		default:
		}
		if e := <-log.taken; e.Message != "token exchange failed" {
			t.Errorf("the next line is %q", e.Message)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// An exchange that hangs in spite of its deadline does not keep the process.
func TestRunEndsWithoutAnExchangeThatDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		cfg := tokens.Config{Exchanger: exchangeFunc(func() (exchange.Grant, error) {
			<-stuck
			return exchange.Grant{}, &exchange.Error{Kind: exchange.Unavailable}
		})}
		cfg.Prefetch = prefetch(resource)
		s := newService(t, cfg)
		stop := run(t, s)
		synctest.Wait()
		began := time.Now()
		stop()
		if got, want := time.Since(began), tokens.ExchangeTimeout+tokens.RecordTime; got != want {
			t.Errorf("Run took %s to end, want %s", got, want)
		}
		close(stuck)
	})
}
