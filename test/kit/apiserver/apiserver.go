// Package apiserver is a stand-in for the API server of a cluster whose objects are in files. It answers what
// imds-migrate asks: lists, namespaces, dry runs, reviews of rights, and programs that run in pods.
//
//	server, err := apiserver.Start(objects)
//	err = server.WriteKubeconfig(file)
//
// It stores nothing and accepts every request. For what a real API server does with the objects, use test/cluster.
package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"

	"github.com/gorilla/websocket"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/survey"
)

// Object is an object as JSON.
type Object = map[string]any

// Cluster is what a server serves.
type Cluster struct {
	Objects []Object
	// Run returns the output of a program that runs in a container. Its exit code is 0.
	Run func(namespace, pod, container string, command []string) string
}

// Server serves clusters, each under a name of its own.
type Server struct {
	*httptest.Server
	clusters map[string]Cluster
}

// Start starts a server. It has a certificate that only [httptest.Server.Certificate] verifies, and is its own
// issuer of service account tokens.
func Start(clusters map[string]Cluster) *Server {
	s := &Server{clusters: clusters}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /issuer/.well-known/openid-configuration", s.discovery)
	mux.HandleFunc("GET /issuer/keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, Object{"keys": []Object{{"kty": "RSA", "alg": "RS256"}}})
	})
	mux.HandleFunc("GET /{cluster}/version", func(w http.ResponseWriter, _ *http.Request) { answer(w, Object{"gitVersion": "v1.36.3"}) })
	mux.HandleFunc("GET /{cluster}/.well-known/openid-configuration", s.discovery)
	mux.HandleFunc("GET /{cluster}/apis", s.groups)
	mux.HandleFunc("POST /{cluster}/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, Object{"status": Object{"allowed": true}})
	})
	mux.HandleFunc("POST /{cluster}/api/v1/namespaces/{namespace}/pods", echo)
	mux.HandleFunc("GET /{cluster}/api/v1/namespaces/{namespace}/pods/{pod}/exec", s.exec)
	mux.HandleFunc("GET /{cluster}/api/v1/namespaces/{namespace}", s.namespace)
	mux.HandleFunc("GET /{cluster}/", s.list)
	s.Server = httptest.NewTLSServer(mux)
	return s
}

// Issuer returns the issuer of service account tokens.
func (s *Server) Issuer() string { return s.URL + "/issuer" }

// WriteKubeconfig writes a kubeconfig with a context for each cluster. The current one is the first of names.
func (s *Server) WriteKubeconfig(file string, names ...string) error {
	config := Object{"apiVersion": "v1", "kind": "Config", "current-context": names[0], "users": []Object{{"name": "you", "user": Object{"token": "stand-in"}}}}
	var clusters, contexts []Object
	for _, name := range names {
		clusters = append(clusters, Object{"name": name, "cluster": Object{"server": s.URL + "/" + name, "insecure-skip-tls-verify": true}})
		contexts = append(contexts, Object{"name": name, "context": Object{"cluster": name, "user": "you"}})
	}
	config["clusters"], config["contexts"] = clusters, contexts
	text, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value)
}

// notFound answers as for a kind that is not installed.
func notFound(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(Object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": http.StatusNotFound, "message": "the server could not find the requested resource"})
}

// echo answers a dry run: the object is accepted as it is.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.Copy(w, r.Body)
}

func (s *Server) discovery(w http.ResponseWriter, _ *http.Request) {
	answer(w, Object{"issuer": s.Issuer(), "jwks_uri": s.Issuer() + "/keys"})
}

// groups lists the API groups that have objects.
func (s *Server) groups(w http.ResponseWriter, r *http.Request) {
	versions := map[string][]Object{}
	var names []string
	for _, o := range s.clusters[r.PathValue("cluster")].Objects {
		version, _ := o["apiVersion"].(string)
		group, short, named := strings.Cut(version, "/")
		if named && versions[group] == nil {
			names = append(names, group)
			versions[group] = []Object{{"groupVersion": version, "version": short}}
		}
	}
	groups := []Object{}
	for _, name := range names {
		groups = append(groups, Object{"name": name, "versions": versions[name]})
	}
	answer(w, Object{"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

// namespace returns a namespace.
func (s *Server) namespace(w http.ResponseWriter, r *http.Request) {
	for _, o := range s.clusters[r.PathValue("cluster")].Objects {
		if metadata, _ := o["metadata"].(Object); o["kind"] == "Namespace" && metadata["name"] == r.PathValue("namespace") {
			answer(w, o)
			return
		}
	}
	notFound(w)
}

// list lists the objects of a kind, in all namespaces or in one.
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.TrimPrefix(r.URL.Path, "/"+r.PathValue("cluster")+"/"), "/")
	group := ""
	switch {
	case path[0] == "api" && len(path) > 2:
		path = path[2:]
	case path[0] == "apis" && len(path) > 3:
		group, path = path[1], path[3:]
	default:
		notFound(w)
		return
	}
	namespace := ""
	if path[0] == "namespaces" && len(path) == 3 {
		namespace, path = path[1], path[2:]
	}
	kind := kindOf(group, path[0])
	if len(path) != 1 || kind == "" {
		notFound(w)
		return
	}
	items := []Object{}
	for _, o := range s.clusters[r.PathValue("cluster")].Objects {
		version, _ := o["apiVersion"].(string)
		metadata, _ := o["metadata"].(Object)
		if in, _, named := strings.Cut(version, "/"); o["kind"] == kind && (named && in == group || !named && group == "") && (namespace == "" || metadata["namespace"] == namespace) {
			items = append(items, o)
		}
	}
	answer(w, Object{"kind": kind + "List", "apiVersion": "v1", "metadata": Object{}, "items": items})
}

func kindOf(group, resource string) string {
	if group == "" && resource == "nodes" {
		return "Node"
	}
	i := slices.IndexFunc(survey.Kinds, func(k survey.Kind) bool { return k.Group == group && k.Resource == resource })
	if i < 0 {
		return ""
	}
	return survey.Kinds[i].Kind
}

// The channels of the protocol by which a client runs a program: the first byte of each message.
const (
	protocol      = "v5.channel.k8s.io"
	channelStdout = 1
	channelStatus = 3
)

// exec runs a program in a container, by a WebSocket.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{Subprotocols: []string{protocol}}
	connection, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer connection.Close()
	query := r.URL.Query()
	output := s.clusters[r.PathValue("cluster")].Run(r.PathValue("namespace"), r.PathValue("pod"), query.Get("container"), query["command"])
	for _, message := range []string{fmt.Sprintf("%c%s", channelStdout, output), fmt.Sprintf(`%c{"metadata":{},"status":"Success"}`, channelStatus)} {
		if err := connection.WriteMessage(websocket.BinaryMessage, []byte(message)); err != nil {
			return
		}
	}
	_ = connection.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
}
