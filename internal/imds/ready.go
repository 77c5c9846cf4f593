package imds

import (
	"io"
	"net/http"
	"strconv"

	"go.uber.org/zap"
)

// readyz answers a probe in plain text. It asks for no header: kubelets and curl
// send none.
func (h *Handler) readyz(w http.ResponseWriter, r *http.Request, o *outcome) error {
	h.log.Debug("received readyz request", zap.String("method", bounded(r.Method)), zap.String("path", o.path))
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return errMethodNotAllowed
	}
	text := "ok"
	if h.ready != nil {
		if err := h.ready(); err != nil {
			o.status, text = http.StatusServiceUnavailable, bounded(err.Error())
		}
	}
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(o.status)
	if _, err := io.WriteString(w, text); err != nil {
		return refused(errClientLeft, "the answer could not be written")
	}
	return nil
}
