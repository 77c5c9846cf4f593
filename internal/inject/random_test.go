package inject_test

import (
	"fmt"
	"math/rand/v2"

	"imds-oidc-proxy/internal/inject"
)

// random makes pods as JSON, with fields that no version of Kubernetes knows in every
// object. The same seed makes the same pod.
type random struct {
	*rand.Rand
	cache bool // the pod has a volume of this name
}

type object = map[string]any

func (r random) one(in int) bool { return r.IntN(in) == 0 }

func pick[T any](r random, from ...T) T { return from[r.IntN(len(from))] }

// unknown adds what has to survive to the byte: a number that no float holds, an
// escape, a field without value.
func (r random) unknown(o object) object {
	o["x-future"] = object{"number": rawNumber("12345678901234567890.10"), "text": "é<&>\u2028", "list": []any{}, "none": nil, "seed": r.IntN(1000)}
	return o
}

type rawNumber string

func (n rawNumber) MarshalJSON() ([]byte, error) { return []byte(n), nil }

func (r random) pod() object {
	r.cache = r.one(2)
	metadata := object{"labels": object{inject.UseLabel: "true", "app": "a"}, "annotations": r.annotations()}
	if r.one(2) {
		metadata["name"] = "app"
	} else if r.one(2) {
		metadata["generateName"] = "app-"
	}
	spec := object{"containers": r.containers("app", 1+r.IntN(3))}
	switch r.IntN(4) {
	case 0:
		spec["initContainers"] = []any{}
	case 1:
		spec["initContainers"] = nil
	case 2:
		spec["initContainers"] = r.containers("init", 1+r.IntN(3))
	}
	if r.cache {
		spec["volumes"] = r.volumes()
	}
	if r.one(3) {
		spec["securityContext"] = r.unknown(object{"runAsUser": 1000 + r.IntN(5)})
	}
	if r.one(4) {
		spec["restartPolicy"] = pick(r, "Always", "Never", "OnFailure")
	}
	return r.unknown(object{"apiVersion": "v1", "kind": "Pod", "metadata": r.unknown(metadata), "spec": r.unknown(spec)})
}

func (r random) annotations() object {
	a := object{"example.test/note": "x"}
	if r.one(5) {
		return a
	}
	a[inject.InjectProxyAnnotation] = pick(r, "true", "true", "true", "1", "false")
	for name, values := range map[string][]string{
		inject.RedirectAnnotation:         {"forward", "sealed", "none"},
		inject.ProxyPortAnnotation:        {"1", "8000", "65535"},
		inject.AdminPortAnnotation:        {"8001", "9000"},
		inject.LogLevelAnnotation:         {"debug", "warn"},
		inject.ProxyImageAnnotation:       {"registry.example.test/p@sha256:0", "p"},
		inject.ProxyResourcesAnnotation:   {`{}`, `{"limits":{"memory":"0.1Gi","cpu":"1000m"}}`, `{"requests":{"cpu":"0.01"}}`},
		inject.SkipContainersAnnotation:   {"app-0", "nobody; init-1"},
		inject.TokenExpirationAnnotation:  {"3600", "86400", ""},
		inject.PrefetchAnnotation:         {"https://vault.azure.net"},
		inject.AllowedClientIDsAnnotation: {clientID},
	} {
		if r.one(4) {
			a[name] = pick(r, values...)
		}
	}
	return a
}

func (r random) containers(name string, n int) []any {
	var list []any
	for i := range n {
		c := object{"name": fmt.Sprintf("%s-%d", name, i), "image": "registry.example.test/team/app:1.0.0"}
		if r.one(2) {
			c["env"] = r.variables()
		}
		switch {
		case r.one(4):
			c["volumeMounts"] = []any{}
		case r.cache:
			c["volumeMounts"] = []any{r.unknown(object{"name": "cache", "mountPath": "/cache"})}
		}
		if r.one(3) {
			c["ports"] = []any{r.unknown(object{"containerPort": 7000 + r.IntN(3)})}
		}
		if r.one(3) {
			c["securityContext"] = r.unknown(object{"privileged": r.one(2)})
		}
		list = append(list, r.unknown(c))
	}
	return list
}

func (r random) variables() []any {
	list := []any{}
	for i, name := range []string{"A", "B", "AZURE_CLIENT_ID", "AZURE_AUTHORITY_HOST", "HTTPS_PROXY"} {
		if r.one(3) {
			list = append(list, r.unknown(object{"name": name, "value": fmt.Sprint(i)}))
		}
	}
	return list
}

func (r random) volumes() []any {
	list := []any{r.unknown(object{"name": "cache", "emptyDir": object{}})}
	if r.one(3) {
		list = append(list, r.unknown(object{"name": "vault", "projected": r.unknown(object{"sources": []any{
			r.unknown(object{"serviceAccountToken": r.unknown(object{"audience": "vault", "path": "t"})})}})}))
	}
	return list
}
