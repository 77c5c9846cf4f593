package output

import (
	"encoding/json"
	"io"
	"strings"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/plan"
)

// writeAz writes a shell script of az and kubectl commands.
func writeAz(w io.Writer, p *plan.Plan, _ Config) error {
	l := new(lines)
	l.add("#!/bin/sh")
	l.comments("#", p, "The commands run one after the other: Azure refuses parallel writes of one identity's credentials.",
		"A second run is harmless: it writes the same credentials again.")
	l.add("set -eu")
	for _, g := range groups(p) {
		l.add("")
		l.add("# %s (client ID %s)", comment(g.String()), g.ClientID)
		identity := l.azIdentity(g)
		for _, c := range g.credentials {
			l.add("# %s", comment(strings.Join(c.Reasons, "; ")))
			if g.Kind == plan.KindApplication {
				l.add("az ad app federated-credential create --id %s --parameters %s", g.ClientID, quote(parameters(c)))
				continue
			}
			l.add(`az identity federated-credential create %s --name %s \`, identity, quote(c.Name))
			l.add("  --issuer %s --subject %s --audiences %s", quote(c.Issuer), quote(c.Subject), quote(c.Audience))
		}
	}
	l.kubectl("", p)
	return l.to(w)
}

// azIdentity returns the arguments that name an identity. If its resource ID is not known, the script looks
// it up.
func (l *lines) azIdentity(g group) string {
	if g.Kind == plan.KindApplication {
		l.add("# An app registration: remove its secret or certificate when the workloads are verified.")
		return ""
	}
	if g.ResourceID != "" {
		return "--resource-group " + quote(g.ResourceGroup) + " --identity-name " + quote(g.AzureName) + " --subscription " + quote(g.Subscription)
	}
	l.add("# Its resource ID is not known: it is looked up in the current subscription.")
	l.add(`identity=$(az identity list --query "[?clientId=='%s'].id" --output tsv)`, g.ClientID)
	l.add(`[ -n "$identity" ] || { echo "no identity of this subscription has the client ID %s: az account set" >&2; exit 1; }`, g.ClientID)
	l.add(`group=${identity#*/resource[gG]roups/} group=${group%%%%/*}`)
	return `--resource-group "$group" --identity-name "${identity##*/}"`
}

// parameters returns the JSON of a credential of an application.
func parameters(c plan.Credential) string {
	text, _ := json.Marshal(struct { // cannot fail
		Name      string   `json:"name"`
		Issuer    string   `json:"issuer"`
		Subject   string   `json:"subject"`
		Audiences []string `json:"audiences"`
	}{c.Name, c.Issuer, c.Subject, []string{c.Audience}})
	return string(text)
}

// kubectl writes the commands for service accounts, each after a mark: as commands, or as a comment in
// formats that cannot create them.
func (l *lines) kubectl(mark string, p *plan.Plan) {
	if len(p.Accounts) == 0 {
		return
	}
	l.add("")
	l.add("%s# Service accounts. Afterwards the pod templates name them and have the label %s.", mark, inject.UseLabel)
	for _, a := range p.Accounts {
		l.add("%s# %s", mark, comment(strings.Join(a.Workloads, ", ")))
		kubectl := mark + "kubectl --namespace=" + quote(a.Namespace)
		if a.New {
			l.add("%s get serviceaccount %s >/dev/null 2>&1 ||", kubectl, quote(a.Name))
			l.add("%s  kubectl --namespace=%s create serviceaccount %s", mark, quote(a.Namespace), quote(a.Name))
		}
		annotations := quote(inject.ClientIDAnnotation + "=" + string(a.ClientID))
		if a.TenantID != "" {
			annotations += " " + quote(inject.TenantIDAnnotation+"="+a.TenantID)
		}
		l.add("%s annotate --overwrite serviceaccount %s %s", kubectl, quote(a.Name), annotations)
		if len(a.PullSecrets) > 0 {
			l.add("%s patch serviceaccount %s --type=merge --patch=%s", kubectl, quote(a.Name), quote(pullSecrets(a.PullSecrets)))
		}
		for _, role := range a.Roles {
			l.add("%s# Copy its role %s from the service account default.", mark, comment(role))
		}
	}
}

// pullSecrets returns a patch of a service account.
func pullSecrets(names []string) string {
	var list []map[string]string
	for _, name := range names {
		list = append(list, map[string]string{"name": name})
	}
	text, _ := json.Marshal(map[string]any{"imagePullSecrets": list}) // cannot fail
	return string(text)
}
