package survey_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"imds-oidc-proxy/internal/survey"
)

// apiServer serves the objects of the example cluster with pages of the requested size, as an API server
// does.
type apiServer struct {
	t       *testing.T
	objects []map[string]any
	// denied has status codes by the end of a path, and expire is how many continuations expire.
	denied   map[string]int
	versions map[string][]string // of a group, in place of those of the objects
	expire   int
	requests []string
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.requests = append(s.requests, r.URL.Path)
	for suffix, code := range s.denied {
		if strings.HasSuffix(r.URL.Path, suffix) {
			s.fail(w, code)
			return
		}
	}
	switch {
	case r.Method != http.MethodGet:
		s.t.Errorf("%s %s: a plan only reads", r.Method, r.URL)
	case r.URL.Path == "/version":
		io.WriteString(w, `{"gitVersion": "v1.35.2"}`)
	case r.URL.Path == "/.well-known/openid-configuration":
		io.WriteString(w, `{"issuer": "https://oidc.example.test/shop/"}`)
	case r.URL.Path == "/apis":
		s.groups(w)
	case r.URL.Path == "/apis/constraints.gatekeeper.sh/v1beta1":
		s.constraints(w)
	case strings.Count(r.URL.Path, "/") == 3 && strings.HasPrefix(r.URL.Path, "/apis/keda.sh/"):
		io.WriteString(w, `{"resources": [{"name": "triggerauthentications"}, {"name": "triggerauthentications/status"}]}`)
	default:
		s.list(w, r)
	}
}

func (s *apiServer) fail(w http.ResponseWriter, code int) {
	reason := map[int]metav1.StatusReason{403: metav1.StatusReasonForbidden, 401: metav1.StatusReasonUnauthorized, 410: metav1.StatusReasonExpired, 404: metav1.StatusReasonNotFound, 500: metav1.StatusReasonInternalError}[code]
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Reason: reason, Code: int32(code), Message: "refused"})
}

func (s *apiServer) groups(w http.ResponseWriter) {
	versions := map[string][]string{"apps": {"v1"}, "batch": {"v1"}}
	for _, o := range s.objects {
		if group, version, found := strings.Cut(o["apiVersion"].(string), "/"); found && !slices.Contains(versions[group], version) {
			versions[group] = append(versions[group], version)
		}
	}
	var list metav1.APIGroupList
	for group, served := range versions {
		if other := s.versions[group]; other != nil {
			served = other
		}
		g := metav1.APIGroup{Name: group}
		for _, version := range served {
			g.Versions = append(g.Versions, metav1.GroupVersionForDiscovery{GroupVersion: group + "/" + version, Version: version})
		}
		list.Groups = append(list.Groups, g)
	}
	json.NewEncoder(w).Encode(list)
}

func (s *apiServer) constraints(w http.ResponseWriter) {
	var list metav1.APIResourceList
	for _, o := range s.objects {
		if kind := o["kind"].(string); strings.HasPrefix(o["apiVersion"].(string), "constraints") {
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: strings.ToLower(kind), Kind: kind}, metav1.APIResource{Name: strings.ToLower(kind) + "/status", Kind: kind})
		}
	}
	json.NewEncoder(w).Encode(list)
}

// resource returns the plural of a kind for this test: as in the table of kinds, or as Gatekeeper does.
func resource(kind string) string {
	for _, k := range survey.Kinds {
		if k.Kind == kind {
			return k.Resource
		}
	}
	return strings.ToLower(kind)
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/apis/"), "/api/")
	namespace := ""
	if before, after, found := strings.Cut(path, "/namespaces/"); found {
		namespace, path, _ = strings.Cut(after, "/")
		path = before + "/" + path
	}
	var items []map[string]any
	known := false
	for _, o := range s.objects {
		if o["apiVersion"].(string)+"/"+resource(o["kind"].(string)) != path {
			continue
		}
		known = true
		if in, _ := o["metadata"].(map[string]any)["namespace"].(string); namespace == "" || in == namespace {
			item := map[string]any{} // without a kind, as in lists of the API server
			for key, value := range o {
				if key != "kind" && key != "apiVersion" {
					item[key] = value
				}
			}
			items = append(items, item)
		}
	}
	if !known {
		s.fail(w, http.StatusNotFound)
		return
	}
	s.page(w, r.URL.Query(), items)
}

func (s *apiServer) page(w http.ResponseWriter, query url.Values, items []map[string]any) {
	if query.Get("limit") != "500" {
		s.t.Error("a list without limit=500")
	}
	const size = 5
	start, _ := strconv.Atoi(query.Get("continue"))
	if start > 0 && s.expire > 0 {
		s.expire--
		s.fail(w, http.StatusGone)
		return
	}
	next := ""
	if start+size < len(items) {
		next = strconv.Itoa(start + size)
	}
	json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]any{"continue": next}, "items": items[start:min(start+size, len(items))]})
}

// live reads the cluster.
func live(t *testing.T, server *apiServer, config survey.Config) (*survey.Survey, error) {
	t.Helper()
	server.t = t
	listener := httptest.NewServer(server)
	defer listener.Close()
	client, err := survey.NewClient(&rest.Config{Host: listener.URL})
	if err != nil {
		t.Fatal(err)
	}
	s := survey.New(config)
	err = s.ReadCluster(t.Context(), client, func(string) {})
	s.Finish()
	return s, err
}

// TestLive checks that a cluster gives the same survey as a dump of it, also if lists expire.
func TestLive(t *testing.T) {
	all := objects(t)
	_, want := read(t, list(t, all, false))
	for _, expire := range []int{0, 3} {
		s, err := live(t, &apiServer{objects: all, expire: expire}, survey.Config{Secrets: true})
		if err != nil || describe(s) != want || len(s.Unread) > 0 {
			t.Errorf("%d expired: %v, unread %v:\n%s", expire, err, s.Unread, diff.Diff("dump", []byte(want), "cluster", []byte(describe(s))))
		}
		if s.ServerVersion != "v1.35.2" || s.Issuer != "https://oidc.example.test/shop/" || s.Found["deployments.apps"] < 20 {
			t.Errorf("version %q, issuer %q, %d Deployments", s.ServerVersion, s.Issuer, s.Found["deployments.apps"])
		}
	}
	if s, _ := live(t, &apiServer{objects: all}, survey.Config{}); len(s.Configs) == 0 || slices.ContainsFunc(s.AllWorkloads(), func(w *survey.Workload) bool { return w.Kind == "Secret" }) || s.Found["secrets"] != 0 {
		t.Error("Secrets were read without being asked for")
	}
}

// TestNamespace checks that a person with rights in one namespace can read it.
func TestNamespace(t *testing.T) {
	server := &apiServer{objects: objects(t), denied: map[string]int{"/v1/deployments": 403}}
	s, err := live(t, server, survey.Config{Namespace: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	for ref := range s.Workloads {
		if ref.Kind == "Deployment" && ref.Namespace != "shop" {
			t.Errorf("read %v, which only the whole cluster has", ref)
		}
	}
	if len(s.Unread) != 1 || s.Unread[0].What != "deployments.apps" || s.Unread[0].Why != "read in namespace shop only: you may not list deployments.apps" {
		t.Errorf("unread: %v", s.Unread)
	}
	if !slices.Contains(server.requests, "/apis/aadpodidentity.k8s.io/v1/azureidentitybindings") || slices.Contains(server.requests, "/api/v1/pods") {
		t.Error("bindings must be read everywhere, and pods in the namespace only")
	}
}

// TestDenied checks what a missing permission, an absent kind and an unknown version do.
func TestDenied(t *testing.T) {
	all := objects(t)
	for name, c := range map[string]struct {
		server apiServer
		err    string
		unread []survey.Unread
		issuer string
	}{
		"pods": {apiServer{denied: map[string]int{"/pods": 403}}, "cannot list pods: you may not list pods", nil, ""},
		"one kind": {apiServer{denied: map[string]int{"/serviceaccounts": 403}}, "",
			[]survey.Unread{{Code: survey.Forbidden, What: "serviceaccounts", Why: "you may not list serviceaccounts"}}, ""},
		"broken kind":    {apiServer{denied: map[string]int{"/configmaps": 500}}, "cannot list configmaps: refused", nil, ""},
		"no credentials": {apiServer{denied: map[string]int{"/version": 401}}, "the API server does not accept your credentials: sign in, or choose another --context", nil, ""},
		"no CRDs":        {apiServer{denied: map[string]int{"/azureidentities": 404, "/azureidentitybindings": 404}}, "", nil, ""},
		"unknown version": {apiServer{versions: map[string][]string{"keda.sh": {"v2", "v3"}}}, "", []survey.Unread{
			{Code: survey.Version, What: "triggerauthentications.keda.sh", Why: "the cluster serves version v2, and this program knows v1alpha1"},
		}, ""},
		"discovery": {apiServer{denied: map[string]int{"/apis": 403, "/openid-configuration": 403}}, "", nil, "you may not get /.well-known/openid-configuration; or set --issuer"},
	} {
		c.server.objects = all
		s, err := live(t, &c.server, survey.Config{})
		if fmt.Sprint(err) != c.err && (err != nil || c.err != "") {
			t.Errorf("%s: got %v, want %q", name, err, c.err)
		}
		if err == nil && !slices.Equal(s.Unread, c.unread) || s.NoIssuer != c.issuer {
			t.Errorf("%s: unread %v, want %v; issuer: %q, want %q", name, s.Unread, c.unread, s.NoIssuer, c.issuer)
		}
	}
}

// TestVersions checks that a kind is read in the version that has it, where its group serves several.
func TestVersions(t *testing.T) {
	all := objects(t)
	for _, o := range all {
		if o["kind"] == "OCIRepository" || o["kind"] == "SecretStore" {
			group, _, _ := strings.Cut(o["apiVersion"].(string), "/")
			o["apiVersion"] = group + map[string]string{"OCIRepository": "/v1beta2", "SecretStore": "/v1alpha1"}[o["kind"].(string)]
		}
	}
	s, err := live(t, &apiServer{objects: all}, survey.Config{})
	if err != nil || s.Found["ocirepositories.source.toolkit.fluxcd.io"] != 1 || s.Found["secretstores.external-secrets.io"] != 1 || s.Found["buckets.source.toolkit.fluxcd.io"] != 1 || len(s.Unread) > 0 {
		t.Errorf("%v, found %v, unread %v", err, s.Found, s.Unread)
	}
}

// cutClient cuts the answers that it gets.
type cutClient struct{ survey.Client }

func (c cutClient) Get(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	body, err := c.Client.Get(ctx, path, query)
	if err != nil || query == nil {
		return body, err
	}
	return io.NopCloser(io.LimitReader(body, 100)), nil
}

// TestCutAnswer checks that a part of a list is not taken for the whole.
func TestCutAnswer(t *testing.T) {
	listener := httptest.NewServer(&apiServer{t: t, objects: objects(t)})
	defer listener.Close()
	client, err := survey.NewClient(&rest.Config{Host: listener.URL})
	if err != nil {
		t.Fatal(err)
	}
	err = survey.New(survey.Config{}).ReadCluster(t.Context(), cutClient{client}, func(string) {})
	if err == nil || !strings.Contains(err.Error(), "the answer is cut off or invalid") {
		t.Errorf("got %v", err)
	}
}

// TestCancelled checks that a cancelled read ends.
func TestCancelled(t *testing.T) {
	listener := httptest.NewServer(&apiServer{t: t, objects: objects(t)})
	defer listener.Close()
	client, err := survey.NewClient(&rest.Config{Host: listener.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = survey.New(survey.Config{}).ReadCluster(ctx, client, func(string) { cancel() })
	if !errors.Is(err, context.Canceled) && (err == nil || !strings.Contains(err.Error(), "context canceled")) {
		t.Errorf("got %v", err)
	}
}

// silentClient never answers requests for one path.
type silentClient struct {
	survey.Client
	path string
}

func (c silentClient) Get(ctx context.Context, path string, _ url.Values) (io.ReadCloser, error) {
	if path == c.path {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return io.NopCloser(strings.NewReader("{}")), nil
}

// TestSilentServer checks that an API server that does not answer is an error after a while, and that a list
// is interrupted by its context alone.
func TestSilentServer(t *testing.T) {
	for _, path := range []string{"/version", "/apis"} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			err := survey.New(survey.Config{}).ReadCluster(t.Context(), silentClient{path: path}, func(string) {})
			if want := "cannot reach the API server: no answer to GET " + path + " within 32s"; err == nil || err.Error() != want || time.Since(start) != 32*time.Second {
				t.Errorf("after %s: got %v, want %s", time.Since(start), err, want)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := survey.New(survey.Config{Kinds: []string{"pods"}}).ReadCluster(ctx, silentClient{path: "/api/v1/pods"}, func(string) {}); ctx.Err() == nil {
			t.Errorf("a list ended after less than an hour: %v", err)
		}
	})
}
