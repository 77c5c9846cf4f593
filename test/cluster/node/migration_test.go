package node

import (
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

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"imds-oidc-proxy/test/cluster"
	"imds-oidc-proxy/test/kit/entra"
)

const (
	// oldSDK and newSDK are images with the program /client: with azidentity 1.0, which asks IMDS, and with the
	// newest version, which uses workload identity.
	oldSDK, newSDK = "sdk-old", "sdk-new"

	// migrationTimeout limits the test, in which three workloads restart three times.
	migrationTimeout = 4 * time.Minute
)

// migrated are the workloads of the test, with the client ID of the identity of each.
var migrated = []struct{ kind, name, clientID string }{
	{"Deployment", "web", "aaaaaaaa-0001-4000-8000-000000000001"},
	{"StatefulSet", "stock", "aaaaaaaa-0002-4000-8000-000000000002"},
	{"DaemonSet", "agent", "aaaaaaaa-0003-4000-8000-000000000003"},
}

// TestMigration leads three workloads from aad-pod-identity to the sidecar, to an SDK with workload identity, and to
// no sidecar, by the commands of imds-migrate and by what they print. After each step, all three get a token of their
// own identity, and nobody gets one of the node's.
func TestMigration(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), migrationTimeout)
	t.Cleanup(cancel)
	since := len(running.Decoy.Requests())
	t.Cleanup(func() { checkNoNodeTokens(t, since) })
	m := &journey{t: t, ctx: ctx, dir: t.TempDir(), began: time.Now()}
	m.install()

	m.say("pods get tokens from aad-pod-identity")
	m.tokens(func(name, id, token string) error {
		if want := nmiToken(id); token != want {
			return fmt.Errorf("got %.40q, want %q", token, want)
		}
		return nil
	})
	m.toSidecar()
	m.say("the same SDK gets tokens from the sidecar")
	m.nmi.expectSilence()
	m.tokens(m.entraToken)
	m.mustKeepSidecars()

	m.upgrade()
	m.say("the new SDK gets tokens by workload identity")
	m.tokens(m.entraToken)
	m.retire()
	m.say("it does so without the sidecar")
	m.tokens(m.entraToken)
	m.finished()
}

// journey is the state of the test.
type journey struct {
	t         *testing.T
	ctx       context.Context
	dir       string
	namespace string
	nmi       *podIdentity
	began     time.Time
}

func (m *journey) say(format string, args ...any) {
	m.t.Helper()
	m.t.Logf("%5.1fs %s", time.Since(m.began).Seconds(), fmt.Sprintf(format, args...))
}

// run runs a shell script as a person would, who has kubectl with the plugin, imds-migrate and az.
func (m *journey) run(script string) (output string, code int) {
	m.t.Helper()
	m.say("$ %s", script)
	cmd := exec.CommandContext(m.ctx, "sh", "-eu", "-c", script)
	cmd.Dir = m.dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(m.dir, "bin")+":"+os.Getenv("PATH"), "HOME="+m.dir, "KUBECONFIG="+filepath.Join(m.dir, "kubeconfig"), "NAMESPACE="+m.namespace)
	out, err := cmd.CombinedOutput()
	if exit, exited := errors.AsType[*exec.ExitError](err); exited {
		return string(out), exit.ExitCode()
	} else if err != nil {
		m.t.Fatal(err)
	}
	return string(out), 0
}

// must runs a script that must succeed.
func (m *journey) must(script string) string {
	m.t.Helper()
	output, code := m.run(script)
	if code != 0 {
		m.t.Fatalf("exit code %d:\n%s", code, output)
	}
	return output
}

// write writes a file of the person's directory.
func (m *journey) write(name, text string, mode os.FileMode) {
	m.t.Helper()
	file := filepath.Join(m.dir, name)
	err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), mode))
	if err != nil {
		m.t.Fatal(err)
	}
}

// install starts the workloads, and aad-pod-identity.
func (m *journey) install() {
	namespace, err := running.NewNamespace(m.ctx, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	m.namespace = namespace
	for name, target := range map[string]string{"kubectl": cluster.Kubectl(), "imds-migrate": os.Getenv(migrateVar), "kubectl-imds_migrate": os.Getenv(migrateVar)} {
		if err := errors.Join(os.MkdirAll(filepath.Join(m.dir, "bin"), 0o755), os.Symlink(target, filepath.Join(m.dir, "bin", name))); err != nil {
			m.t.Fatal(err)
		}
	}
	m.write("bin/az", "#!/bin/sh\nprintf '%s\\t' \"$@\" >> az.calls\necho >> az.calls\n", 0o755)
	writeKubeconfig(m.t, filepath.Join(m.dir, "kubeconfig"))
	m.write("definitions.yaml", podIdentityDefinitions(), 0o644)
	m.write("pod-identity.yaml", podIdentityManifests(namespace), 0o644)
	m.write("manifests.yaml", m.manifests(), 0o644)
	m.write("kustomization.yaml", "resources: [manifests.yaml]\ncomponents: [changes]\n", 0o644)
	m.t.Cleanup(func() {
		m.ctx = context.Background()
		m.run("kubectl delete --ignore-not-found --wait=false --filename=manifests.yaml --filename=pod-identity.yaml --filename=definitions.yaml")
	})
	m.must("kubectl apply --filename=definitions.yaml && kubectl wait --for=condition=Established --filename=definitions.yaml && kubectl apply --filename=pod-identity.yaml")
	running.Refresh()
	m.nmi = startPodIdentity(m.ctx, m.t, namespace)
	m.must("kubectl apply --filename=manifests.yaml")
	m.rollout()
	m.must("kubectl --namespace=" + podIdentityNamespace + " rollout status daemonset/nmi --timeout=1m")
}

// manifests are the workloads as their team has written them.
func (m *journey) manifests() string {
	authorities := strings.ReplaceAll(string(running.Entra.CAPEM()), "\n", "\n    ")
	text := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: authorities, namespace: " + m.namespace + "}\ndata:\n  ca.crt: |\n    " + strings.TrimSpace(authorities) + "\n"
	for _, w := range migrated {
		text += strings.NewReplacer("KIND", w.kind, "NAMESPACE", m.namespace, "NAME", w.name, "IMAGE", "localhost/"+oldSDK+":test").Replace(`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: NAME, namespace: NAMESPACE}
---
apiVersion: apps/v1
kind: KIND
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: NAME}}
  template:
    metadata: {labels: {app: NAME, aadpodidbinding: NAME}}
    spec:
      serviceAccountName: NAME
      terminationGracePeriodSeconds: 2
      securityContext: {runAsUser: 1000, runAsGroup: 1000}
      containers:
      - name: app
        image: IMAGE
        command: [/pause]
        env: [{name: SSL_CERT_FILE, value: /authorities/ca.crt}] # those of the stand-in for Entra
        volumeMounts: [{name: authorities, mountPath: /authorities}]
      volumes: [{name: authorities, configMap: {name: authorities}}]
`)
	}
	return text
}

// rollout waits until all pods are those of the newest templates.
func (m *journey) rollout() {
	m.t.Helper()
	for _, w := range migrated {
		m.must("kubectl --namespace=" + m.namespace + " rollout status " + strings.ToLower(w.kind) + "/" + w.name + " --timeout=90s")
	}
}

// tokens runs the client in a pod of each workload, and checks its token.
func (m *journey) tokens(check func(name, clientID, token string) error) {
	m.t.Helper()
	for _, w := range migrated {
		pod := podOf(m.ctx, m.t, m.namespace, "app="+w.name, func(p *corev1.Pod) error {
			if p.DeletionTimestamp != nil {
				return errors.New("the pod is being deleted")
			}
			return cluster.Running(p)
		})
		output, err := running.Exec(m.ctx, m.namespace, pod.Name, "app", "/client")
		if err != nil {
			m.t.Fatalf("%s: %v", w.name, err)
		}
		var answer struct{ Token string }
		if err := json.Unmarshal([]byte(output), &answer); err != nil {
			m.t.Fatalf("%s: %q: %v", w.name, output, err)
		}
		if err := check(w.name, w.clientID, answer.Token); err != nil {
			m.t.Fatalf("%s: %v", w.name, err)
		}
	}
}

// entraToken checks that a token was issued to an identity for the service account of its workload.
func (m *journey) entraToken(name, clientID, token string) error {
	issued, err := running.Entra.VerifyAccessToken(token)
	if err != nil {
		return fmt.Errorf("%.40q is no token of Entra: %w", token, err)
	}
	if issued.ClientID != clientID {
		return fmt.Errorf("the token is for %s, want %s", issued.ClientID, clientID)
	}
	for _, e := range running.Entra.Exchanges() {
		if e.TokenID == issued.ID && e.Subject != "system:serviceaccount:"+m.namespace+":"+name {
			return fmt.Errorf("the token was issued for %s", e.Subject)
		}
	}
	return nil
}

// toSidecar does what imds-migrate plan says.
func (m *journey) toSidecar() {
	output, code := m.run("imds-migrate plan --namespace=$NAMESPACE")
	if code != 3 || strings.Count(output, "add the sidecar, redirect: forward") != 3 || strings.Count(output, "  pod identity  ") != 3 {
		m.t.Fatalf("exit code %d:\n%s", code, output)
	}
	m.run("imds-migrate plan --namespace=$NAMESPACE --output=az > credentials.sh")
	m.must("sh credentials.sh")
	m.trustCreated()
	m.must("imds-migrate plan --namespace=$NAMESPACE --write=changes --exit-zero > /dev/null")
	m.must("kubectl apply --kustomize=.")
	m.rollout()
	if output := m.must("imds-migrate verify --namespace=$NAMESPACE"); strings.Count(output, "the sidecar is ready, the redirect was installed and proven, proxy check succeeds") != 3 {
		m.t.Errorf("verify:\n%s", output)
	}
}

// trustCreated gives the fake Entra the federated credentials that the script has created with az.
func (m *journey) trustCreated() {
	calls, err := os.ReadFile(filepath.Join(m.dir, "az.calls"))
	if err != nil {
		m.t.Fatal(err)
	}
	created := 0
	for line := range strings.Lines(string(calls)) {
		words := strings.Split(strings.TrimSuffix(line, "\t\n"), "\t")
		value := func(flag string) string { return words[slices.Index(words, flag)+1] }
		for _, w := range migrated {
			if strings.Join(words[:3], " ") == "identity federated-credential create" && value("--identity-name") == w.name+"-identity" {
				running.Entra.AddApplication(entra.Application{ClientID: w.clientID, Credentials: []entra.FederatedCredential{{Issuer: value("--issuer"), Subject: value("--subject")}}})
				created++
			}
		}
	}
	if created != len(migrated) {
		m.t.Fatalf("the script has created %d federated credentials:\n%s", created, calls)
	}
}

// mustKeepSidecars checks that nothing is removed while the old SDK asks the sidecars.
func (m *journey) mustKeepSidecars() {
	if output, code := m.run("imds-migrate report --namespace=$NAMESPACE --output=json > report.json"); code != 3 {
		m.t.Fatalf("report: exit code %d, %s", code, output)
	}
	output, code := m.run("imds-migrate retire --report=report.json")
	if code != 3 || strings.Contains(output, "remove the sidecar of "+m.namespace) || strings.Count(output, "report: needed: ") != 3 {
		m.t.Fatalf("retire: exit code %d:\n%s", code, output)
	}
}

// upgrade deploys the applications with the new SDK.
func (m *journey) upgrade() {
	for _, w := range migrated {
		m.must("kubectl --namespace=$NAMESPACE set image " + strings.ToLower(w.kind) + "/" + w.name + " app=localhost/" + newSDK + ":test")
	}
	m.rollout()
}

// retire runs the script of imds-migrate retire when nobody asks the sidecars any more. It stops while the log of NMI
// has tokens of the last hour, and continues where it has stopped.
func (m *journey) retire() {
	err := cluster.Wait(m.ctx, func(context.Context) error { // the period has to pass
		if output, code := m.run("kubectl imds-migrate report --namespace=$NAMESPACE --period=2s --output=json > report.json"); code != 0 {
			return fmt.Errorf("report: exit code %d, %s", code, output)
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	if output, code := m.run("kubectl imds-migrate retire --report=report.json --output=sh > retire.sh"); code != 3 {
		m.t.Fatalf("retire: exit code %d, %s", code, output)
	}
	m.checkComponent()
	script, err := os.ReadFile(filepath.Join(m.dir, "retire.sh"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.say("retire.sh:\n%s", script)
	output, code := m.run("sh retire.sh")
	m.say("\n%s", output)
	if code != 1 || !strings.Contains(output, "stopped: step 4: aad-pod-identity has given a token in the last hour: its log names the pod, or its log cannot be read\n") {
		m.t.Fatalf("exit code %d: the log of NMI has a token", code)
	}
	m.must("kubectl get azureidentitybindings --namespace=$NAMESPACE " + migrated[0].name + "-binding")
	// In place of an hour, its log begins again.
	m.must("kubectl --namespace=" + podIdentityNamespace + " delete pod --selector=app=nmi")
	podOf(m.ctx, m.t, podIdentityNamespace, "app=nmi", cluster.Running)
	m.say("\n%s", m.must("sh retire.sh"))
	// Without its daemon, aad-pod-identity does not answer requests.
	running.Decoy.InterceptTokens(nil)
}

// checkComponent checks that the same changes of manifests, as a kustomize component, remove what plan has added, and
// the label of aad-pod-identity.
func (m *journey) checkComponent() {
	m.write("after/manifests.yaml", m.manifests(), 0o644)
	m.write("after/kustomization.yaml", "resources: [manifests.yaml]\ncomponents: [../changes, ../removals]\n", 0o644)
	m.write("removals/kustomization.yaml", "", 0o644)
	m.run("kubectl imds-migrate retire --report=report.json --output=patch > removals/kustomization.yaml")
	manifests := m.must("kubectl kustomize after")
	for text, want := range map[string]int{"aadpodidbinding": 0, "inject-proxy-sidecar": 0, "azure.workload.identity/use": 3} {
		if got := strings.Count(manifests, text); got != want {
			m.t.Errorf("the manifests have %d times %s, want %d:\n%s", got, text, want, manifests)
		}
	}
}

// finished checks what is left in the cluster.
func (m *journey) finished() {
	for _, w := range migrated {
		pod := podOf(m.ctx, m.t, m.namespace, "app="+w.name, cluster.Running)
		names := slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers)
		if _, labelled := pod.Labels["aadpodidbinding"]; labelled || len(names) != 1 {
			m.t.Errorf("%s has labels %v and %d containers", w.name, pod.Labels, len(names))
		}
	}
	definitions := m.must("kubectl get crd --output=name")
	if strings.Contains(definitions, "aadpodidentity") {
		m.t.Errorf("definitions are left: %s", definitions)
	}
	if daemons, err := running.Client.AppsV1().DaemonSets(podIdentityNamespace).List(m.ctx, metav1.ListOptions{}); err != nil || len(daemons.Items) > 0 {
		m.t.Errorf("daemons of aad-pod-identity: %v, %v", daemons, err)
	}
	if output, code := m.run("imds-migrate retire --namespace=$NAMESPACE"); code != 0 || !strings.Contains(output, "Nothing can be removed now.") {
		m.t.Errorf("a second time: exit code %d, %s", code, output)
	}
	if output, code := m.run("imds-migrate plan --namespace=$NAMESPACE"); code != 0 || strings.Count(output, "  workload identity  ") != 3 {
		m.t.Errorf("plan at the end: exit code %d, %s", code, output)
	}
}
