package output

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/plan"
)

// bicepVersion is the API version of identities and their credentials.
const bicepVersion = "2023-01-31"

// writeBicep writes a template for one resource group: a Bicep file cannot deploy a credential below an
// identity of another one.
func writeBicep(w io.Writer, p *plan.Plan, config Config) error {
	all := groups(p)
	chosen, err := inGroup(all, config.ResourceGroup)
	if err != nil {
		return err
	}
	l := new(lines)
	target := ""
	if len(chosen) > 0 {
		target = "az deployment group create --subscription " + chosen[0].Subscription + " --resource-group " + chosen[0].ResourceGroup + " --template-file FILE"
	}
	l.comments("//", p, nonEmpty("Deploy it with: "+target)...)
	l.add("targetScope = 'resourceGroup'")
	names := symbols{}
	for _, g := range chosen {
		l.bicepIdentity(g, names)
	}
	for _, g := range all {
		if g.Kind == plan.KindApplication || g.ResourceID == "" {
			l.add("")
			l.add("// %s is not in this file: %s. Use the commands of imds-migrate plan --output=az.", comment(g.String()), why(g))
		}
	}
	l.kubectl("// ", p)
	return l.to(w)
}

// why says why an identity is not in a file.
func why(g group) string {
	if g.Kind == plan.KindApplication {
		return "it is an app registration"
	}
	return "its resource ID is not known"
}

// inGroup returns the identities of the resource group. Without a name, all must be in one.
func inGroup(all []group, name string) ([]group, error) {
	found := map[string][]group{}
	for _, g := range all {
		if g.ResourceID != "" {
			key := g.Subscription + "/" + g.ResourceGroup
			found[strings.ToLower(key)] = append(found[strings.ToLower(key)], g)
		}
	}
	keys := sortedKeys(found)
	if name == "" {
		if len(keys) > 1 {
			return nil, &UsageError{fmt.Sprintf("--resource-group is required: a Bicep file deploys into one resource group, and the identities are in %s", strings.Join(keys, ", "))}
		}
		return found[slices.Concat(keys, []string{""})[0]], nil
	}
	var chosen []group
	matches := 0
	for _, key := range keys {
		if _, group, _ := strings.Cut(key, "/"); azure.EqualFoldASCII(group, name) || azure.EqualFoldASCII(key, name) {
			chosen, matches = found[key], matches+1
		}
	}
	if matches != 1 {
		return nil, &UsageError{fmt.Sprintf("--resource-group %q: must be one of %s", name, strings.Join(keys, ", "))}
	}
	return chosen, nil
}

// UsageError is an error of the command line that only the plan shows.
type UsageError struct{ text string }

func (e *UsageError) Error() string { return e.text }

// bicepIdentity writes one identity and its credentials, each of which depends on the one before.
func (l *lines) bicepIdentity(g group, names symbols) {
	identity := names.of(g.AzureName)
	l.add("")
	l.add("resource %s 'Microsoft.ManagedIdentity/userAssignedIdentities@%s' existing = {", identity, bicepVersion)
	l.add("  name: %s", bicepString(g.AzureName))
	l.add("}")
	previous := ""
	for _, c := range g.credentials {
		name := names.of(c.Name)
		l.add("")
		l.add("// %s", comment(strings.Join(c.Reasons, "; ")))
		l.add("resource %s 'Microsoft.ManagedIdentity/userAssignedIdentities/federatedIdentityCredentials@%s' = {", name, bicepVersion)
		l.add("  parent: %s", identity)
		l.add("  name: %s", bicepString(c.Name))
		l.add("  properties: {")
		l.add("    issuer: %s", bicepString(c.Issuer))
		l.add("    subject: %s", bicepString(c.Subject))
		l.add("    audiences: [")
		l.add("      %s", bicepString(c.Audience))
		l.add("    ]")
		l.add("  }")
		if previous != "" { // Azure refuses parallel writes
			l.add("  dependsOn: [")
			l.add("    %s", previous)
			l.add("  ]")
		}
		l.add("}")
		previous = name
	}
}

// bicepString returns a string literal.
func bicepString(text string) string {
	var literal strings.Builder
	for _, r := range strings.NewReplacer(`\`, `\\`, "'", `\'`, "${", `\${`).Replace(text) {
		if unicode.IsPrint(r) {
			literal.WriteRune(r)
		} else {
			fmt.Fprintf(&literal, `\u{%x}`, r)
		}
	}
	return "'" + literal.String() + "'"
}
