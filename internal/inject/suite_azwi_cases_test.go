package inject_test

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

// azwiCase is a case of testdata/azwi.yaml, which documents the fields.
type azwiCase struct {
	Name             string
	Differences      []string
	Labels, Account  map[string]string
	Annotations      map[string]string
	Init, Containers []any
	Volumes          []any
	Spec, Document   map[string]any
	Tenant           *azure.Tenant
	Cloud            string
	Endpoint         inject.TokenEndpoint
	Native           bool
	Renamed          string
	PodName          *string `json:"pod-name"`
	Azwi, Ours       map[string]any
}

func azwiCases(t *testing.T) []azwiCase {
	t.Helper()
	var file struct {
		Anchors any
		Cases   []azwiCase
	}
	if err := yaml.UnmarshalStrict(read(t, "testdata", "azwi.yaml"), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Cases) < 100 {
		t.Fatalf("got %d cases, want those of all tests", len(file.Cases))
	}
	return file.Cases
}

// document returns the pod as the API server sends it, with fields that this project's types may
// not have.
func (c azwiCase) document(t *testing.T) []byte {
	t.Helper()
	name := "pod"
	if c.PodName != nil {
		name = *c.PodName
	}
	metadata := map[string]any{"name": name, "labels": map[string]string{inject.UseLabel: "true"}, "annotations": c.Annotations}
	if c.Labels != nil {
		metadata["labels"] = c.Labels
	}
	spec := map[string]any{
		"initContainers": []any{map[string]any{"name": "init-container", "image": "init-container-image"}},
		"containers":     []any{map[string]any{"name": "container", "image": "image"}},
		"volumes":        c.Volumes,
	}
	maps.Copy(spec, c.Spec)
	if c.Init != nil {
		spec["initContainers"] = c.Init
	}
	if c.Containers != nil {
		spec["containers"] = c.Containers
	}
	pod := map[string]any{"metadata": metadata, "spec": spec}
	for key, value := range c.Document {
		if key == "metadata" {
			maps.Copy(metadata, value.(map[string]any))
			continue
		}
		pod[key] = value
	}
	// The API server sends no empty lists and maps.
	maps.DeleteFunc(metadata, func(_ string, v any) bool {
		return v == "" || reflect.ValueOf(v).Kind() == reflect.Map && reflect.ValueOf(v).Len() == 0
	})
	maps.DeleteFunc(spec, func(_ string, v any) bool {
		return reflect.ValueOf(v).Kind() == reflect.Slice && reflect.ValueOf(v).Len() == 0
	})
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (c azwiCase) config() inject.Config {
	config := config()
	config.Cloud, config.TokenEndpoint, config.PostStart = c.Cloud, c.Endpoint, !c.Native
	if c.Tenant != nil {
		config.TenantID = *c.Tenant
	}
	return config
}

func (c azwiCase) account() *corev1.ServiceAccount {
	a := account()
	if c.Account != nil {
		a.Annotations = c.Account
	}
	return a
}

// want returns what injection has to give: azure-workload-identity's result, where this project
// has not decided otherwise.
func (c azwiCase) want() map[string]any {
	want := maps.Clone(c.Azwi)
	maps.Copy(want, c.Ours)
	return want
}

// TestAzwiCases runs the pods of azure-workload-identity's unit tests. Each result is
// azure-workload-identity's, except where the case names a row of the table of differences in
// docs/injection.md.
func TestAzwiCases(t *testing.T) {
	rows := documentedDifferences(t)
	used := map[string]bool{}
	for _, c := range azwiCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			for _, difference := range c.Differences {
				used[difference] = true
				if !rows[difference] {
					t.Errorf("difference %q is no row of the table in docs/injection.md", difference)
				}
			}
			if (len(c.Differences) == 0) != (len(c.Ours) == 0) {
				t.Errorf("differences %q and results %v: one needs the other", c.Differences, c.Ours)
			}
			for key, value := range c.Ours {
				if theirs, given := c.Azwi[key]; !given && key != "refused" || given && reflect.DeepEqual(value, theirs) {
					t.Errorf("%s: %v is no difference from %v", key, value, theirs)
				}
			}
			after, err := c.inject(t)
			if err == nil {
				checkValid(t, decode(t, after))
			}
			checkObserved(t, after, err, c.want())
		})
	}
	// These differences show where no unit test of azure-workload-identity looks.
	elsewhere := map[string]bool{"native-version": true}
	for row := range rows {
		if !used[row] && !elsewhere[row] {
			t.Errorf("no case shows the difference %q", row)
		}
	}
}

// inject returns the pod after injection, or the error with which it or the configuration is
// refused.
func (c azwiCase) inject(t *testing.T) ([]byte, error) {
	t.Helper()
	document, config := c.document(t), c.config()
	if err := config.Validate(); err != nil {
		return nil, err
	}
	for _, name := range []string{"", c.Renamed} {
		pod := decode(t, document)
		if name != "" {
			pod.Name = name
		}
		result, err := inject.Pod(pod, c.account(), config)
		if err != nil {
			return nil, err
		}
		document = apply(t, document, result.Patch)
	}
	return document, nil
}

// TestAzwiImitation checks the imitation of azure-workload-identity's webhook, which other tests
// run beside ours, by the same cases.
func TestAzwiImitation(t *testing.T) {
	ran := 0
	for _, c := range azwiCases(t) {
		// The imitation has no other clouds, and the API server sends it no pod without the label.
		if c.Cloud != "" || slices.Contains(c.Differences, "label") || c.Document["panda"] != nil {
			continue
		}
		ran++
		t.Run(c.Name, func(t *testing.T) {
			config := c.config()
			w := azwi.Webhook{NativeSidecar: c.Native, TenantID: string(config.TenantID), Endpoint: theirEndpoint(c.Endpoint)}
			pod, err := w.Mutate(decode(t, c.document(t)), c.account())
			if err == nil && c.Renamed != "" {
				pod.Name = c.Renamed
				pod, err = w.Mutate(pod, c.account())
			}
			var after []byte
			if err == nil {
				after = encode(t, pod)
			}
			checkObserved(t, after, err, c.Azwi)
		})
	}
	if ran < 90 {
		t.Errorf("ran %d cases, want most", ran)
	}
}

// theirEndpoint returns a token endpoint as the configuration of azure-workload-identity's webhook.
func theirEndpoint(e inject.TokenEndpoint) azwi.TokenEndpoint {
	return azwi.TokenEndpoint{
		Suffix: e.AnnotationSuffix, Audience: e.Audience, TokenProxy: string(e.TokenProxy), SNIName: e.SNIName,
		CAData: e.CAData, CAConfigMap: e.CAConfigMap, CASigner: e.ClusterTrustBundleSigner, CALabels: e.ClusterTrustBundleLabels,
	}
}

// differenceRow is a row of the table of differences: its first column is a code.
var differenceRow = regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|")

func documentedDifferences(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("../../docs/injection.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## Differences from azure-workload-identity's webhook\n")
	if !found {
		t.Fatal("docs/injection.md has no section about the differences")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[string]bool{}
	for _, row := range differenceRow.FindAllStringSubmatch(section, -1) {
		rows[row[1]] = true
	}
	return rows
}

func checkObserved(t *testing.T, document []byte, err error, want map[string]any) {
	t.Helper()
	if len(want) == 0 {
		t.Fatal("the case requires nothing")
	}
	refused := want["refused"] == true
	if (err != nil) != refused {
		t.Fatalf("%v, want refused: %t", err, refused)
	}
	if refused {
		return
	}
	for key, value := range want {
		if key == "refused" {
			continue
		}
		if got := observe(t, document, key); !reflect.DeepEqual(got, value) {
			t.Errorf("%s:\n%v, want\n%v", key, got, value)
		}
	}
}
