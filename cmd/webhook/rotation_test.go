package main

import (
	"net/http"
	"testing"
)

type recorder struct{ url string }

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	r.url = request.URL.String()
	return &http.Response{}, nil
}

// TestNarrow checks that lists and watches select one object by name, so that a permission for
// this name is enough, and that other requests are not changed.
func TestNarrow(t *testing.T) {
	const host = "https://api.example.test"
	for _, test := range []struct{ method, path, want string }{
		{"GET", "/api/v1/namespaces/shop/secrets?limit=500", "/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Dhook-cert&limit=500"},
		{"GET", "/api/v1/namespaces/shop/secrets?fieldSelector=type%3Dx&watch=true", "/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name%3Dhook-cert&watch=true"},
		{"GET", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations?fieldSelector=metadata.name%3Dhook"},
		{"GET", "/api/v1/namespaces/shop/secrets/hook-cert", "/api/v1/namespaces/shop/secrets/hook-cert"},
		{"POST", "/api/v1/namespaces/shop/secrets", "/api/v1/namespaces/shop/secrets"},
		{"GET", "/api/v1/serviceaccounts?watch=true", "/api/v1/serviceaccounts?watch=true"},
	} {
		var seen recorder
		request, err := http.NewRequest(test.method, host+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		n := narrow{next: &seen, names: map[string]string{"secrets": "hook-cert", "mutatingwebhookconfigurations": "hook"}}
		if _, err := n.RoundTrip(request); err != nil {
			t.Fatal(err)
		}
		if seen.url != host+test.want {
			t.Errorf("%s %s became %s, want %s", test.method, test.path, seen.url, test.want)
		}
		if request.URL.String() != host+test.path {
			t.Errorf("the request itself was changed to %s", request.URL)
		}
	}
}
