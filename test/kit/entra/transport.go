package entra

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"syscall"
)

// Client returns a client of this server. If there is a listener, it uses TLS and trusts
// the server's CA, otherwise it uses Transport. It does not follow redirects and does not
// keep connections.
func (s *Server) Client() *http.Client {
	if s.http == nil {
		return &http.Client{Transport: s.Transport(), CheckRedirect: noRedirect}
	}
	return &http.Client{CheckRedirect: noRedirect, Transport: &http.Transport{
		TLSClientConfig:   s.TLSConfig(),
		DisableKeepAlives: true,
	}}
}

// Transport returns a transport that handles requests in the caller's goroutine and
// without a connection, for testing/synctest and for simulations of many clients. Faults
// have the same effect as on a connection. It accepts any host in the URL.
func (s *Server) Transport() http.RoundTripper { return transport{s} }

type transport struct{ s *Server }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Body != nil {
		defer request.Body.Close()
	}
	if err := request.Context().Err(); err != nil {
		return nil, err
	}
	select {
	case <-t.s.closed:
		return nil, fmt.Errorf("stand-in for Entra: %w", syscall.ECONNREFUSED)
	default:
	}
	incoming := request.Clone(request.Context())
	incoming.RequestURI = request.URL.RequestURI()
	incoming.RemoteAddr = "127.0.0.1:0"
	incoming.TLS = &tls.ConnectionState{ServerName: request.URL.Hostname(), HandshakeComplete: true}
	if incoming.Host == "" {
		incoming.Host = request.URL.Host
	}
	if incoming.Body == nil {
		incoming.Body = http.NoBody
	}

	w := &responseBuffer{header: make(http.Header)}
	aborted := w.serve(t.s.handler, incoming)
	if err := request.Context().Err(); err != nil {
		return nil, err
	}
	if aborted && w.status == 0 {
		return nil, fmt.Errorf("stand-in for Entra: %w", syscall.ECONNRESET)
	}
	return w.response(request), nil
}

// responseBuffer is an http.ResponseWriter that stores the answer.
type responseBuffer struct {
	header http.Header
	sent   http.Header
	status int
	body   bytes.Buffer
}

func (w *responseBuffer) Header() http.Header { return w.header }

func (w *responseBuffer) WriteHeader(status int) {
	if w.status == 0 {
		w.status, w.sent = status, w.header.Clone()
	}
}

func (w *responseBuffer) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

// serve runs the handler and reports whether it aborted the connection.
func (w *responseBuffer) serve(h http.Handler, r *http.Request) (aborted bool) {
	defer func() {
		if reason := recover(); reason != nil {
			if reason != http.ErrAbortHandler {
				panic(reason)
			}
			aborted = true
		}
	}()
	h.ServeHTTP(w, r)
	return false
}

func (w *responseBuffer) response(request *http.Request) *http.Response {
	w.WriteHeader(http.StatusOK)
	length := int64(w.body.Len())
	var body io.Reader = &w.body
	if declared, err := strconv.ParseInt(w.sent.Get("Content-Length"), 10, 64); err == nil && declared > length {
		body = io.MultiReader(&w.body, truncatedBody{})
		length = declared
	}
	return &http.Response{
		Status:     strconv.Itoa(w.status) + " " + http.StatusText(w.status),
		StatusCode: w.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        w.sent,
		Body:          io.NopCloser(body),
		ContentLength: length,
		Request:       request,
	}
}

// truncatedBody is the end of a body that is shorter than its Content-Length.
type truncatedBody struct{}

func (truncatedBody) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
