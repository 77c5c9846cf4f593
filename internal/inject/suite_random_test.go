package inject_test

import (
	"fmt"
	"math/rand/v2"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

// random generates pods as JSON. Every object has fields that no version of Kubernetes knows. The
// same seed generates the same pod.
type random struct {
	*rand.Rand
	cache bool // the pod has a volume named cache
	token bool // the pod has its own volume with a token
}

type object = map[string]any

func (r random) one(in int) bool { return r.IntN(in) == 0 }

func pick[T any](r random, from ...T) T { return from[r.IntN(len(from))] }

// unknown adds fields that must not change by a byte: a number that does not fit into a float, a
// character that is escaped, and a null field.
func (r random) unknown(o object) object {
	o["x-future"] = object{"number": rawNumber("12345678901234567890.10"), "text": "é<&>\u2028", "list": []any{}, "none": nil, "seed": r.IntN(1000)}
	return o
}

type rawNumber string

func (n rawNumber) MarshalJSON() ([]byte, error) { return []byte(n), nil }

func (r random) pod() object {
	r.cache = r.one(2)
	r.token = r.cache && r.one(3)
	metadata := object{"labels": r.labels(), "annotations": r.annotations()}
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
	if r.one(4) {
		spec["resources"] = r.unknown(object{"requests": object{"cpu": "10m"}, "limits": object{"cpu": "2", pick(r, "memory", "hugepages-2Mi"): "1Gi"}})
	}
	if r.one(3) {
		spec["securityContext"] = r.unknown(object{"runAsUser": 1000 + r.IntN(5)})
	}
	if r.one(4) {
		spec["restartPolicy"] = pick(r, "Always", "Never", "OnFailure")
	}
	return r.unknown(object{"apiVersion": "v1", "kind": "Pod", "metadata": r.unknown(metadata), "spec": r.unknown(spec)})
}

func (r random) labels() object {
	l := object{inject.UseLabel: "true", "app": "a"}
	if r.one(8) {
		l["imds-oidc-proxy/metrics"] = pick(r, "true", "yes")
	}
	return l
}

func (r random) annotations() object {
	a := object{"example.test/note": "x"}
	if r.one(5) {
		return a
	}
	a[inject.InjectProxyAnnotation] = pick(r, "true", "true", "true", "1", "false")
	for _, annotation := range [][]string{ // its name, and values to pick from
		{inject.RedirectAnnotation, "forward", "sealed", "none", "cni-forward", "cni-sealed"},
		{inject.CNIValidatorAnnotation, "true", "false", "false"},
		{inject.AppServiceAnnotation, "true", "false"},
		{inject.ProxyPortAnnotation, "1", "8000", "65535"},
		{inject.AdminPortAnnotation, "8001", "9000"},
		{inject.LogLevelAnnotation, "debug", "warn"},
		{inject.ProxyImageAnnotation, "registry.example.test/p@sha256:0", "p"},
		{inject.ProxyResourcesAnnotation, `{}`, `{"limits":{"memory":"0.1Gi","cpu":"1000m"}}`, `{"requests":{"cpu":"0.01"}}`},
		{inject.HTTPSProxyAnnotation, "http://proxy.example.test:3128", ""},
		{inject.NoProxyAnnotation, ".example.test,10.0.0.0/8"},
		{inject.CAConfigMapAnnotation, "corporate-ca", "corporate-ca/bundle.pem", ""},
		{inject.ProxyEnvAnnotation, `{}`, `{"PROXY_LOG_FORMAT":"console","A":""}`, `{"HTTPS_PROXY":"http://other.example.test"}`},
		{inject.SkipContainersAnnotation, "app-0", "nobody; init-1"},
		{inject.TokenExpirationAnnotation, "3600", "86400", ""},
		{inject.PrefetchAnnotation, "https://vault.azure.net"},
		{inject.AllowedClientIDsAnnotation, clientID},
		{inject.IdentityBindingAnnotation, "true", "true", "false"},
	} {
		if r.one(4) {
			a[annotation[0]] = pick(r, annotation[1:]...)
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
			c["volumeMounts"] = r.mounts()
		}
		if r.one(2) {
			c["resources"] = r.unknown(object{"limits": object{"cpu": "100m", "memory": "128Mi"}})
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

func (r random) mounts() []any {
	list := []any{r.unknown(object{"name": "cache", "mountPath": "/cache"})}
	if r.token && r.one(2) {
		list = append(list, r.unknown(object{"name": "own-token", "mountPath": pick(r, "/tokens", "/var/run/secrets/azure/tokens")}))
	}
	return list
}

// ownPaths are paths of token files that authors set: those of old and new webhooks, other ones,
// and paths without a file.
var ownPaths = []string{
	"/var/run/secrets/azure/wi/token/azure-identity-token",
	"/var/run/secrets/azure/imds-oidc-proxy/token/azure-identity-token",
	"/var/run/secrets/azure/tokens/azure-identity-token",
	"/tokens/azure-identity-token",
	"$(TOKENS)/token",
	"",
}

func (r random) variables() []any {
	list := []any{}
	for i, name := range []string{"A", "AZURE_FEDERATED_TOKEN_FILE", "B", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_AUTHORITY_HOST", "HTTPS_PROXY",
		"AZURE_KUBERNETES_TOKEN_PROXY", "AZURE_KUBERNETES_SNI_NAME", "AZURE_KUBERNETES_CA_FILE"} {
		value := fmt.Sprint(i)
		switch name {
		case "AZURE_FEDERATED_TOKEN_FILE":
			value = pick(r, ownPaths...)
		case "AZURE_KUBERNETES_TOKEN_PROXY":
			value = pick(r, "https://a.example.test", "https://b.example.test/prefix")
		case "AZURE_KUBERNETES_CA_FILE":
			value = pick(r, "/cache/ca.crt", "/tokens/ca.crt", "/var/run/secrets/azure/wi/ca-cert/ca.crt", "/nowhere")
		}
		if r.one(3) {
			list = append(list, r.unknown(object{"name": name, "value": value}))
		}
	}
	for _, name := range []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET"} {
		switch r.IntN(12) {
		case 0:
			list = append(list, r.unknown(object{"name": name, "value": pick(r, "http://127.0.0.1:8000/msi/token", "http://127.0.0.1:1", "x")}))
		case 1:
			list = append(list, r.unknown(object{"name": name, "valueFrom": r.unknown(object{"fieldRef": r.unknown(object{"fieldPath": pick(r, "metadata.uid", "metadata.name")})})}))
		}
	}
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

func (r random) volumes() []any {
	list := []any{r.unknown(object{"name": "cache", "emptyDir": object{}})}
	if r.one(3) {
		list = append(list, r.unknown(object{"name": "vault", "projected": r.unknown(object{"sources": []any{
			r.unknown(object{"serviceAccountToken": r.unknown(object{"audience": "vault", "path": "t"})})}})}))
	}
	if r.token {
		list = append(list, r.unknown(object{"name": "own-token", "projected": r.unknown(object{"sources": []any{
			r.unknown(object{"serviceAccountToken": r.unknown(object{"audience": pick(r, azure.Audience, azure.BindingAudience), "path": "azure-identity-token"})})}})}))
	}
	return list
}
