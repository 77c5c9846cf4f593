package inject_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/inject"
)

// TestInstanceMetadata: the proxy gets the document of the ConfigMap and the fields of the downward
// API. Both go away with the annotation, and with injection.
func TestInstanceMetadata(t *testing.T) {
	for value, key := range map[string]string{"region": "instance.json", "region/compute.json": "compute.json"} {
		pod := mutate(t, injected(annotate(inject.InstanceMetadataAnnotation, value)), account(), config())
		proxy := find(pod.Spec.InitContainers, inject.ProxyName)
		names := map[string]int{}
		for i, e := range proxy.Env {
			names[e.Name] = i
		}
		for name, path := range map[string]string{"IMDS_NODE_NAME": "spec.nodeName", "IMDS_REGION": "metadata.labels['topology.kubernetes.io/region']"} {
			e := proxy.Env[names[name]]
			if e.ValueFrom == nil || e.ValueFrom.FieldRef == nil || e.ValueFrom.FieldRef.FieldPath != path || names[name] > names["PROXY_INSTANCE_METADATA_FIELDS"] {
				t.Errorf("%s: got %v at %d, want the field %s before the variable that refers to it", name, e, names[name], path)
			}
			if !strings.Contains(proxy.Env[names["PROXY_INSTANCE_METADATA_FIELDS"]].Value, "$("+name+")") {
				t.Errorf("no field has the value of %s", name)
			}
		}
		file := proxy.Env[names["PROXY_INSTANCE_METADATA"]].Value
		for _, c := range all(pod) {
			if mounted := slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
				return m.Name == "imds-oidc-proxy-instance" && file == m.MountPath+"/instance.json" && m.ReadOnly
			}); mounted != (c == proxy) {
				t.Errorf("%s mounts the document: %t", c.Name, mounted)
			}
		}
		i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == "imds-oidc-proxy-instance" })
		if i < 0 || pod.Spec.Volumes[i].ConfigMap.Name != "region" || !slices.Equal(pod.Spec.Volumes[i].ConfigMap.Items, []corev1.KeyToPath{{Key: key, Path: "instance.json"}}) {
			t.Errorf("got volumes %v", pod.Spec.Volumes)
		}
		checkValid(t, pod)
		if result, err := inject.Pod(defaulted(pod.DeepCopy()), account(), config()); err != nil || len(result.Patch) != 0 || len(result.Warnings) != 0 {
			t.Errorf("second pass: got %v, %v, want no change", result, err)
		}
		if got, want := string(apply(t, encode(t, pod), inject.Remove(pod).Patch)), string(encode(t, injected(annotate(inject.InstanceMetadataAnnotation, value)))); got != want {
			t.Errorf("removed: got\n%s, want\n%s", got, want)
		}
		delete(pod.Annotations, inject.InstanceMetadataAnnotation)
		if got, want := string(encode(t, mutate(t, pod, account(), config()))), string(encode(t, mutate(t, injected(), account(), config()))); got != want {
			t.Errorf("without the annotation: got\n%s, want\n%s", got, want)
		}
	}
}

// TestConfigMapVolumes: the two volumes with ConfigMaps come and go independently of each other, in
// any order of the pod's volumes.
func TestConfigMapVolumes(t *testing.T) {
	both := func(p *corev1.Pod) {
		annotate(inject.InstanceMetadataAnnotation, "region")(p)
		annotate(inject.CAConfigMapAnnotation, "ca")(p)
	}
	names := func(p *corev1.Pod) (names []string) {
		for _, v := range p.Spec.Volumes {
			if v.ConfigMap != nil {
				names = append(names, v.Name+"="+v.ConfigMap.Name)
			}
		}
		slices.Sort(names)
		return names
	}
	for name, test := range map[string]struct {
		change func(*corev1.Pod)
		want   []string
	}{
		"unchanged": {func(*corev1.Pod) {}, []string{"imds-oidc-proxy-ca=ca", "imds-oidc-proxy-instance=region"}},
		"reversed":  {func(p *corev1.Pod) { slices.Reverse(p.Spec.Volumes) }, []string{"imds-oidc-proxy-ca=ca", "imds-oidc-proxy-instance=region"}},
		"both others": {func(p *corev1.Pod) {
			annotate(inject.InstanceMetadataAnnotation, "r2")(p)
			annotate(inject.CAConfigMapAnnotation, "c2")(p)
		}, []string{"imds-oidc-proxy-ca=c2", "imds-oidc-proxy-instance=r2"}},
		"one other":        {func(p *corev1.Pod) { annotate(inject.InstanceMetadataAnnotation, "r2")(p) }, []string{"imds-oidc-proxy-ca=ca", "imds-oidc-proxy-instance=r2"}},
		"no metadata":      {func(p *corev1.Pod) { delete(p.Annotations, inject.InstanceMetadataAnnotation) }, []string{"imds-oidc-proxy-ca=ca"}},
		"empty annotation": {annotate(inject.InstanceMetadataAnnotation, ""), []string{"imds-oidc-proxy-ca=ca"}},
		"none": {func(p *corev1.Pod) {
			delete(p.Annotations, inject.InstanceMetadataAnnotation)
			delete(p.Annotations, inject.CAConfigMapAnnotation)
		}, nil},
		"none, reversed": {func(p *corev1.Pod) {
			slices.Reverse(p.Spec.Volumes)
			delete(p.Annotations, inject.InstanceMetadataAnnotation)
			delete(p.Annotations, inject.CAConfigMapAnnotation)
		}, nil},
		"not injected any more": {annotate(inject.InjectProxyAnnotation, "false"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			pod := mutate(t, injected(both), account(), config())
			test.change(pod)
			pod = mutate(t, pod, account(), config())
			if got := names(pod); !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
			if !inject.HasToken(pod) {
				t.Error("the volume of the token is lost")
			}
		})
	}
}

// TestInstanceRefusals: the errors of the annotation, and the reserved name of the volume.
func TestInstanceRefusals(t *testing.T) {
	for _, value := range []string{"Region", "region/", "region/a/b", "../region"} {
		_, err := inject.Pod(injected(annotate(inject.InstanceMetadataAnnotation, value)), account(), config())
		checkRefusal(t, err, "annotation "+inject.InstanceMetadataAnnotation+`: "`+value+`": must be the name of a ConfigMap, or NAME/KEY`)
	}
	_, err := inject.Pod(injected(annotate(inject.InstanceMetadataAnnotation, "region"), func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "imds-oidc-proxy-instance"}}
	}), account(), config())
	checkRefusal(t, err, "spec.volumes[imds-oidc-proxy-instance].name: this name is reserved for the injected volume; use another name")
	result, err := inject.Pod(injected(annotate(inject.InstanceMetadataAnnotation, "region"), annotate(inject.RedirectAnnotation, "none")), account(), config())
	if err != nil || !slices.ContainsFunc(result.Warnings, func(w string) bool {
		return strings.Contains(w, "applications request instance metadata from the node")
	}) {
		t.Errorf("without a redirect: got %q, %v, want a warning", result.Warnings, err)
	}
}
