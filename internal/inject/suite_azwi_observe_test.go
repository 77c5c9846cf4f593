package inject_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
)

// observe returns what a pod has for a key of a case, in the types of decoded YAML.
func observe(t *testing.T, document []byte, key string) any {
	t.Helper()
	pod := decode(t, document)
	what, of, _ := strings.Cut(key, " ")
	name, path, _ := strings.Cut(of, " ")
	container := func(name string) *corev1.Container {
		for _, c := range all(pod) {
			if c.Name == name {
				return c
			}
		}
		t.Fatalf("%s: there is no container %q", key, name)
		return nil
	}
	switch what {
	case "initContainers":
		return generic(t, names(pod.Spec.InitContainers))
	case "containers":
		return generic(t, names(pod.Spec.Containers))
	case "volumes":
		return generic(t, volumeTexts(pod))
	case "env":
		return generic(t, texts(container(name).Env, func(e corev1.EnvVar) string { return e.Name + "=" + e.Value }))
	case "names":
		return generic(t, slices.Sorted(slices.Values(texts(container(name).Env, func(e corev1.EnvVar) string { return e.Name }))))
	case "mounts":
		return generic(t, texts(container(name).VolumeMounts, func(m corev1.VolumeMount) string { return m.Name + " " + m.MountPath }))
	case "authority":
		return value(container("container"), azure.EnvAuthorityHost)
	case "port":
		return proxyPort(t, container(inject.ProxyName))
	case "field":
		return field(generic(t, container(name)), path)
	case "document":
		var tree any
		if err := yaml.Unmarshal(document, &tree); err != nil {
			t.Fatal(err)
		}
		return field(tree, of)
	}
	t.Fatalf("unknown key %q", key)
	return nil
}

func texts[T any](list []T, text func(T) string) []string {
	all := []string{}
	for _, e := range list {
		all = append(all, text(e))
	}
	return all
}

// volumeTexts returns the volumes as the cases describe them.
func volumeTexts(pod *corev1.Pod) []string {
	return texts(pod.Spec.Volumes, func(v corev1.Volume) string {
		text := v.Name
		if v.Projected == nil {
			return text
		}
		for _, s := range v.Projected.Sources {
			switch {
			case s.ServiceAccountToken != nil:
				text += fmt.Sprintf(" %s %d %s", s.ServiceAccountToken.Audience, *s.ServiceAccountToken.ExpirationSeconds, s.ServiceAccountToken.Path)
			case s.ConfigMap != nil:
				text += ", ConfigMap " + s.ConfigMap.Name
			case s.ClusterTrustBundle != nil:
				text += ", signer " + *s.ClusterTrustBundle.SignerName
			}
		}
		return text
	})
}

// proxyPort returns the port of our proxy, which is in a variable, or of
// azure-workload-identity's, which is in an argument.
func proxyPort(t *testing.T, proxy *corev1.Container) any {
	t.Helper()
	text := value(proxy, "PROXY_PORT")
	for _, arg := range proxy.Args {
		if port, found := strings.CutPrefix(arg, "--proxy-port="); found {
			text = port
		}
	}
	port, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// field returns the value at a path of names and indexes, or nil.
func field(tree any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		switch node := tree.(type) {
		case map[string]any:
			tree = node[name]
		case []any:
			i, err := strconv.Atoi(name)
			if err != nil || i >= len(node) {
				return nil
			}
			tree = node[i]
		default:
			return nil
		}
	}
	return tree
}

// generic returns a value in the types of decoded JSON.
func generic(t *testing.T, v any) (tree any) {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	return tree
}
