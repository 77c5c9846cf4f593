package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/logging"
	"imds-oidc-proxy/internal/loglimit"
	"imds-oidc-proxy/internal/tokens"
)

// cached is a source of tokens that always returns the same token, as from a cache.
type cached struct{ result tokens.Result }

// Token returns the token of the only identity, which has no object ID.
func (c cached) Token(_ context.Context, r tokens.Request) (tokens.Result, error) {
	if r.Selector != "" {
		return tokens.Result{}, tokens.ErrUnknownSelector
	}
	return c.result, nil
}

// discarded is a ResponseWriter that discards the body, so that the benchmark measures only the
// handler.
type discarded struct{ header http.Header }

func (w *discarded) Header() http.Header         { return w.header }
func (w *discarded) Write(b []byte) (int, error) { return len(b), nil }
func (w *discarded) WriteHeader(int)             {}

// BenchmarkCachedAnswer answers requests with a cached token through main's handler, with and
// without metrics, census and the rate limit of log lines.
func BenchmarkCachedAnswer(b *testing.B) {
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	log := zap.New(zapcore.NewCore(encoder, zapcore.AddSync(io.Discard), zap.InfoLevel))
	limit := loglimit.New(nil)
	observed := newObserver(limit, new(logging.Queue), zap.NewNop())
	for _, test := range []struct {
		name    string
		log     *zap.Logger
		observe func(*http.Request, imds.Event)
	}{
		{"bare", log, nil},
		{"observed", log, observed.request},
		{"observed, log limited", limit.Apply(log), observed.request},
	} {
		b.Run(test.name, func(b *testing.B) {
			h, err := imds.New(imds.Config{
				Tokens: cached{tokens.Result{Source: tokens.SourceCache, Token: exchange.Token{
					AccessToken: strings.Repeat("t", 1800), NotBefore: time.Now(), ExpiresOn: time.Now().Add(24 * time.Hour)}}},
				TenantID: "11111111-1111-1111-1111-111111111111", DefaultClientID: testClientID, Log: test.log, Observe: test.observe,
			})
			if err != nil {
				b.Fatal(err)
			}
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + tokenQuery + "https%3A%2F%2Fvault.azure.net HTTP/1.1\r\n" +
				"Host: 169.254.169.254\r\nMetadata: true\r\nUser-Agent: azsdk-go-azidentity/v1.0.0 (go1.26; linux)\r\n" +
				"X-Ms-Client-Request-Id: 2f7e81c4-9a3b-4d56-8e1f-b05c6d7a4932\r\n\r\n")))
			if err != nil {
				b.Fatal(err)
			}
			w := &discarded{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
}
