package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/plan"
	"imds-oidc-proxy/internal/survey"
	"imds-oidc-proxy/test/cluster"
)

// planTimeout limits the test of plans. It applies 240 objects and runs some dozens of plans.
const planTimeout = 5 * time.Minute

const exampleCluster = repository + "/cmd/imds-migrate/testdata/cluster"

// planFormats are compared byte by byte.
var planFormats = []string{"table", "wide", "json", "yaml", "markdown", "csv", "az", "bicep", "terraform", "aso", "crossplane", "patch"}

// TestPlan checks imds-migrate plan with a real API server: it gives the same bytes from the cluster and
// from a dump of it, names missing permissions, and works without the custom resources.
func TestPlan(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), planTimeout)
	defer cancel()
	p := planner{t, writeKubeconfig(t)}
	p.withoutDefinitions(ctx)
	p.applyExample(ctx)
	dump := p.settledDump(ctx)
	t.Run("live and dump", func(t *testing.T) { p.compare(ctx, t, dump) })
	t.Run("patches", func(t *testing.T) { p.patches(ctx, t) })
	t.Run("permissions", func(t *testing.T) { p.permissions(ctx, t) })
	t.Run("unknown version", func(t *testing.T) { p.unknownVersion(ctx, t) })
}

type planner struct {
	t          *testing.T
	kubeconfig string
}

// writeKubeconfig writes a kubeconfig of the administrator, with a context of the name shop.
func writeKubeconfig(t *testing.T) string {
	t.Helper()
	rest := running.REST
	config := clientcmdapi.NewConfig()
	config.Clusters["shop"] = &clientcmdapi.Cluster{Server: rest.Host, CertificateAuthority: rest.CAFile, CertificateAuthorityData: rest.CAData}
	config.AuthInfos["admin"] = &clientcmdapi.AuthInfo{ClientCertificate: rest.CertFile, ClientCertificateData: rest.CertData, ClientKey: rest.KeyFile, ClientKeyData: rest.KeyData}
	config.Contexts["shop"] = &clientcmdapi.Context{Cluster: "shop", AuthInfo: "admin"}
	config.CurrentContext = "shop"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// plan runs the program, and returns its output and exit code.
func (p planner) plan(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	cmd := exec.CommandContext(ctx, program("imds-migrate"), append([]string{"plan"}, args...)...)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	err := cmd.Run()
	exit, exited := errors.AsType[*exec.ExitError](err)
	if err != nil && !exited {
		p.t.Fatal(err)
	}
	if exited {
		code = exit.ExitCode()
	}
	return out.String(), messages.String(), code
}

func (p planner) live(ctx context.Context, args ...string) (stdout, stderr string, code int) {
	p.t.Helper()
	return p.plan(ctx, append([]string{"--kubeconfig=" + p.kubeconfig}, args...)...)
}

// withoutDefinitions checks a cluster without any of the custom resources.
func (p planner) withoutDefinitions(ctx context.Context) {
	p.t.Helper()
	stdout, stderr, code := p.live(ctx)
	if code == 1 || stderr != "" || !strings.Contains(stdout, "aad-pod-identity: not installed\n") || !strings.Contains(stdout, "azureidentities.aadpodidentity.k8s.io, ") {
		p.t.Fatalf("without custom resources: exit code %d, %s%s", code, stdout, stderr)
	}
}

// example returns the objects of the example cluster.
func example(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	files, err := filepath.Glob(exampleCluster + "/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatal("no example cluster", err)
	}
	var all []*unstructured.Unstructured
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := cluster.Objects(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, objects...)
	}
	return all
}

// applyExample defines the custom resources of the example and applies its objects: namespaces and what
// others refer to first.
func (p planner) applyExample(ctx context.Context) {
	p.t.Helper()
	objects := example(p.t)
	if len(objects) < 40 {
		p.t.Fatalf("%d objects, want at least 40", len(objects))
	}
	for _, definition := range p.definitions(objects) {
		if _, err := running.Apply(ctx, definition, false); err != nil {
			p.t.Fatal(err)
		}
	}
	last := []string{"ServiceAccount", "Node", "Namespace"} // the last of these comes first
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		return slices.Index(last, b.GetKind()) - slices.Index(last, a.GetKind())
	})
	for _, o := range objects {
		p.apply(ctx, o)
	}
}

// apply applies one object, as soon as its definition is served and its service account exists.
func (p planner) apply(ctx context.Context, o *unstructured.Unstructured) {
	p.t.Helper()
	if o.GetKind() == "Namespace" { // the shared webhook does not change the pods of this test
		labels := o.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		labels[ownWebhookLabel] = "none"
		o.SetLabels(labels)
	}
	for i, owner := range o.GetOwnerReferences() {
		node, err := running.Client.CoreV1().Nodes().Get(ctx, owner.Name, metav1.GetOptions{})
		if err != nil {
			p.t.Fatal(err)
		}
		owners := o.GetOwnerReferences()
		owners[i].UID = node.UID
		o.SetOwnerReferences(owners)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		_, err := running.Apply(ctx, o, false)
		if meta.IsNoMatchError(err) {
			running.Refresh()
		}
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// definitions returns minimal definitions of the objects' custom resources, which accept all fields.
func (p planner) definitions(objects []*unstructured.Unstructured) []*unstructured.Unstructured {
	p.t.Helper()
	groups, err := running.Client.Discovery().ServerGroups()
	if err != nil {
		p.t.Fatal(err)
	}
	var all []*unstructured.Unstructured
	seen := map[schema.GroupKind]bool{}
	for _, o := range objects {
		kind := o.GroupVersionKind()
		known := slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == kind.Group })
		if known || seen[kind.GroupKind()] {
			continue
		}
		seen[kind.GroupKind()] = true
		all = append(all, definition(kind, kind.Version))
	}
	return all
}

func definition(kind schema.GroupVersionKind, version string) *unstructured.Unstructured {
	plural, scope := strings.ToLower(kind.Kind)+"s", "Namespaced"
	for _, k := range survey.Kinds {
		if k.Group == kind.Group && k.Kind == kind.Kind {
			plural = k.Resource
			if !k.Namespace {
				scope = "Cluster"
			}
		}
	}
	if kind.Group == "constraints.gatekeeper.sh" { // as Gatekeeper defines them
		plural, scope = strings.ToLower(kind.Kind), "Cluster"
	}
	return cluster.Definition(kind.GroupKind(), version, plural, scope)
}

// dump returns all objects of the kinds that a plan reads, as kubectl get --output=yaml prints them.
func (p planner) dump(ctx context.Context) []byte {
	p.t.Helper()
	items := []any{}
	for _, r := range p.resources() {
		list, err := running.Dynamic.Resource(r).List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			p.t.Fatal(err)
		}
		for _, item := range list.Items {
			item.SetManagedFields(nil)
			items = append(items, item.Object)
		}
	}
	text, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "items": items, "kind": "List", "metadata": map[string]any{"resourceVersion": ""}})
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// resources returns the kinds of the table, in the versions of the example, and Gatekeeper's constraints.
func (p planner) resources() []schema.GroupVersionResource {
	p.t.Helper()
	lists, err := running.Client.Discovery().ServerPreferredResources()
	if err != nil {
		p.t.Fatal(err)
	}
	var all []schema.GroupVersionResource
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, r := range list.APIResources {
			read := version.Group == "constraints.gatekeeper.sh" || slices.ContainsFunc(survey.Kinds, func(k survey.Kind) bool { return k.Group == version.Group && k.Resource == r.Name })
			if read && !strings.Contains(r.Name, "/") {
				all = append(all, version.WithResource(r.Name))
			}
		}
	}
	return all
}

// planDump returns the plan of a dump.
func (p planner) planDump(ctx context.Context, dump []byte, format string) string {
	p.t.Helper()
	file := filepath.Join(p.t.TempDir(), "dump.yaml")
	if err := os.WriteFile(file, dump, 0o600); err != nil {
		p.t.Fatal(err)
	}
	version, err := running.Client.Discovery().ServerVersion()
	if err != nil {
		p.t.Fatal(err)
	}
	stdout, stderr, code := p.plan(ctx, "--filename="+file, "--issuer="+cluster.Issuer, "--kubernetes-version="+version.GitVersion, "--cluster-name=shop", "--read-secrets", "--output="+format)
	if stderr != "" || code != 4 {
		p.t.Fatalf("exit code %d, %s", code, stderr)
	}
	return stdout
}

// settledDump returns a dump when the controllers have created the pods: the plans before and after a live
// plan are the same, and a Deployment of the example has its pods.
func (p planner) settledDump(ctx context.Context) (dump []byte) {
	p.t.Helper()
	err := cluster.Wait(ctx, func(ctx context.Context) error {
		dump = p.dump(ctx)
		text := p.planDump(ctx, dump, "wide")
		live, _, _ := p.live(ctx, "--read-secrets", "--output=wide")
		if again := p.planDump(ctx, p.dump(ctx), "wide"); again != text {
			return errors.New("the cluster is still changing")
		}
		if !strings.Contains(text, "deploy/app ") || live == "" {
			return errors.New("no workloads yet")
		}
		pods, err := running.Client.CoreV1().Pods("shop").List(ctx, metav1.ListOptions{LabelSelector: "app=app"})
		if err != nil || len(pods.Items) != 2 {
			return fmt.Errorf("%d pods of shop/app, want 2: %v", len(pods.Items), err)
		}
		return nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return dump
}

// compare compares each format of the live plan with that of the dump.
func (p planner) compare(ctx context.Context, t *testing.T, dump []byte) {
	for _, format := range planFormats {
		live, stderr, code := p.live(ctx, "--read-secrets", "--output="+format)
		if stderr != "" || code != 4 {
			t.Fatalf("%s: exit code %d, %s", format, code, stderr)
		}
		if want := p.planDump(ctx, dump, format); live != want {
			t.Errorf("%s: the plan of the cluster differs from that of its dump:\n%s", format, firstDifference(live, want))
		}
	}
	live, _, _ := p.live(ctx, "--read-secrets")
	for _, want := range []string{"IMDS107", "IMDS120", "IMDS133", "IMDS201", "IMDS212", "Issuer: " + cluster.Issuer, "Webhooks that add tokens: imds-oidc-proxy"} {
		if !strings.Contains(live, want) {
			t.Errorf("the plan has no %s:\n%s", want, live)
		}
	}
}

// firstDifference returns the first lines that differ.
func firstDifference(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return fmt.Sprintf("line %d:\ncluster %s\ndump    %s", i+1, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(x), len(y))
}

// documentedRole returns the ClusterRole of docs/plan.md.
func documentedRole(t *testing.T) *rbacv1.ClusterRole {
	t.Helper()
	page, err := os.ReadFile(repository + "/docs/plan.md")
	if err != nil {
		t.Fatal(err)
	}
	const head = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name: imds-migrate-plan\n"
	_, text, found := strings.Cut(string(page), head)
	if !found {
		t.Fatal("docs/plan.md has no ClusterRole imds-migrate-plan")
	}
	text, _, _ = strings.Cut(head+text, "```")
	role := new(rbacv1.ClusterRole)
	if err := yaml.Unmarshal([]byte(text), role); err != nil {
		t.Fatal(err)
	}
	return role
}

// permissions checks that the documented role suffices, and what a missing permission does.
func (p planner) permissions(ctx context.Context, t *testing.T) {
	roles := running.Client.RbacV1().ClusterRoles()
	role, err := roles.Create(ctx, documentedRole(t), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = running.Client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "planner"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "planner"}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want, _, _ := p.live(ctx)
	wait(ctx, t, "the documented role", func() error {
		stdout, stderr, code := p.live(ctx, "--as=planner")
		if stdout != want || code != 4 {
			return fmt.Errorf("exit code %d, %s%s", code, stderr, firstDifference(stdout, want))
		}
		return nil
	})
	without := func(resource, output string, code int) {
		role, err := roles.Get(ctx, role.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range role.Rules {
			role.Rules[i].Resources = slices.DeleteFunc(role.Rules[i].Resources, func(r string) bool { return r == resource })
		}
		role.Rules = slices.DeleteFunc(role.Rules, func(r rbacv1.PolicyRule) bool { return len(r.Resources)+len(r.NonResourceURLs) == 0 })
		if _, err := roles.Update(ctx, role, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		wait(ctx, t, resource, func() error {
			stdout, stderr, got := p.live(ctx, "--as=planner")
			if got != code || !strings.Contains(stdout+stderr, output) {
				return fmt.Errorf("exit code %d, want %d and %q in %s%s", got, code, output, stdout, stderr)
			}
			return nil
		})
	}
	without("secretproviderclasses", "  IMDS301 secretproviderclasses.secrets-store.csi.x-k8s.io (you may not list secretproviderclasses.secrets-store.csi.x-k8s.io)\n", 4)
	without("deployments", "  IMDS301 deployments.apps (you may not list deployments.apps)\n", 4)
	without("pods", "imds-migrate: cannot list pods: you may not list pods\n", 1)
}

// wait waits for a change of permissions, which the API server sees some milliseconds later.
func wait(ctx context.Context, t *testing.T, name string, condition func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	if err := cluster.Wait(ctx, func(context.Context) error { return condition() }); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// patches applies the changes of --write to the example, and checks that nothing is left of them: only what
// is blocked, undecided or immutable.
func (p planner) patches(ctx context.Context, t *testing.T) {
	dir := t.TempDir()
	if _, stderr, code := p.live(ctx, "--read-secrets", "--write="+filepath.Join(dir, "component")); code != 4 || stderr != "" {
		t.Fatalf("exit code %d, %s", code, stderr)
	}
	var resources bytes.Buffer
	for _, o := range example(t) {
		text, err := yaml.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&resources, "---\n%s", text)
	}
	for name, text := range map[string]string{"resources.yaml": resources.String(), "kustomization.yaml": "resources: [resources.yaml]\ncomponents: [component]\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := rendered.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	objects, err := cluster.Objects(stream)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if !slices.Contains([]string{"Pod", "StorageClass", "PersistentVolume"}, o.GetKind()) { // immutable, and not changed
			p.apply(ctx, o)
		}
	}
	stdout, stderr, code := p.live(ctx, "--read-secrets", "--output=json")
	var left plan.Plan
	if err := json.Unmarshal([]byte(stdout), &left); err != nil || code != 4 {
		t.Fatalf("exit code %d, %v, %s", code, err, stderr)
	}
	patched := 0
	for _, w := range left.Workloads {
		if w.Severity == plan.Blocked || w.Severity == plan.Choice || w.Kind == "Pod" || w.Kind == "SparkApplication" {
			continue
		}
		patched++
		for _, f := range w.Findings {
			if slices.Contains([]string{"IMDS101", "IMDS103", "IMDS104"}, f.Code) {
				t.Errorf("%s %s: %s is left", w.Namespace, w.Key(), f.Code)
			}
		}
	}
	for _, o := range left.Objects {
		if len(o.Changes) > 0 && o.Severity != plan.Blocked {
			t.Errorf("%s: its changes are left: %v", o.Key(), o.Changes)
		}
	}
	if patched < 25 || left.Summary.NewAccounts > 0 {
		t.Errorf("%d workloads, %d new accounts are left", patched, left.Summary.NewAccounts)
	}
}

// unknownVersion checks a kind that the server has in a version only that the program does not know. It
// removes the kind, which other tests would find too.
func (p planner) unknownVersion(ctx context.Context, t *testing.T) {
	kind := schema.GroupVersionKind{Group: "keda.sh", Version: "v9", Kind: "ScaledJob"}
	crd, err := running.Apply(ctx, definition(kind, "v9"), false)
	if err != nil {
		t.Fatal(err)
	}
	const line = "  IMDS302 scaledjobs.keda.sh (the cluster serves version v9, and this program knows v1alpha1)\n"
	wait(ctx, t, "v9", func() error {
		stdout, stderr, code := p.live(ctx)
		if code != 4 || !strings.Contains(stdout, line) {
			return fmt.Errorf("exit code %d, %s%s", code, stdout, stderr)
		}
		return nil
	})
	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	if err := running.Dynamic.Resource(crds).Delete(ctx, crd.GetName(), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wait(ctx, t, "the end of v9", func() error {
		if stdout, stderr, _ := p.live(ctx); strings.Contains(stdout, line) {
			return fmt.Errorf("it is there: %s%s", stdout, stderr)
		}
		return nil
	})
}
