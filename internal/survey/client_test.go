package survey_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"imds-oidc-proxy/internal/survey"
)

// TestCreate checks that the text of a refusal reaches the person.
func TestCreate(t *testing.T) {
	const reason = `pods "x" is forbidden: violates PodSecurity "restricted:latest"`
	listener := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || r.FormValue("dryRun") != "All" || string(body) != `{"name":"x"}` {
			t.Errorf("got %s %s with %s", r.Method, r.URL, body)
		}
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/refused" {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `{"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Forbidden", "code": 403, "message": "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\""}`)
			return
		}
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x-1"}}`)
	}))
	defer listener.Close()
	client, err := survey.NewClient(&rest.Config{Host: listener.URL})
	if err != nil {
		t.Fatal(err)
	}
	var answer struct{ Metadata struct{ Name string } }
	query := url.Values{"dryRun": {"All"}}
	if err := client.Create(t.Context(), "/pods", query, map[string]string{"name": "x"}, &answer); err != nil || answer.Metadata.Name != "x-1" {
		t.Errorf("got %v, %+v", err, answer)
	}
	if err := client.Create(t.Context(), "/refused", query, map[string]string{"name": "x"}, &answer); !apierrors.IsForbidden(err) || err.Error() != reason {
		t.Errorf("got %v, want %s", err, reason)
	}
}

// TestHostileAnswers: a pod that answers through the API server's proxy gets the person's credentials
// nowhere, and its endless error is not read to its end.
func TestHostileAnswers(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the redirect was followed, with %q", r.Header["Authorization"])
	}))
	defer elsewhere.Close()
	written := make(chan int64, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, elsewhere.URL, http.StatusFound)
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
		n, _ := io.CopyN(w, zeros{}, 1<<30)
		written <- n
	}))
	defer server.Close()
	client, err := survey.NewClient(&rest.Config{Host: server.URL, BearerToken: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Get(t.Context(), "/redirect", nil); err == nil {
		t.Error("a redirect: got no error")
	}
	if _, err := client.Get(t.Context(), "/endless", nil); !apierrors.IsInternalError(err) {
		t.Errorf("an endless error: got %v", err)
	}
	if n := <-written; n > 64<<20 {
		t.Errorf("%d bytes of an error were read", n)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
