package repo

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/jsonpath"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/test/kit/azwi"
)

// TestForeignProxies: the command of docs/webhook.md that says whether azure-workload-identity's
// webhook may be removed lists exactly the pods whose proxy that webhook injected, also where it
// is an ordinary container, as on servers before Kubernetes 1.32.
func TestForeignProxies(t *testing.T) {
	var list corev1.PodList
	add := func(pod *corev1.Pod, name string) {
		pod.Namespace, pod.Name = "shop", name
		list.Items = append(list.Items, *pod)
	}
	for name, native := range map[string]bool{"native": true, "container": false} {
		pod, err := azwi.Webhook{NativeSidecar: native}.Mutate(annotatedPod(), &corev1.ServiceAccount{})
		if err != nil {
			t.Fatal(err)
		}
		add(pod, "theirs-"+name)
	}
	migrate := runMigrate(migrateBinary(t))
	for name, native := range map[string]string{"native": "on", "container": "off"} {
		add(migratedPod(t, migrate, "--native-sidecar="+native), "ours-"+name)
	}
	add(annotatedPod(), "without")

	got := runForeignProxies(t, list)
	slices.Sort(got)
	image := " " + azwi.ProxyImage + " user="
	want := []string{"shop/theirs-container" + image, "shop/theirs-native" + image}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func annotatedPod() *corev1.Pod {
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "app", Labels: map[string]string{inject.UseLabel: "true"},
			Annotations: map[string]string{inject.InjectProxyAnnotation: "true"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	}
}

func migratedPod(t *testing.T, migrate migrateFunc, args ...string) *corev1.Pod {
	t.Helper()
	text, err := json.Marshal(annotatedPod())
	if err != nil {
		t.Fatal(err)
	}
	pod := new(corev1.Pod)
	if err := json.Unmarshal([]byte(migrate(t, "inject", string(text)+"\n", args...)), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

// runForeignProxies returns what the documented command prints about pods: kubectl's template
// and the pattern of grep.
func runForeignProxies(t *testing.T, pods corev1.PodList) []string {
	t.Helper()
	command := regexp.MustCompile(`kubectl get pods --all-namespaces -o jsonpath="(.*)" \| grep '(.*)'\n`).FindStringSubmatch(read(t, "docs/webhook.md"))
	if command == nil {
		t.Fatal("docs/webhook.md has no such command")
	}
	text, err := json.Marshal(pods)
	if err != nil {
		t.Fatal(err)
	}
	var data any
	if err := json.Unmarshal(text, &data); err != nil {
		t.Fatal(err)
	}
	template := jsonpath.New("pods").AllowMissingKeys(true) // as kubectl does
	if err := template.Parse(command[1]); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := template.Execute(&out, data); err != nil {
		t.Fatal(err)
	}
	pattern := regexp.MustCompile(command[2])
	return slices.DeleteFunc(strings.Split(out.String(), "\n"), func(line string) bool { return !pattern.MatchString(line) })
}
