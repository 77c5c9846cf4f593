package plan

import (
	"maps"
	"slices"
	"strings"
)

// Severity says what a finding means for the migration of its workload.
type Severity string

// The severities. Blocked and Choice stop the plan of a workload, until something else was changed or
// somebody has answered a question.
const (
	Blocked Severity = "blocked"
	Choice  Severity = "choice"
	Work    Severity = "work"
	Note    Severity = "note"
)

// Code is a kind of findings. Its number never changes, because people filter by it.
type Code struct {
	Code     string
	Severity Severity
	Title    string
}

// codes is the table of all findings but those of tools. docs/plan.md has a section for each.
var codes = []Code{
	{"IMDS101", Work, "the service account is default"},
	{"IMDS102", Work, "the service account does not exist"},
	{"IMDS103", Work, "the service account does not name the identity"},
	{"IMDS104", Work, "the pod template has no label"},
	{"IMDS105", Work, "there is no federated credential"},
	{"IMDS106", Blocked, "an identity would have more than 20 federated credentials"},
	{"IMDS107", Choice, "several identities match"},
	{"IMDS108", Choice, "the identity is not known"},
	{"IMDS109", Choice, "workloads with different identities share a service account"},
	{"IMDS110", Blocked, "a system-assigned identity cannot have a federated credential"},
	{"IMDS111", Work, "the identity is an app registration"},
	{"IMDS112", Blocked, "the identity asks for tokens of several tenants"},
	{"IMDS113", Blocked, "a binding names an AzureIdentity that does not exist"},
	{"IMDS114", Work, "the label aadpodidbinding has no effect"},
	{"IMDS115", Work, "the label aadpodidbinding is left over"},
	{"IMDS116", Note, "an exception gives the pods the node's identity"},
	{"IMDS117", Note, "two AzureIdentities have the same name"},
	{"IMDS118", Work, "only the service account has the label"},
	{"IMDS119", Blocked, "an AzureIdentity is not valid"},
	{"IMDS120", Blocked, "the pods use the host's network"},
	{"IMDS121", Blocked, "the pods run on Windows"},
	{"IMDS122", Blocked, "the pods run on virtual nodes"},
	{"IMDS123", Work, "the pods run in a virtual machine (Kata)"},
	{"IMDS124", Blocked, "the pod is static"},
	{"IMDS125", Work, "the pod has no controller"},
	{"IMDS126", Work, "the pod template is in another object"},
	{"IMDS127", Blocked, "the pods cannot have the sidecar as they are"},
	{"IMDS128", Work, "this version of Kubernetes has no native sidecars"},
	{"IMDS129", Blocked, "a variable sends token requests to another endpoint"},
	{"IMDS130", Work, "the namespace enforces Pod Security level baseline"},
	{"IMDS131", Work, "the namespace enforces Pod Security level restricted"},
	{"IMDS132", Note, "the namespace warns about Pod Security"},
	{"IMDS133", Blocked, "a policy refuses the sidecar"},
	{"IMDS134", Note, "a policy reports the sidecar"},
	{"IMDS135", Work, "a LimitRange refuses the sidecar's resources"},
	{"IMDS136", Work, "a ResourceQuota wants limits that the sidecar does not have"},
	{"IMDS137", Work, "the pods have resources at pod level"},
	{"IMDS138", Blocked, "OpenShift's default security context constraints refuse the sidecar"},
	{"IMDS139", Note, "deployment safeguards of AKS change the sidecar"},
	{"IMDS140", Note, "the pods are in a service mesh"},
	{"IMDS141", Choice, "the service account names another identity than the pods use today"},
	{"IMDS142", Work, "the resource ID of an identity is not known"},
	{"IMDS143", Work, "the identity is named by its object ID or resource ID"},
	{"IMDS144", Note, "the pods use another cloud than the public one"},
	{"IMDS145", Blocked, "Entra cannot use the cluster's issuer"},
	{"IMDS146", Note, "no webhook adds the token"},
	{"IMDS147", Work, "an HTTP proxy receives the token requests"},
	{"IMDS148", Note, "the pods read instance metadata"},
	{"IMDS149", Note, "the sidecar is that of azure-workload-identity"},
	{"IMDS150", Work, "the program asks IMDS although the pods have workload identity"},
	{"IMDS151", Note, "AzureAssignedIdentities are left over"},
	{"IMDS152", Note, "the namespace belongs to Kubernetes or AKS"},
	{"IMDS153", Note, "it cannot be told whether the pods ask IMDS"},
	{"IMDS154", Note, "aad-pod-identity refuses the pods' requests"},
	{"IMDS155", Work, "a policy refuses NET_ADMIN"},
	{"IMDS156", Blocked, "the name of a namespace or service account is not valid"},

	{"IMDS301", Note, "a kind was not looked at: no permission"},
	{"IMDS302", Note, "a kind was not looked at: unknown version"},
	{"IMDS303", Note, "an object was not looked at: it cannot be decoded"},
	{"IMDS304", Note, "a kind was not looked at: the files contain none"},
	{"IMDS305", Note, "Azure was not looked at"},
	{"IMDS306", Note, "Secrets were not looked at"},
	{"IMDS307", Note, "the issuer is not known"},
	{"IMDS308", Note, "the version of Kubernetes is not known"},
	{"IMDS309", Note, "what cannot be seen in the Kubernetes API"},
}

// Codes returns all codes in order, also those of tools.
func Codes() []Code {
	all := slices.Clone(codes)
	for _, code := range slices.Sorted(maps.Keys(tools)) {
		all = append(all, Code{code, Work, tools[code].name + " is configured for a managed identity"})
	}
	slices.SortFunc(all, func(a, b Code) int { return strings.Compare(a.Code, b.Code) })
	return all
}

func severityOf(code string) Severity {
	for _, c := range codes {
		if c.Code == code {
			return c.Severity
		}
	}
	return Work // of a tool
}

func titleOf(code string) string {
	for _, c := range codes {
		if c.Code == code {
			return c.Title
		}
	}
	return code
}

// Finding is something that a person has to know or do.
type Finding struct {
	Code     string   `json:"code"`
	Severity Severity `json:"severity"`
	// Text says what is the case, and Fix what to do about it.
	Text string `json:"text"`
	Fix  string `json:"fix,omitempty"`
	// Docs is where the documentation explains the code.
	Docs string `json:"docs"`
}

func finding(code, text, fix string) Finding {
	return Finding{Code: code, Severity: severityOf(code), Text: oneLine(text), Fix: oneLine(fix), Docs: "docs/plan.md#" + strings.ToLower(code)}
}

// rank orders severities: the highest one is that of a workload.
func (s Severity) rank() int { return slices.Index([]Severity{Note, Work, Choice, Blocked}, s) }

// worst returns the highest severity of findings, or Note.
func worst(findings []Finding) Severity {
	highest := Note
	for _, f := range findings {
		if f.Severity.rank() > highest.rank() {
			highest = f.Severity
		}
	}
	return highest
}
