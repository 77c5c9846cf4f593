package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/census"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/apiserver"
)

// The times at which the cluster is shown: before the migration, three hours after namespace shop got the sidecar, and
// two months later.
const (
	before   = "before"
	sidecars = "sidecars"
	upgraded = "upgraded"
)

var times = []string{before, sidecars, upgraded}

// moved are the workloads of shop that get the sidecar, with their service account, and since when the pods run at
// each time. The SDK of cart is not upgraded.
var moved = map[string]struct {
	account string
	since   map[string]time.Duration
}{
	"web":   {"web", map[string]time.Duration{sidecars: 3 * time.Hour, upgraded: 40 * 24 * time.Hour}},
	"stock": {"stock", map[string]time.Duration{sidecars: 3 * time.Hour, upgraded: 38 * 24 * time.Hour}},
	"cart":  {"cart", map[string]time.Duration{sidecars: 3 * time.Hour, upgraded: 60 * 24 * time.Hour}},
}

// serve serves the cluster at all times.
func serve(dir string) (*apiserver.Server, error) {
	clusters := map[string]apiserver.Cluster{}
	for _, at := range times {
		objects, err := read(dir)
		if err != nil {
			return nil, err
		}
		objects = append(objects, apiserver.Object{"apiVersion": "v1", "kind": "Node", "metadata": apiserver.Object{"name": "node-1"}, "status": apiserver.Object{"nodeInfo": apiserver.Object{"kubeletVersion": "v1.36.3"}}})
		if at != before {
			objects = append(objects, apiserver.Object{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": apiserver.Object{"name": "cart", "namespace": "shop"}})
			for _, o := range objects {
				move(o, at)
			}
		}
		clusters[at] = apiserver.Cluster{Objects: objects, Run: func(_, pod, _ string, command []string) string { return output(at, pod, command) }}
	}
	return apiserver.Start(clusters), nil
}

// read reads the objects of all files of a directory.
func read(dir string) ([]apiserver.Object, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("%s contains no objects: %v", dir, err)
	}
	var objects []apiserver.Object
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			var o apiserver.Object
			if err := yaml.Unmarshal([]byte(document), &o); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			if len(o) > 0 {
				objects = append(objects, o)
			}
		}
	}
	return objects, nil
}

// child returns the object in a field, which it creates.
func child(o apiserver.Object, path ...string) apiserver.Object {
	for _, key := range path {
		next, ok := o[key].(apiserver.Object)
		if !ok {
			next = apiserver.Object{}
			o[key] = next
		}
		o = next
	}
	return o
}

// move changes an object as the migration of namespace shop has: by label, annotation and service account in the pod
// template, and by what the webhook has added to the pods.
func move(o apiserver.Object, at string) {
	metadata := child(o, "metadata")
	name, _ := metadata["name"].(string)
	if metadata["namespace"] != "shop" {
		return
	}
	switch o["kind"] {
	case "Deployment", "StatefulSet":
		if w, found := moved[name]; found {
			template := child(o, "spec", "template")
			child(template, "metadata", "labels")[inject.UseLabel] = "true"
			child(template, "metadata", "annotations")[inject.InjectProxyAnnotation] = "true"
			child(template, "spec")["serviceAccountName"] = w.account
		}
	case "Pod":
		app, _, _ := strings.Cut(name, "-")
		if w, found := moved[app]; found {
			child(metadata, "labels")[inject.UseLabel] = "true"
			child(metadata, "annotations")[inject.InjectProxyAnnotation] = "true"
			addSidecar(o, time.Now().Add(-w.since[at]))
		}
	}
}

func addSidecar(pod apiserver.Object, since time.Time) {
	started := since.UTC().Format(time.RFC3339)
	child(pod, "spec")["initContainers"] = []any{
		apiserver.Object{"name": inject.ProxyInitName, "image": "registry.example.test/imds-oidc-proxy-init:v0.2.0"},
		apiserver.Object{"name": inject.ProxyName, "image": "registry.example.test/imds-oidc-proxy:v0.2.0", "restartPolicy": "Always"},
	}
	child(pod, "metadata")["creationTimestamp"] = started
	child(pod, "status")["initContainerStatuses"] = []any{
		apiserver.Object{"name": inject.ProxyInitName, "state": apiserver.Object{"terminated": apiserver.Object{"exitCode": 0}}},
		apiserver.Object{"name": inject.ProxyName, "ready": true, "state": apiserver.Object{"running": apiserver.Object{"startedAt": started}}},
	}
}

// output is what the program of a sidecar prints.
func output(at, pod string, command []string) string {
	if len(command) > 1 && command[1] == "check" {
		return "nothing failed\n"
	}
	app, _, _ := strings.Cut(pod, "-")
	agent := ""
	if at == sidecars || app == "cart" {
		agent = agents[app]
	}
	return callers(agent, time.Now().Add(-moved[app].since[at]), time.Now().Add(-time.Minute)) + "imds_oidc_proxy_build_info{version=\"v0.1.0\"} 1\n"
}

// agents are the headers of the old SDKs.
var agents = map[string]string{
	"web": "azsdk-go-azidentity/v1.1.0 (go1.19; linux)", "cart": "azsdk-go-azidentity/v1.1.0 (go1.19; linux)",
	"stock": "azsdk-python-identity/1.10.0 Python/3.9.13 (Linux-5.15.0-x86_64)",
}

// callers returns what the proxy says of a client that has asked twice. Without an agent nobody has asked.
func callers(agent string, first, last time.Time) string {
	now := first
	c := census.New(census.Config{Now: func() time.Time { return now }})
	for _, now = range []time.Time{first, last} {
		if agent != "" {
			c.Count(http.Header{"User-Agent": {agent}})
		}
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, nil)
	return w.Body.String()
}
