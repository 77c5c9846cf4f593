package survey_test

import (
	"encoding/json"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/survey"
)

// owned is a pod with an owner.
func owned(name, ownerKind, ownerName, more string) string {
	return `{"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "n", "name": "` + name + `", "labels": {"pod-template-hash": "5d4f"}, "ownerReferences": [{"apiVersion": "` +
		map[string]string{"ReplicaSet": "apps/v1", "Job": "batch/v1", "Node": "v1", "SparkApplication": "sparkoperator.k8s.io/v1beta2", "Worker": "example.test/v1"}[ownerKind] +
		`", "kind": "` + ownerKind + `", "name": "` + ownerName + `", "controller": true}]}, "spec": {"serviceAccountName": "a", "containers": [{"name": "c", "image": "i"}` + more + `]}, "status": {"phase": "Running"}}`
}

const template = `"template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}`

func workload(apiVersion, kind, name, owner, spec string) string {
	return `{"apiVersion": "` + apiVersion + `", "kind": "` + kind + `", "metadata": {"namespace": "n", "name": "` + name + `"` + owner + `}, "spec": {` + spec + `}}`
}

func ownerRef(apiVersion, kind, name string) string {
	return `, "ownerReferences": [{"apiVersion": "` + apiVersion + `", "kind": "` + kind + `", "name": "` + name + `", "controller": true}]`
}

// TestOwners checks which workload a pod belongs to.
func TestOwners(t *testing.T) {
	deployment := workload("apps/v1", "Deployment", "app", "", template)
	replicas := workload("apps/v1", "ReplicaSet", "app-5d4f", ownerRef("apps/v1", "Deployment", "app"), template)
	proxy := `, {"name": "azwi-proxy", "image": "registry.example.test/proxy:1"}`
	for name, c := range map[string]struct {
		texts   []string
		want    survey.Ref
		foreign bool
	}{
		"Deployment":                {[]string{deployment, replicas, owned("p", "ReplicaSet", "app-5d4f", proxy)}, survey.Ref{Group: "apps", Kind: "Deployment", Namespace: "n", Name: "app"}, false},
		"the pod first":             {[]string{owned("p", "ReplicaSet", "app-5d4f", proxy), replicas, deployment}, survey.Ref{Group: "apps", Kind: "Deployment", Namespace: "n", Name: "app"}, false},
		"without the ReplicaSet":    {[]string{deployment, owned("p", "ReplicaSet", "app-5d4f", proxy)}, survey.Ref{Group: "apps", Kind: "Deployment", Namespace: "n", Name: "app"}, false},
		"without both":              {[]string{owned("p", "ReplicaSet", "app-5d4f", proxy)}, survey.Ref{Group: "apps", Kind: "ReplicaSet", Namespace: "n", Name: "app-5d4f"}, true},
		"CronJob":                   {[]string{workload("batch/v1", "CronJob", "nightly", "", `"jobTemplate": {"spec": {`+template+`}}`), workload("batch/v1", "Job", "nightly-1", ownerRef("batch/v1", "CronJob", "nightly"), template), owned("p", "Job", "nightly-1", proxy)}, survey.Ref{Group: "batch", Kind: "CronJob", Namespace: "n", Name: "nightly"}, false},
		"a kind without a template": {[]string{workload("sparkoperator.k8s.io/v1beta2", "SparkApplication", "spark", "", `"driver": {"serviceAccount": "s"}`), owned("p", "SparkApplication", "spark", proxy)}, survey.Ref{Group: "sparkoperator.k8s.io", Kind: "SparkApplication", Namespace: "n", Name: "spark"}, true},
		"an unknown kind":           {[]string{owned("p", "Worker", "w", proxy)}, survey.Ref{Group: "example.test", Kind: "Worker", Namespace: "n", Name: "w"}, true},
		"no owner":                  {[]string{strings.Replace(owned("p", "Worker", "w", proxy), `"controller": true`, `"controller": false`, 1)}, survey.Ref{Kind: "Pod", Namespace: "n", Name: "p"}, false},
		"an orphaned ReplicaSet":    {[]string{workload("apps/v1", "ReplicaSet", "app-5d4f", "", template), owned("p", "ReplicaSet", "app-5d4f", proxy)}, survey.Ref{Group: "apps", Kind: "ReplicaSet", Namespace: "n", Name: "app-5d4f"}, false},
	} {
		s := survey.New(survey.Config{})
		for _, text := range c.texts {
			if err := s.ReadFile("x", strings.NewReader(text)); err != nil {
				t.Fatal(name, err)
			}
		}
		s.Finish()
		w := s.Workloads[c.want]
		if len(s.Workloads) != 1 || w == nil || w.Pods != 1 || w.Proxied != 1 || w.Foreign != c.foreign || len(w.Template.Spec.Containers) == 0 || s.Owners["n/p"] != c.want {
			t.Errorf("%s: got %v (%+v)", name, s.Workloads, w)
		}
	}
}

// TestOwner checks the workload of a pod that was not read: one that has ended, and one of a newer ReplicaSet.
func TestOwner(t *testing.T) {
	s := survey.New(survey.Config{})
	for _, text := range []string{
		workload("apps/v1", "Deployment", "app", "", template),
		workload("batch/v1", "CronJob", "nightly", "", `"schedule": "0 3 * * *", "jobTemplate": {"spec": {`+template+`}}`),
		workload("batch/v1", "Job", "nightly-1", ownerRef("batch/v1", "CronJob", "nightly"), template),
		strings.TrimSuffix(workload("batch/v1", "Job", "done", "", template), "}") + `, "status": {"conditions": [{"type": "FailureTarget", "status": "True"}, {"type": "Complete", "status": "True"}]}}`,
		strings.TrimSuffix(workload("batch/v1", "Job", "runs", "", template), "}") + `, "status": {"conditions": [{"type": "Failed", "status": "False"}]}}`,
	} {
		if err := s.ReadFile("x", strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ kind, owner, want string }{{"ReplicaSet", "app-5d4f", "app"}, {"Job", "nightly-1", "nightly"}, {"Job", "nightly-2", "nightly-2"}, {"Worker", "w", "w"}} {
		pod := new(corev1.Pod)
		if err := json.Unmarshal([]byte(owned("p", c.kind, c.owner, "")), pod); err != nil {
			t.Fatal(err)
		}
		if got := s.Owner(pod); got.Name != c.want || got.Namespace != "n" {
			t.Errorf("%s: got %v, want %s", c.owner, got, c.want)
		}
	}
	for _, w := range s.AllWorkloads() {
		if w.Ended != (w.Name == "done") || (w.Schedule == "0 3 * * *") != (w.Name == "nightly") {
			t.Errorf("%s: got ended %t, schedule %q", w.Name, w.Ended, w.Schedule)
		}
	}
}

// TestOwnerLoop: objects that own each other do not stop the survey.
func TestOwnerLoop(t *testing.T) {
	s := survey.New(survey.Config{})
	for _, text := range []string{
		workload("apps/v1", "ReplicaSet", "a", ownerRef("apps/v1", "ReplicaSet", "b"), template),
		workload("apps/v1", "ReplicaSet", "b", ownerRef("apps/v1", "ReplicaSet", "a"), template), owned("p", "ReplicaSet", "a", ""),
	} {
		if err := s.ReadFile("x", strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	if s.Finish(); len(s.Owners) != 1 {
		t.Errorf("got %v", s.Owners)
	}
}

// TestPods checks the pods that do not count, and static ones.
func TestPods(t *testing.T) {
	s := survey.New(survey.Config{})
	text := strings.Replace(owned("done", "Worker", "w", ""), "Running", "Succeeded", 1) +
		strings.Replace(owned("evicted", "Worker", "w", ""), "Running", "Failed", 1) +
		strings.Replace(owned("etcd-node", "Node", "node", ""), `"labels"`, `"annotations": {"kubernetes.io/config.mirror": "x"}, "labels"`, 1)
	if err := s.ReadFile("x", strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	s.Finish()
	w := s.Workloads[survey.Ref{Kind: "Pod", Namespace: "n", Name: "etcd-node"}]
	if len(s.Workloads) != 1 || w == nil || !w.Static || w.Foreign {
		t.Errorf("got %v (%+v)", s.Workloads, w)
	}
}

// TestManager checks that a workload that an operator creates keeps its template, and names the operator.
func TestManager(t *testing.T) {
	s := survey.New(survey.Config{})
	if err := s.ReadFile("x", strings.NewReader(workload("apps/v1", "StatefulSet", "db", ownerRef("example.test/v1", "Database", "main"), template))); err != nil {
		t.Fatal(err)
	}
	s.Finish()
	if all := s.AllWorkloads(); len(all) != 1 || all[0].Manager != "Database/main" || all[0].Template.Labels["app"] != "x" {
		t.Errorf("got %+v", all)
	}
}
