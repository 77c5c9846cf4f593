package imds

import "net/http"

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
