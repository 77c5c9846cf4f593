package imds_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/internal/imds"
	"imds-oidc-proxy/internal/tokens"
)

// cached is a token source that returns a token of the usual size from its cache.
type cached struct{ result tokens.Result }

func (c cached) Token(context.Context, tokens.Request) (tokens.Result, error) {
	return c.result, nil
}

func newCached() cached {
	return cached{tokens.Result{
		Token: exchange.Token{
			AccessToken: strings.Repeat("t", 1800),
			NotBefore:   time.Now(),
			ExpiresOn:   time.Now().Add(24 * time.Hour),
		},
		Source: tokens.SourceCache,
	}}
}

// discardLog returns a logger that encodes every line and discards it.
func discardLog() *zap.Logger {
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	return zap.New(zapcore.NewCore(encoder, zapcore.AddSync(io.Discard), zap.InfoLevel))
}

func benchHandler(b *testing.B) *imds.Handler {
	return newHandler(b, imds.Config{Tokens: newCached(), TenantID: tenantID, DefaultClientID: defaultID, Log: discardLog()})
}

// discardResponse discards the response, so that a benchmark measures only the handler.
type discardResponse struct{ header http.Header }

func (w *discardResponse) Header() http.Header         { return w.header }
func (w *discardResponse) Write(b []byte) (int, error) { return len(b), nil }
func (w *discardResponse) WriteHeader(int)             {}

// BenchmarkHandler measures a cache hit with its log line, without net/http.
func BenchmarkHandler(b *testing.B) {
	for name, target := range map[string]string{
		"escaped":   tokenPath + "?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net",
		"unescaped": tokenPath + "?api-version=2018-02-01&resource=https://vault.azure.net",
	} {
		b.Run(name, func(b *testing.B) {
			h := benchHandler(b)
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n")))
			if err != nil {
				b.Fatal(err)
			}
			w := &discardResponse{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkServer compares the proxy's server with a bare net/http server that writes a body
// of the same size, each with one keep-alive connection.
func BenchmarkServer(b *testing.B) {
	body := []byte(strings.Repeat("b", 2096))
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
	})
	b.Run("token", func(b *testing.B) {
		benchRequests(b, serve(b, benchHandler(b)), tokenRequest)
	})
	b.Run("probe-while-exchange-hangs", func(b *testing.B) {
		source := newHanging()
		defer close(source.release)
		cfg := config(source)
		cfg.Log = discardLog()
		addr := serve(b, newHandler(b, cfg))
		dial(b, addr).send(tokenRequest)
		source.wait(b)
		benchRequests(b, addr, strings.Replace(tokenRequest, "Metadata: true\r\n", "", 1))
	})
	b.Run("bare", func(b *testing.B) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		server := &http.Server{Handler: bare}
		go server.Serve(listener)
		defer server.Close()
		benchRequests(b, listener.Addr().String(), tokenRequest)
	})
}

func benchRequests(b *testing.B, addr, request string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 8<<10)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.WriteString(conn, request); err != nil {
			b.Fatal(err)
		}
		if err := skipAnswer(r); err != nil {
			b.Fatal(err)
		}
	}
}

// skipAnswer reads an answer as cheaply as possible.
func skipAnswer(r *bufio.Reader) error {
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == len("\r\n") {
			break
		}
		if digits, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			for _, c := range bytes.TrimSpace(digits) {
				length = 10*length + int(c-'0')
			}
		}
	}
	_, err := r.Discard(length)
	return err
}
