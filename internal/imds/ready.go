package imds

import (
	"io"
	"net/http"
	"strconv"

	"go.uber.org/zap"
)

// readyz answers a probe in plain text. It asks for no header: kubelets and curl
// send none.
func (h *Handler) readyz(w http.ResponseWriter, r *http.Request) {
	h.log.Debug("received readyz request", zap.String("method", r.Method), zap.String("path", r.URL.Path))
	status, text := http.StatusOK, "ok"
	if h.ready != nil {
		if err := h.ready(); err != nil {
			status, text = http.StatusServiceUnavailable, bounded(err.Error())
		}
	}
	header := w.Header()
	header.Set("Content-Type", "text/plain; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	// A failed write means that the prober has left, and there is no one to tell.
	_, _ = io.WriteString(w, text)
}
