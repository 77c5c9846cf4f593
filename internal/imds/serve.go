package imds

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/tokens"
)

// ServeHTTP implements [http.Handler]. The path alone decides who answers, before
// any header is looked at.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header()["Server"] = h.serverHeader
	route, path := classify(r.URL.EscapedPath())
	switch route {
	case routeToken:
		h.serve(w, r, EndpointToken, path, h.token)
	case routeInfo:
		h.serve(w, r, EndpointInfo, path, h.info)
	case routeVersions:
		h.serve(w, r, EndpointVersions, path, h.versions)
	case routeForward:
		h.serve(w, r, EndpointForward, path, h.forward)
	default:
		h.serve(w, r, EndpointOwn, r.URL.Path, h.other)
	}
}

// endpoint answers a request, or says why it does not. What it finds out on the
// way it notes in the outcome.
type endpoint func(http.ResponseWriter, *http.Request, *outcome) error

// outcome is what is known of a request when it is over. Outcomes are used again,
// with the memory that making an answer and its log line takes.
type outcome struct {
	endpoint string
	path     string
	resource string
	clientID string
	status   int
	source   tokens.Source
	answered time.Time // zero: the answer is only known when the endpoint returns
	written  bool      // the endpoint has written the answer, also if it returns an error

	body   []byte
	fields [9]zap.Field
}

// maxLogged bounds what a caller can put into a field of the log.
const maxLogged = 256

// serve runs an endpoint. It is the one place where errors are written to clients
// and where requests are logged and observed.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, name, path string, e endpoint) {
	start := h.now()
	o := h.outcomes.Get().(*outcome)
	defer h.outcomes.Put(o)
	*o = outcome{endpoint: name, path: path, status: http.StatusOK, body: o.body[:0]}
	err := e(w, r, o)
	if err != nil {
		// Answered even if the client seems to have left: one that has closed its
		// half of the connection (nc -N) looks the same to net/http, which would
		// make an empty 200 of an error that is not written.
		if !o.written {
			o.status = writeError(w, err)
		}
		if r.Context().Err() != nil && refusalOf(err) == "" {
			err, o.status = refused(errClientLeft, err.Error()), statusClientLeft
		}
	}
	if o.answered.IsZero() {
		o.answered = h.now()
	}
	took := o.answered.Sub(start)
	h.logOutcome(r, o, err, took)
	if h.observe != nil {
		h.observe(r, Event{Endpoint: o.endpoint, Status: o.status, Source: o.source, Refusal: refusalOf(err), Duration: took})
	}
}

// requireGet refuses all other methods. Whatever an X-HTTP-Method-Override says,
// the method is that of the request line.
func requireGet(r *http.Request) error {
	if r.Method != http.MethodGet {
		return errMethodNotAllowed
	}
	return nil
}

// Values of header fields, which all answers share. They are never changed.
var (
	jsonType = []string{"application/json; charset=utf-8"}
	noStore  = []string{"no-store"}
)

// writeJSON writes a body whole: clients of IMDS do not expect it in chunks. Its
// one error is that the client has left.
func writeJSON(w http.ResponseWriter, status int, body []byte) error {
	header := w.Header()
	header["Content-Type"] = jsonType
	header["Cache-Control"] = noStore
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		return refused(errClientLeft, "the answer could not be written")
	}
	return nil
}

func writeError(w http.ResponseWriter, err error) (status int) {
	a := answerFor(err)
	if a.status == statusClientLeft {
		return a.status
	}
	if a.status == http.StatusMethodNotAllowed && w.Header().Get("Allow") == "" {
		w.Header().Set("Allow", http.MethodGet)
	}
	if errors.Is(err, tokens.ErrOverloaded) {
		w.Header().Set("Connection", "close") // others need the connection more
	}
	if a.retryAfter > 0 {
		seconds := (a.retryAfter + time.Second - 1) / time.Second
		w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	// There is no one to tell of a failed write.
	_ = writeJSON(w, a.status, appendError(nil, a.code, a.description))
	return a.status
}

func (h *Handler) logOutcome(r *http.Request, o *outcome, err error, took time.Duration) {
	message, level := describe(o, err)
	entry := h.log.Check(level, message)
	if entry == nil {
		return
	}
	fields := append(o.fields[:0],
		zap.String("method", bounded(r.Method)),
		zap.String("path", bounded(o.path)),
		zap.Int("status", o.status),
		zap.Duration("duration", took))
	fields = appendString(fields, "resource", bounded(o.resource))
	fields = appendString(fields, "client_id", o.clientID)
	fields = appendString(fields, "source", string(o.source))
	fields = appendString(fields, "request_id", requestID(r.Header))
	if err != nil {
		fields = append(fields, zap.Error(err))
	}
	entry.Write(fields...)
}

// appendString leaves out what is not known of a request.
func appendString(fields []zap.Field, name, value string) []zap.Field {
	if value == "" {
		return fields
	}
	return append(fields, zap.String(name, value))
}

// requestID returns what the client calls its request, for whoever compares the
// two logs. SDKs send a GUID; anything else could be any text, and is left out.
func requestID(header http.Header) string {
	values := header["X-Ms-Client-Request-Id"]
	if len(values) != 1 {
		return ""
	}
	id, _ := azure.ParseGUID(values[0])
	return id
}

// describe chooses the message and the level of a request's line. Probes are
// expected and frequent; they stay at debug.
func describe(o *outcome, err error) (string, zapcore.Level) {
	switch {
	case err == nil && o.source != "":
		return "successfully acquired token", zap.InfoLevel
	case err == nil:
		return "answered request", zap.DebugLevel
	case o.status == statusClientLeft:
		return "client left", zap.WarnLevel
	case errors.Is(err, errNoMetadataHeader), o.status == http.StatusNotFound:
		return "refused request", zap.DebugLevel
	case o.status < http.StatusInternalServerError:
		return "refused request", zap.WarnLevel
	default:
		return "request failed", zap.ErrorLevel
	}
}

func bounded(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "…"
	}
	return s
}

// Event is what is known of a request when it is over. It holds nothing that the
// caller wrote.
type Event struct {
	// Endpoint is who answered: token, info, versions, forward, own for an
	// endpoint of the proxy's own, none for a path that is not served.
	Endpoint string

	// Status is that of the answer; 499 where the client left before it.
	Status int

	// Source is where the token came from. Empty: no token was given.
	Source tokens.Source

	// Refusal names what was wrong with the request itself, such as
	// no_metadata_header: one of a few dozen constants. Empty: nothing was.
	Refusal string

	// Duration is from the end of the request's header to the answer.
	Duration time.Duration
}

// ClientLeft reports whether the client did not wait for the answer.
func (e Event) ClientLeft() bool { return e.Status == statusClientLeft }

// The values of Event.Endpoint.
const (
	EndpointToken    = "token"
	EndpointInfo     = "info"
	EndpointVersions = "versions"
	EndpointForward  = "forward"
	EndpointOwn      = "own"
	EndpointNone     = "none"
)

// refusalOf returns the reason of a refusal of what the request says, as opposed
// to a failure to do what it asks.
func refusalOf(err error) string {
	wire, ok := errors.AsType[*wireError](err)
	if !ok || wire.status >= http.StatusInternalServerError ||
		wire.status == http.StatusTooManyRequests || wire.status == statusClientLeft {
		return ""
	}
	return wire.reason
}

// NotFound answers a path that is not served, as IMDS does.
func NotFound(w http.ResponseWriter, _ *http.Request) { writeError(w, errNotFound) }

// MethodNotAllowed answers a method other than GET, as IMDS does.
func MethodNotAllowed(w http.ResponseWriter, _ *http.Request) { writeError(w, errMethodNotAllowed) }

// other has the fallback answer, and takes note of what it answers.
func (h *Handler) other(w http.ResponseWriter, r *http.Request, o *outcome) error {
	noted := &statusNoter{ResponseWriter: w, status: http.StatusOK}
	h.fallback.ServeHTTP(noted, r)
	if noted.err != nil {
		return refused(errClientLeft, "the answer could not be written")
	}
	o.status, o.written = noted.status, true
	switch noted.status {
	case http.StatusNotFound:
		o.endpoint = EndpointNone
		return errNotFound
	case http.StatusMethodNotAllowed:
		return errMethodNotAllowed
	}
	return nil
}

// statusNoter takes note of what another handler answers.
type statusNoter struct {
	http.ResponseWriter
	status int
	err    error // of the first write that failed
}

// WriteHeader implements [http.ResponseWriter].
func (w *statusNoter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *statusNoter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if w.err == nil {
		w.err = err
	}
	return n, err
}
