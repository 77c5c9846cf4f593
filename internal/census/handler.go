package census

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// ServeHTTP answers with all callers as indented JSON.
func (c *Census) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	body, err := json.MarshalIndent(struct {
		Clients []Entry `json:"clients"`
	}{c.Entries()}, "", "  ")
	if err != nil { // no field of an Entry can fail
		http.Error(w, "the census cannot be shown", http.StatusInternalServerError)
		return
	}
	body = append(body, '\n')
	header := w.Header()
	header.Set("Content-Type", "application/json; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // an error means that the client has closed the connection
}
