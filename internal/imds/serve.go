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

// ServeHTTP implements [http.Handler]. It chooses the endpoint by the path alone, before
// it looks at any header.
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
		if h.instance != nil && isBelow(path, instanceRoot) {
			h.serve(w, r, EndpointInstance, path, h.instanceMetadata)
			return
		}
		h.serve(w, r, EndpointForward, path, h.forward)
	case routeOtherIdentity:
		h.serve(w, r, EndpointNone, path, func(http.ResponseWriter, *http.Request, *outcome) error { return errIdentityPath })
	case routeAppService:
		h.serveAppService(w, r, path)
	default:
		h.serve(w, r, EndpointOwn, r.URL.Path, h.other)
	}
}

// endpoint answers a request, or returns an error, for which serve writes the response. It
// fills in the outcome.
type endpoint func(http.ResponseWriter, *http.Request, *outcome) error

// outcome describes a finished request. Outcomes are reused, together with the memory for
// the answer and the log line.
type outcome struct {
	endpoint string
	path     string
	resource string
	clientID string
	selector selector
	status   int
	source   tokens.Source
	answered time.Time // zero: the time at which the endpoint returns
	written  bool      // the endpoint has written an answer, although it returns an error
	dates    bool      // the client reads expires_on only as a date

	body   []byte
	fields [9]zap.Field
}

// maxLogged bounds the text from a caller in one field of the log, in bytes.
const maxLogged = 256

// serve runs an endpoint. All error responses, log lines and events of requests come from
// here.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, name, path string, e endpoint) {
	start := h.now()
	o := h.outcomes.Get().(*outcome)
	defer h.outcomes.Put(o)
	*o = outcome{endpoint: name, path: path, status: http.StatusOK, body: o.body[:0]}
	err := e(w, r, o)
	if err != nil {
		// The error is written even if the client seems to have closed the connection. A
		// client that has only closed its half (nc -N) looks the same, and if nothing is
		// written, net/http sends an empty response with status 200.
		if !o.written {
			o.status = writeError(w, err, encoderFor(name))
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

// requireGet returns an error for methods other than GET. It ignores
// X-HTTP-Method-Override.
func requireGet(r *http.Request) error {
	if r.Method != http.MethodGet {
		return errMethodNotAllowed
	}
	return nil
}

// Header values that all answers share. They are never changed.
var (
	jsonType = []string{"application/json; charset=utf-8"}
	textType = []string{"text/plain; charset=utf-8"}
	noStore  = []string{"no-store"}
)

func writeJSON(w http.ResponseWriter, status int, body []byte) error {
	return writeBody(w, status, jsonType, body)
}

// writeBody writes a body with its Content-Length, because clients of IMDS do not expect
// chunks. It fails only if the client has closed the connection.
func writeBody(w http.ResponseWriter, status int, contentType []string, body []byte) error {
	header := w.Header()
	header["Content-Type"] = contentType
	header["Cache-Control"] = noStore
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		return refused(errClientLeft, "the answer could not be written")
	}
	return nil
}

// encodeError appends the body of an error response.
type encodeError func(b []byte, a answer) []byte

// encoderFor returns the form of the errors of an endpoint.
func encoderFor(endpoint string) encodeError {
	if endpoint == EndpointAppService {
		return appendAppServiceError
	}
	return appendError
}

func writeError(w http.ResponseWriter, err error, encode encodeError) (status int) {
	a := answerFor(err)
	if a.status == statusClientLeft {
		return a.status
	}
	if a.status == http.StatusMethodNotAllowed && w.Header().Get("Allow") == "" {
		w.Header().Set("Allow", http.MethodGet)
	}
	if errors.Is(err, tokens.ErrOverloaded) {
		w.Header().Set("Connection", "close") // makes room for other clients
	}
	if a.retryAfter > 0 {
		seconds := (a.retryAfter + time.Second - 1) / time.Second
		w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
	}
	// An error means that the client has closed the connection.
	_ = writeJSON(w, a.status, encode(nil, a))
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
		fields = appendString(fields, "identity", o.selector.named())
		fields = append(fields, zap.Error(err))
	}
	entry.Write(fields...)
}

// appendString appends a field, unless its value is empty.
func appendString(fields []zap.Field, name, value string) []zap.Field {
	if value == "" {
		return fields
	}
	return append(fields, zap.String(name, value))
}

// requestID returns the client's ID for its request, so that an operator can match the
// proxy's log with the client's. SDKs send a GUID; the log does not show other values,
// which can be any text.
func requestID(header http.Header) string {
	values := header["X-Ms-Client-Request-Id"]
	if len(values) != 1 {
		return ""
	}
	id, _ := azure.ParseGUID(values[0])
	return id
}

// describe returns the message and the level of a request's log line. Probes for IMDS are
// expected and frequent, so they have the level debug.
func describe(o *outcome, err error) (string, zapcore.Level) {
	switch {
	case err == nil && o.source != "":
		return "successfully acquired token", zap.InfoLevel
	case err == nil:
		return "answered request", zap.DebugLevel
	case o.status == statusClientLeft:
		return "client left", zap.WarnLevel
	case errors.Is(err, errNoMetadataHeader), errors.Is(err, errIdentityPath), errors.Is(err, errForwardingOff), o.status == http.StatusNotFound:
		return "refused request", zap.DebugLevel
	case o.status < http.StatusInternalServerError && !isFailure(err):
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

// Event describes a finished request. It has no text from the caller.
type Event struct {
	// Endpoint is the endpoint that answered, one of the constants below.
	Endpoint string

	// Status is the status of the answer. 499: the client closed the connection before it
	// got the answer.
	Status int

	// Source is where the token came from. Empty: the answer has no token.
	Source tokens.Source

	// Refusal is the reason for which an invalid request was refused, such as
	// no_metadata_header: one of a few dozen constants. Empty: the request was valid.
	Refusal string

	// Duration is the time from the end of the request's header to the answer.
	Duration time.Duration
}

// ClientLeft reports whether the client closed the connection before it got the answer.
func (e Event) ClientLeft() bool { return e.Status == statusClientLeft }

// The values of Event.Endpoint.
const (
	EndpointToken      = "token"
	EndpointAppService = "app_service" // a token, in the protocol of App Service
	EndpointInfo       = "info"
	EndpointVersions   = "versions"
	EndpointForward    = "forward"
	EndpointInstance   = "instance" // Config.Instance
	EndpointOwn        = "own"      // Config.Fallback, such as /readyz
	EndpointNone       = "none"     // the path is not served
)

// refusalOf returns the reason for which an invalid request was refused. It returns "" for
// other errors.
func refusalOf(err error) string {
	wire, ok := errors.AsType[*wireError](err)
	if !ok || wire.status >= http.StatusInternalServerError || wire.failure ||
		wire.status == http.StatusTooManyRequests || wire.status == statusClientLeft {
		return ""
	}
	return wire.reason
}

// isFailure reports whether a valid request failed with a status of the client's errors.
func isFailure(err error) bool {
	wire, ok := errors.AsType[*wireError](err)
	return ok && wire.failure
}

// NotFound answers a request for a path that is not served, as IMDS does.
func NotFound(w http.ResponseWriter, _ *http.Request) { writeError(w, errNotFound, appendError) }

// MethodNotAllowed answers a request whose method is not GET, as IMDS does.
func MethodNotAllowed(w http.ResponseWriter, _ *http.Request) {
	writeError(w, errMethodNotAllowed, appendError)
}

// other runs the fallback handler and records the status of its answer.
func (h *Handler) other(w http.ResponseWriter, r *http.Request, o *outcome) error {
	recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
	h.fallback.ServeHTTP(recorder, r)
	if recorder.err != nil {
		return refused(errClientLeft, "the answer could not be written")
	}
	o.status, o.written = recorder.status, true
	switch recorder.status {
	case http.StatusNotFound:
		o.endpoint = EndpointNone
		return errNotFound
	case http.StatusMethodNotAllowed:
		return errMethodNotAllowed
	}
	return nil
}

// statusRecorder records the status of another handler's answer.
type statusRecorder struct {
	http.ResponseWriter
	status int
	err    error // error of the first write that failed
}

// WriteHeader implements [http.ResponseWriter].
func (w *statusRecorder) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *statusRecorder) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if w.err == nil {
		w.err = err
	}
	return n, err
}
