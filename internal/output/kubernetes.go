package output

import (
	"io"
	"strings"

	"sigs.k8s.io/yaml"

	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/plan"
)

// document writes a YAML document after a comment.
func (l *lines) document(comments []string, object map[string]any) error {
	l.add("---")
	for _, c := range comments {
		l.add("# %s", comment(c))
	}
	text, err := yaml.Marshal(object)
	l.WriteString(string(text))
	return err
}

func metadata(namespace, name string, annotations map[string]string) map[string]any {
	m := map[string]any{"name": name}
	if namespace != "" {
		m["namespace"] = namespace
	}
	if len(annotations) > 0 {
		m["annotations"] = annotations
	}
	return m
}

// objectName returns a credential's name as one of a Kubernetes object.
func objectName(name string) string {
	return strings.Trim(strings.ReplaceAll(strings.ToLower(name), "_", "-"), "-")
}

// namespaceOf returns the namespace of a credential's service account.
func namespaceOf(c plan.Credential) string {
	return strings.Split(c.Subject, ":")[2]
}

// credentialObjects writes one object for each credential, and the service accounts.
func credentialObjects(w io.Writer, p *plan.Plan, tool string, object func(group, plan.Credential) map[string]any) error {
	l := new(lines)
	l.comments("#", p, "For "+tool+".")
	for _, g := range groups(p) {
		if g.Kind == plan.KindApplication || g.ResourceID == "" {
			l.add("# %s is not in this file: %s. Use the commands of imds-migrate plan --output=az.", comment(g.String()), why(g))
			continue
		}
		for _, c := range g.credentials {
			if err := l.document(c.Reasons, object(g, c)); err != nil {
				return err
			}
		}
	}
	for _, a := range p.Accounts {
		if err := l.account(a); err != nil {
			return err
		}
	}
	return l.to(w)
}

// account writes a service account, as kubectl apply accepts it also if it exists.
func (l *lines) account(a plan.Account) error {
	annotations := map[string]string{inject.ClientIDAnnotation: string(a.ClientID)}
	if a.TenantID != "" {
		annotations[inject.TenantIDAnnotation] = a.TenantID
	}
	object := map[string]any{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(a.Namespace, a.Name, annotations)}
	var secrets []map[string]any
	for _, secret := range a.PullSecrets {
		secrets = append(secrets, map[string]any{"name": secret})
	}
	if a.New && secrets != nil {
		object["imagePullSecrets"] = secrets
	}
	comments := append([]string{}, a.Workloads...)
	for _, role := range a.Roles {
		comments = append(comments, "Copy its role "+role+" from the service account default.")
	}
	return l.document(comments, object)
}

// writeASO writes objects of Azure Service Operator. The operator writes one credential of an identity at a
// time again if Azure refuses a parallel write.
func writeASO(w io.Writer, p *plan.Plan, _ Config) error {
	return credentialObjects(w, p, "Azure Service Operator, which tries again if Azure refuses a parallel write", func(g group, c plan.Credential) map[string]any {
		return map[string]any{
			"apiVersion": "managedidentity.azure.com/v1api20230131", "kind": "FederatedIdentityCredential",
			"metadata": metadata(namespaceOf(c), objectName(c.Name), nil),
			"spec": map[string]any{
				"azureName": c.Name, "owner": map[string]any{"armId": g.ResourceID},
				"issuer": c.Issuer, "subject": c.Subject, "audiences": []string{c.Audience},
			},
		}
	})
}

// newestUpjet is the version of Crossplane's provider whose objects are written by default.
const newestUpjet = "2.0"

// writeCrossplane writes objects of Crossplane's provider for Azure: of version 2 those in namespaces, of
// earlier ones those of the cluster.
func writeCrossplane(w io.Writer, p *plan.Plan, config Config) error {
	namespaced := parseVersion(config.Provider, newestUpjet).atLeast(2, 0)
	return credentialObjects(w, p, "Crossplane, which tries again if Azure refuses a parallel write", func(g group, c plan.Credential) map[string]any {
		version, namespace := "managedidentity.azure.upbound.io/v1beta1", ""
		if namespaced {
			version, namespace = "managedidentity.azure.m.upbound.io/v1beta1", namespaceOf(c)
		}
		return map[string]any{
			"apiVersion": version, "kind": "FederatedIdentityCredential",
			"metadata": metadata(namespace, objectName(c.Name), map[string]string{"crossplane.io/external-name": c.Name}),
			"spec": map[string]any{"forProvider": map[string]any{
				"parentId": g.ResourceID, "resourceGroupName": g.ResourceGroup,
				"issuer": c.Issuer, "subject": c.Subject, "audience": []string{c.Audience},
			}},
		}
	})
}
