package plan_test

import (
	"fmt"
	"math/rand"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/plan"
)

// validName is the rule of Azure for the name of a federated credential.
var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-_]{2,119}$`)

// inNamespace is a workload with an account and identity app-identity in another namespace.
func inNamespace(namespace, account string) []string { return named("app", namespace, account) }

func named(name, namespace, account string) []string {
	a := app{name: name, account: account, labels: []string{"aadpodidbinding: app"}}
	return []string{
		strings.Replace(a.String(), "namespace: ns", fmt.Sprintf("namespace: %q", namespace), 1),
		fmt.Sprintf("{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: %q, name: %q}}", namespace, account),
	}
}

// TestNames checks the names of federated credentials: valid, different for different accounts and
// clusters, and equal in each run.
func TestNames(t *testing.T) {
	long := strings.Repeat("n", 63)
	var objects []string
	for i, c := range [][2]string{{"a", "b-c"}, {"a-b", "c"}, {"x", "a.b"}, {"x", "a-b"}, {long, strings.Repeat("a", 253)}, {long, strings.Repeat("a", 252) + "b"}, {"0", "a"}} {
		objects = append(objects, named(fmt.Sprint("app", i), c[0], c[1])...)
	}
	objects = docs(objects, identity("app-identity", 1), binding("app-identity", "app"), nmi())
	seen := map[string]string{}
	for _, o := range []plan.Options{{}, {ClusterName: "shop"}, {ClusterName: "..sh op/ü"}, {Issuer: "https://oidc.example.test/other/"}} {
		p := planOf(t, o, objects...)
		if len(p.Credentials) != 7 {
			t.Fatalf("%d credentials, want 7", len(p.Credentials))
		}
		for _, c := range p.Credentials {
			if !validName.MatchString(c.Name) {
				t.Errorf("%q is not valid", c.Name)
			}
			if other := seen[c.Name]; other != "" {
				t.Errorf("%q is the name of %s and of %s", c.Name, other, c.Subject)
			}
			seen[c.Name] = c.Subject
		}
	}
	p := planOf(t, plan.Options{ClusterName: "shop"}, labelled(app{})...)
	if got := p.Credentials[0]; got.Name != "shop-ns-sa-b9ad7a22" || got.Subject != "system:serviceaccount:ns:sa" || got.Issuer != issuer || got.Audience != azure.Audience {
		t.Errorf("got %+v", got)
	}
}

// TestTwenty checks the limit of an identity, with and without those that exist.
func TestTwenty(t *testing.T) {
	objects := docs(identity("app-identity", 1), binding("app-identity", "app"), nmi())
	for i := range 20 {
		objects = append(objects, inNamespace(fmt.Sprintf("ns%d", i), "sa")...)
	}
	existing := func(subjects ...string) plan.Options {
		o := plan.Options{Azure: true, Existing: map[string][]plan.Existing{client(1): {}}}
		for i, s := range subjects {
			o.Existing[client(1)] = append(o.Existing[client(1)], plan.Existing{Name: fmt.Sprint(i), Issuer: issuer, Subject: s})
		}
		return o
	}
	for name, c := range map[string]struct {
		options plan.Options
		more    []string
		text    string
		blocked bool
		created int
	}{
		"20, not counted":                 {plan.Options{}, nil, "app-identity: 20 of at most 20, by this plan alone", false, 20},
		"21, not counted":                 {plan.Options{}, inNamespace("more", "sa"), "app-identity: 21 of at most 20, by this plan alone", true, 21},
		"20 and one of another cluster":   {existing("system:serviceaccount:other:sa"), nil, "app-identity will have 21 of 20 federated credentials", true, 20},
		"20, one of which exists":         {existing("system:serviceaccount:ns3:sa"), nil, "app-identity will have 20 of 20 federated credentials", false, 19},
		"none exists":                     {existing(), nil, "app-identity will have 20 of 20 federated credentials", false, 20},
		"21, and Azure could not be read": {plan.Options{Azure: true, Uncounted: map[string]string{"x": "y"}}, inNamespace("more", "sa"), "app-identity: 21 of at most 20, by this plan alone (its credentials in Azure could not be counted)", true, 21},
	} {
		p := planOf(t, c.options, docs(objects, c.more)...)
		w := workload(t, p, "ns0 deploy/app")
		if got := p.Identities[0].Count(p.Summary.CredentialsCounted); got != c.text || (w.Next.Step == "blocked") != c.blocked || len(p.Credentials) != c.created || strings.Contains(codes(w.Findings), "IMDS106") != c.blocked {
			t.Errorf("%s: %q, next %+v, %d created, findings %v", name, got, w.Next, len(p.Credentials), w.Findings)
		}
	}
}

// TestExisting checks that a credential counts under any name, and only with exactly this issuer and subject.
func TestExisting(t *testing.T) {
	objects := docs(annotated("sa", 1), app{account: "sa", labels: []string{"aadpodidbinding: app", `azure.workload.identity/use: "true"`}}, identity("app-identity", 1), binding("app-identity", "app"), nmi())
	for name, c := range map[string]struct {
		existing plan.Existing
		created  int
	}{
		"it exists":              {plan.Existing{Name: "old", Issuer: issuer, Subject: "system:serviceaccount:ns:sa"}, 0},
		"another issuer":         {plan.Existing{Issuer: strings.TrimSuffix(issuer, "/"), Subject: "system:serviceaccount:ns:sa"}, 1},
		"another case":           {plan.Existing{Issuer: issuer, Subject: "system:serviceaccount:ns:SA"}, 1},
		"of an identity binding": {plan.Existing{Name: "aks-identity-binding", Issuer: "https://x", Subject: "y"}, 1},
	} {
		p := planOf(t, plan.Options{Azure: true, Existing: map[string][]plan.Existing{client(1): {c.existing}}}, objects...)
		w := workload(t, p, "ns deploy/app") // migrated: with Azure, its credential is checked
		missing := slices.ContainsFunc(w.Findings, func(f plan.Finding) bool { return f.Code == "IMDS105" })
		if w.Today != wi || len(p.Credentials) != c.created || missing != (c.created > 0) {
			t.Errorf("%s: %s, %d created, %v", name, w.Today, len(p.Credentials), w.Findings)
		}
	}
	for name, o := range map[string]plan.Options{"without Azure": {}, "not counted": {Azure: true, Existing: map[string][]plan.Existing{}}} {
		if p := planOf(t, o, objects...); len(p.Credentials) != 0 {
			t.Errorf("%s: the credential of a migrated workload is believed, got %v", name, p.Credentials)
		}
	}
}

// TestAccounts checks the accounts that are created, annotated and shared.
func TestAccounts(t *testing.T) {
	role := "{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {namespace: ns, name: r}, roleRef: {kind: Role, name: read}, subjects: [{kind: ServiceAccount, name: default}]}"
	other := strings.Replace(strings.Replace(role, "namespace: ns", "namespace: other", 1), "name: read", "name: foreign", 1)
	everywhere := "{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: c}, roleRef: {kind: ClusterRole, name: view}, subjects: [{kind: ServiceAccount, name: default, namespace: ns}]}"
	pull := "{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: ns, name: default}, imagePullSecrets: [{name: login}]}"
	base := docs(identity("app-identity", 1), identity("web-identity", 2), binding("app-identity", "app"), binding("web-identity", "web"), nmi())
	ofDefault := app{labels: []string{"aadpodidbinding: app"}}
	for name, c := range map[string]struct {
		objects []string
		want    string
		codes   string
	}{
		"default":             {docs(base, pull, role, other, everywhere, ofDefault), "ns/app new [login] [ClusterRole/view Role/read] deploy/app", "IMDS101"},
		"default, name taken": {docs(base, pull, annotated("app", 5), ofDefault), "ns/app-azure new [login] [] deploy/app", "IMDS101"},
		"default, name taken for the same identity": {docs(base, pull, annotated("app", 1), ofDefault), "ns/app [login] [] deploy/app", "IMDS101"},
		"missing":       {docs(base, pull, app{account: "gone", labels: []string{"aadpodidbinding: app"}}), "ns/gone new [] [] deploy/app", "IMDS102"},
		"not annotated": {docs(base, account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}), "ns/sa [] [] deploy/app", ""},
		"annotated":     {docs(base, annotated("sa", 1), app{account: "sa", labels: []string{"aadpodidbinding: app"}}), "", ""},
		"shared, one identity": {docs(base, account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, app{name: "b", account: "sa", labels: []string{"aadpodidbinding: app"}}),
			"ns/sa [] [] deploy/app deploy/b", ""},
		"shared, two identities": {docs(base, account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}}, app{name: "b", account: "sa", labels: []string{"aadpodidbinding: web"}}), "", "IMDS109"},
		"no accounts were read":  {docs(base, app{account: "sa", labels: []string{"aadpodidbinding: app"}}), "ns/sa [] [] deploy/app", ""},
	} {
		p := planOf(t, plan.Options{}, c.objects...)
		got := ""
		for _, a := range p.Accounts {
			isNew := ""
			if a.New {
				isNew = " new"
			}
			got += fmt.Sprintf("%s/%s%s %v %v %s", a.Namespace, a.Name, isNew, a.PullSecrets, a.Roles, strings.Join(a.Workloads, " "))
		}
		if w := workload(t, p, "ns deploy/app"); got != c.want || codes(w.Findings) != c.codes {
			t.Errorf("%s: got %q, %s; want %q, %s", name, got, codes(w.Findings), c.want, c.codes)
		}
	}
	p := planOf(t, plan.Options{TenantID: "tenant.example.test"}, docs(base, account("sa"), app{account: "sa", labels: []string{"aadpodidbinding: app"}})...)
	if p.Accounts[0].TenantID != "tenant.example.test" {
		t.Errorf("got %+v", p.Accounts)
	}
}

// TestExitCode checks the order of the exit codes.
func TestExitCode(t *testing.T) {
	clean := docs(namespace("ns"), account("sa"), app{kind: "Pod", account: "sa"})
	for name, c := range map[string]struct {
		objects []string
		want    int
	}{
		"nothing to do":        {clean, plan.ExitNothing},
		"a kind was not read":  {docs(clean, "{apiVersion: keda.sh/v9, kind: ScaledJob, metadata: {name: x}}"), plan.ExitNotRead},
		"a part is missing":    {docs(app{account: "sa"}), plan.ExitNotRead},
		"work":                 {labelled(app{}), plan.ExitWork},
		"work, and not read":   {docs(labelled(app{}), "{apiVersion: keda.sh/v9, kind: ScaledJob, metadata: {name: x}}"), plan.ExitWork},
		"blocked":              {labelled(app{pod: "hostNetwork: true"}), plan.ExitBlocked},
		"a choice":             {docs(labelled(app{}), identity("b", 2), binding("b", "app")), plan.ExitBlocked},
		"an object of a tool":  {docs(clean, object(keda, "TriggerAuthentication", "c", "spec: {podIdentity: {provider: azure, identityId: "+client(1)+"}}")), plan.ExitWork},
		"an issuer not public": {clean, plan.ExitBlocked},
		"what cannot be told":  {docs(namespace("ns"), account("sa"), app{account: "sa"}, app{kind: "Pod", name: "p", account: "sa"}), plan.ExitNothing},
	} {
		o := plan.Options{}
		if name == "an issuer not public" {
			o.Issuer = "https://kubernetes.default.svc"
		}
		if p := planOf(t, o, c.objects...); p.ExitCode() != c.want {
			t.Errorf("%s: got %d, want %d; %+v", name, p.ExitCode(), c.want, p.Summary)
		}
	}
}

// TestSelector checks --selector and --namespace.
func TestSelector(t *testing.T) {
	selector, err := labels.Parse("tier=front")
	if err != nil {
		t.Fatal(err)
	}
	objects := docs(account("sa"), app{name: "a", account: "sa", own: []string{"tier: front"}}, app{name: "b", account: "sa"}, inNamespace("other", "sa"))
	if p := planOf(t, plan.Options{Selector: selector}, objects...); len(p.Workloads) != 1 || p.Workloads[0].Name != "a" {
		t.Errorf("got %v", p.Workloads)
	}
	if p := planOf(t, plan.Options{Namespace: "other"}, objects...); len(p.Workloads) != 1 || p.Workloads[0].Namespace != "other" || p.Cluster.Namespaces != 1 {
		t.Errorf("got %v", p.Workloads)
	}
}

// TestOrder checks that the order of the objects does not change the plan.
func TestOrder(t *testing.T) {
	objects := docs(labelled(app{}), identity("b", 2), binding("b", "app"), inNamespace("x", "sa"), operator("keda", "ghcr.io/kedacore/keda:1"), object(keda, "TriggerAuthentication", "c", "spec: {podIdentity: {provider: azure, identityId: "+client(1)+"}}"),
		object(keda, "TriggerAuthentication", "d", "spec: {podIdentity: {provider: azure, identityId: "+client(2)+"}}"), namespace("ns", "pod-security.kubernetes.io/enforce: baseline"))
	want := fmt.Sprintf("%+v", *planOf(t, plan.Options{}, objects...))
	random := rand.New(rand.NewSource(1))
	pointers := regexp.MustCompile(`0x[0-9a-f]+`)
	for range 20 {
		random.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
		if got := fmt.Sprintf("%+v", *planOf(t, plan.Options{}, objects...)); pointers.ReplaceAllString(got, "") != pointers.ReplaceAllString(want, "") {
			t.Fatalf("the plan depends on the order:\n%s\n%s", got, want)
		}
	}
}
