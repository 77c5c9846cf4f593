package manifests

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// corpus is the directory with the manifests of cmd/imds-migrate's tests. This test does not use those
// with unknown fields.
const corpus = repository + "/cmd/imds-migrate/testdata/corpus"

// injected returns the output of imds-migrate inject for a file.
func injected(t *testing.T, file string, args ...string) string {
	t.Helper()
	// The sources are in another module. Reading the directories makes go test rerun this test after
	// a change there.
	for _, dir := range []string{"cmd/imds-migrate", "internal/inject", "internal/manifest"} {
		if _, err := os.ReadDir(filepath.Join(repository, dir)); err != nil {
			t.Fatal(err)
		}
	}
	path, err := filepath.Abs(filepath.Join(corpus, file))
	if err != nil {
		t.Fatal(err)
	}
	args = append([]string{"run", "./cmd/imds-migrate", "inject", "--proxy-image=proxy:1", "--proxy-init-image=init:1",
		"--tenant-id=22222222-2222-4222-8222-222222222222", "--client-id=11111111-1111-4111-8111-111111111111"}, args...)
	cmd := exec.Command("go", append(args, path)...)
	cmd.Dir = repository
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("imds-migrate %s: %v", file, err)
	}
	return string(out)
}

// podTemplate decodes a document strictly and returns its pods.
func podTemplate(t *testing.T, document []byte) []corev1.PodTemplateSpec {
	t.Helper()
	var kind struct {
		metav1.TypeMeta
		Items []any `json:"items"`
	}
	if err := yaml.Unmarshal(document, &kind); err != nil {
		t.Fatal(err)
	}
	strict := func(object any) {
		if err := yaml.UnmarshalStrict(document, object); err != nil {
			t.Errorf("%s: %v", kind.Kind, err)
		}
	}
	switch kind.APIVersion + " " + kind.Kind {
	case "v1 Pod":
		var o corev1.Pod
		strict(&o)
		return []corev1.PodTemplateSpec{{ObjectMeta: o.ObjectMeta, Spec: o.Spec}}
	case "apps/v1 Deployment":
		var o appsv1.Deployment
		strict(&o)
		return []corev1.PodTemplateSpec{o.Spec.Template}
	case "apps/v1 StatefulSet":
		var o appsv1.StatefulSet
		strict(&o)
		return []corev1.PodTemplateSpec{o.Spec.Template}
	case "apps/v1 DaemonSet":
		var o appsv1.DaemonSet
		strict(&o)
		return []corev1.PodTemplateSpec{o.Spec.Template}
	case "batch/v1 Job":
		var o batchv1.Job
		strict(&o)
		return []corev1.PodTemplateSpec{o.Spec.Template}
	case "batch/v1 CronJob":
		var o batchv1.CronJob
		strict(&o)
		return []corev1.PodTemplateSpec{o.Spec.JobTemplate.Spec.Template}
	}
	var all []corev1.PodTemplateSpec
	for _, item := range kind.Items {
		text, err := yaml.Marshal(item)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, podTemplate(t, text)...)
	}
	return all
}

// foreign removes syntax of the corpus that this test's parser does not support: a comment after a
// marker, and escapes of JSON that YAML 1.1 does not have.
var foreign = strings.NewReplacer(" # a Job without any metadata in its template", "", `\/`, "/", `\ud83d\ude00`, "")

// TestMigrated checks that the API server's types accept the output of imds-migrate for each kind, and
// that the containers of each pod are in the right order.
func TestMigrated(t *testing.T) {
	for _, c := range []struct {
		file string
		pods int
	}{{"kinds.yaml", 5}, {"list.json", 1}, {"compact.json", 1}} {
		var pods []corev1.PodTemplateSpec
		for _, document := range strings.Split("\n"+injected(t, c.file, "--all"), "\n---") {
			pods = append(pods, podTemplate(t, []byte(foreign.Replace(document)))...)
		}
		if len(pods) != c.pods {
			t.Errorf("%s: %d pods, want %d", c.file, len(pods), c.pods)
		}
		for _, pod := range pods {
			checkMigrated(t, c.file, pod)
		}
	}
}

func checkMigrated(t *testing.T, file string, pod corev1.PodTemplateSpec) {
	t.Helper()
	var names []string
	for _, container := range pod.Spec.InitContainers {
		names = append(names, container.Name)
	}
	if len(names) < 2 || !slices.Equal(names[:2], []string{initName, sidecarName}) {
		t.Fatalf("%s: init containers %q, want %s and %s first", file, names, initName, sidecarName)
	}
	for i := range 2 {
		checkHardened(t, &pod.Spec.InitContainers[i])
	}
	for _, container := range pod.Spec.Containers {
		if !slices.ContainsFunc(container.Env, func(e corev1.EnvVar) bool { return e.Name == "AZURE_FEDERATED_TOKEN_FILE" }) {
			t.Errorf("%s: %s lacks the variables", file, container.Name)
		}
	}
}
