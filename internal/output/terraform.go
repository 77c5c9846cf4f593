package output

import (
	"io"
	"slices"
	"strconv"
	"strings"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/plan"
)

// newestAzurerm is the provider version whose arguments are written by default.
const newestAzurerm = "5.0"

// writeTerraform writes resources of the providers azurerm, azuread and kubernetes. The provider azurerm
// locks each identity, so credentials of one state are not written in parallel.
func writeTerraform(w io.Writer, p *plan.Plan, config Config) error {
	v := parseVersion(config.Provider, newestAzurerm)
	if !v.atLeast(3, 31) {
		return &UsageError{"--provider-version " + strconv.Quote(config.Provider) + ": must be 3.31 or later, the first azurerm with azurerm_federated_identity_credential"}
	}
	l := new(lines)
	subscriptions := map[string]bool{}
	for _, g := range groups(p) {
		if g.Subscription != "" {
			subscriptions[g.Subscription] = true
		}
	}
	more := []string{"For azurerm " + versionText(v) + "."}
	for _, s := range sortedKeys(subscriptions) {
		alias := ""
		if len(subscriptions) > 1 {
			alias = ", as azurerm." + providerAlias(s)
		}
		more = append(more, "The provider azurerm needs the subscription "+s+alias+".")
	}
	l.comments("#", p, more...)
	names := symbols{}
	for _, g := range groups(p) {
		l.terraformGroup(g, v, names, len(subscriptions) > 1)
	}
	l.terraformAccounts(p, symbols{})
	return l.to(w)
}

func versionText(v version) string {
	switch {
	case v.atLeast(5, 0):
		return "5.0 or later"
	case v.atLeast(4, 65):
		return "4.65 or later"
	}
	return "3.31 to 4.64"
}

func providerAlias(subscription string) string {
	return "s_" + strings.ReplaceAll(subscription, "-", "_")
}

func (l *lines) terraformGroup(g group, v version, names symbols, several bool) {
	if g.Kind == plan.KindApplication {
		l.terraformApplication(g, names)
		return
	}
	if g.ResourceID == "" {
		l.add("")
		l.add("# %s (client ID %s) is not in this file: %s. Set --identity=<RESOURCE_ID>=%s.", comment(g.String()), g.ClientID, why(g), g.ClientID)
		return
	}
	for _, c := range g.credentials {
		l.add("")
		l.add("# %s", comment(strings.Join(c.Reasons, "; ")))
		l.add("resource \"azurerm_federated_identity_credential\" %q {", names.of(c.Name))
		var a arguments
		if several {
			a.raw("provider", "azurerm."+providerAlias(g.Subscription))
		}
		a.text("name", c.Name)
		if v.atLeast(4, 65) {
			a.text("user_assigned_identity_id", g.ResourceID)
		} else {
			a.text("resource_group_name", g.ResourceGroup)
			a.text("parent_id", g.ResourceID)
		}
		a.text("issuer", c.Issuer)
		a.text("subject", c.Subject)
		a.raw("audience", "["+hclString(c.Audience)+"]")
		l.arguments(a)
		l.add("}")
	}
}

func (l *lines) terraformApplication(g group, names symbols) {
	application := names.of(g.String())
	l.add("")
	l.add("# An app registration: remove its secret or certificate when the workloads are verified.")
	l.add("data \"azuread_application\" %q {", application)
	l.add("  client_id = %s", hclString(string(g.ClientID)))
	l.add("}")
	for _, c := range g.credentials {
		l.add("")
		l.add("# %s", comment(strings.Join(c.Reasons, "; ")))
		l.add("resource \"azuread_application_federated_identity_credential\" %q {", names.of(c.Name))
		var a arguments
		a.raw("application_id", "data.azuread_application."+application+".id")
		a.text("display_name", c.Name)
		a.text("issuer", c.Issuer)
		a.text("subject", c.Subject)
		a.raw("audiences", "["+hclString(c.Audience)+"]")
		l.arguments(a)
		l.add("}")
	}
}

// arguments are the arguments of a block, which terraform fmt aligns.
type arguments [][2]string

func (a *arguments) raw(name, value string)  { *a = append(*a, [2]string{name, value}) }
func (a *arguments) text(name, value string) { a.raw(name, hclString(value)) }

func (l *lines) arguments(a arguments) {
	width := 0
	for _, x := range a {
		width = max(width, len(x[0]))
	}
	for _, x := range a {
		l.add("  %-*s = %s", width, x[0], x[1])
	}
}

// hclString returns a string literal without templates.
func hclString(text string) string {
	quoted := strconv.Quote(text)
	return strings.NewReplacer("${", "$${", "%{", "%%{").Replace(quoted)
}

// terraformAccounts writes service accounts of the provider kubernetes. Those that exist get a resource
// that owns the annotations only.
func (l *lines) terraformAccounts(p *plan.Plan, names symbols) {
	for _, a := range p.Accounts {
		l.add("")
		l.add("# %s", comment(strings.Join(a.Workloads, ", ")))
		annotations := [][2]string{{inject.ClientIDAnnotation, string(a.ClientID)}}
		if a.TenantID != "" {
			annotations = append(annotations, [2]string{inject.TenantIDAnnotation, a.TenantID})
		}
		if !a.New {
			l.add("resource \"kubernetes_annotations\" %q {", names.of(a.Namespace+"_"+a.Name))
			l.add("  api_version = \"v1\"")
			l.add("  kind        = \"ServiceAccount\"")
			l.add("  metadata {")
			l.add("    name      = %s", hclString(a.Name))
			l.add("    namespace = %s", hclString(a.Namespace))
			l.add("  }")
			l.hclMap("  ", "annotations", annotations)
			l.add("}")
			continue
		}
		l.newAccount(a, names.of(a.Namespace+"_"+a.Name), annotations)
	}
}

func (l *lines) newAccount(a plan.Account, symbol string, annotations [][2]string) {
	for _, role := range a.Roles {
		l.add("# Copy its role %s from the service account default.", comment(role))
	}
	l.add("resource \"kubernetes_service_account_v1\" %q {", symbol)
	l.add("  metadata {")
	l.add("    name      = %s", hclString(a.Name))
	l.add("    namespace = %s", hclString(a.Namespace))
	l.hclMap("    ", "annotations", annotations)
	l.add("  }")
	for _, secret := range a.PullSecrets {
		l.add("  image_pull_secret {")
		l.add("    name = %s", hclString(secret))
		l.add("  }")
	}
	l.add("}")
}

func (l *lines) hclMap(indent, name string, pairs [][2]string) {
	width := slices.MaxFunc(pairs, func(a, b [2]string) int { return len(a[0]) - len(b[0]) })
	l.add("%s%s = {", indent, name)
	for _, pair := range pairs {
		l.add("%s  %-*s = %s", indent, len(width[0])+2, strconv.Quote(pair[0]), hclString(pair[1]))
	}
	l.add("%s}", indent)
}
