package imds

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/go-chi/chi/v5"
	"go.uber.org/zap"

	"imds-oidc-proxy/internal/azure"
)

// ownEndpoints routes what is the proxy's and not the metadata service's. chi
// matches paths as they are: it does not clean or redirect them. Endpoints check
// the method themselves, so that a path that is not served is 404 with any.
func (h *Handler) ownEndpoints(own map[string]http.Handler) http.Handler {
	notFound := func(w http.ResponseWriter, r *http.Request) {
		h.serve(w, r, EndpointNone, r.URL.Path, func(http.ResponseWriter, *http.Request, *outcome) error { return errNotFound })
	}
	router := chi.NewRouter()
	router.NotFound(notFound)
	router.MethodNotAllowed(notFound) // for methods that chi does not know
	for path, inner := range own {
		message := "received " + path[1:] + " request"
		router.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			h.log.Debug(message, zap.String("method", bounded(r.Method)), zap.String("path", path))
			h.serve(w, r, EndpointOwn, path, func(w http.ResponseWriter, r *http.Request, o *outcome) error {
				return ownEndpoint(w, r, o, inner)
			})
		})
	}
	return router
}

// checkOwn keeps the metadata service's paths, and patterns that match more than
// one path, out of the map of own endpoints.
func checkOwn(own map[string]http.Handler) error {
	for path := range own {
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "{}*") || strings.HasPrefix(azure.LowerASCII(path), "/metadata") {
			return fmt.Errorf("%q cannot be an endpoint of the proxy's own", path)
		}
	}
	return nil
}

// ownEndpoint asks for no header: kubelets and curl send none.
func ownEndpoint(w http.ResponseWriter, r *http.Request, o *outcome, inner http.Handler) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return errMethodNotAllowed
	}
	noted := &statusNoter{ResponseWriter: w, outcome: o}
	inner.ServeHTTP(noted, r)
	if noted.err != nil {
		return refused(errClientLeft, "the answer could not be written")
	}
	return nil
}

// statusNoter notes in the outcome what another handler answers.
type statusNoter struct {
	http.ResponseWriter
	outcome *outcome
	err     error // of the first write that failed
}

func (w *statusNoter) WriteHeader(status int) {
	w.outcome.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusNoter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b)
	if w.err == nil {
		w.err = err
	}
	return n, err
}
