package plan

import "slices"

// The next steps of a workload.
const (
	StepNothing = "nothing"
	StepSidecar = "sidecar"
	StepDirect  = "direct"
	StepChange  = "change"
	StepChoose  = "choose"
	StepBlocked = "blocked"
	StepRemove  = "remove"
)

// Next is what to do next with a workload.
type Next struct {
	Step string `json:"step"`
	// Redirect is the value of the annotation imds-oidc-proxy/redirect, if the step is the sidecar.
	Redirect string `json:"redirect,omitempty"`
	// Brief is for a column of a table, and Text for a person who is about to do it.
	Brief string `json:"brief"`
	Text  string `json:"text"`
}

// redirects.
const (
	redirectForward = "forward"
	redirectSealed  = "sealed"
	redirectNone    = "none"
	redirectByCNI   = "cni-" // prefix: the CNI plugin installs it
)

// next returns what to do next with a workload.
func (b *builder) next(w *Workload) Next {
	switch {
	case w.Today == BySidecar:
		return Next{Step: StepRemove, Brief: "upgrade the SDKs that still ask", Text: "upgrade the SDKs that still ask, then remove the sidecar: docs/migration.md, steps 10 to 12"}
	case w.Today == ByWorkloadIdentity:
		for _, f := range w.Findings {
			if f.Code == "IMDS150" {
				return Next{Step: StepChange, Brief: "change a field", Text: f.Fix}
			}
		}
		return Next{Step: StepNothing, Brief: "-", Text: "nothing"}
	case !w.needs():
		return Next{Step: StepNothing, Brief: "-", Text: "nothing"}
	}
	if f := blocking(w.Findings); f != nil {
		return Next{Step: StepBlocked, Brief: "blocked: " + titleOf(f.Code), Text: f.Text}
	}
	if f := first(w.Findings, Choice); f != nil {
		brief := titleOf(f.Code)
		if f.Code == "IMDS107" {
			brief = f.Text
		}
		return Next{Step: StepChoose, Brief: brief, Text: f.Text}
	}
	return b.migration(w)
}

// blocking returns the finding that blocks a workload: one about itself before one about its identity.
func blocking(findings []Finding) *Finding {
	own := slices.DeleteFunc(slices.Clone(findings), func(f Finding) bool { return f.Code == "IMDS106" })
	if f := first(own, Blocked); f != nil {
		return f
	}
	return first(findings, Blocked)
}

func first(findings []Finding, s Severity) *Finding {
	i := slices.IndexFunc(findings, func(f Finding) bool { return f.Severity == s })
	if i < 0 {
		return nil
	}
	return &findings[i]
}

// migration returns how a workload that is not blocked gets workload identity.
func (b *builder) migration(w *Workload) Next {
	codes := slices.Concat(w.evidence.sources(), w.evidence.tools)
	for _, code := range codes {
		if t := tools[code]; t.stays {
			text := t.name + ": " + t.change + w.upgrade(code) + b.meanwhile(w, t)
			if code == "IMDS202" && w.match.labelled {
				text += "; if the program itself requests tokens too, add the sidecar"
			}
			return Next{Step: StepChange, Brief: "change " + t.name, Text: text}
		}
	}
	for _, code := range codes {
		if t := tools[code]; t.labelled && w.evidence.outdated[code] == "" && !w.daprIdentities() {
			return Next{Step: StepDirect, Brief: "label only: " + t.name, Text: t.name + since(t) + " uses workload identity once its pods have the label: no sidecar is needed"}
		}
	}
	redirect := b.redirect(w)
	text := "add the sidecar (redirect: " + redirect + "); or upgrade the SDK directly if it is old"
	if redirect == redirectNone {
		text = "add the sidecar without a redirect: most clients then use the protocol of App Service (docs/injection.md, Without a redirect); upgrade the others directly"
	}
	return Next{Step: StepSidecar, Redirect: redirect, Brief: "add the sidecar, redirect: " + redirect, Text: text}
}

// upgrade says that the version of a tool has no workload identity yet.
func (w *Workload) upgrade(code string) string {
	tag := w.evidence.outdated[code]
	if tag == "" {
		return ""
	}
	return "; version " + tag + " has no workload identity: upgrade it to " + tools[code].since + " or later first"
}

func since(t tool) string {
	if t.since == "" {
		return ""
	}
	return " " + t.since + " or later"
}

// meanwhile says whether the tool can use the sidecar until its configuration is changed.
func (b *builder) meanwhile(w *Workload, t tool) string {
	if t.sidecar == sidecarYes {
		return " (until then: the sidecar, redirect: " + b.redirect(w) + ")"
	}
	return ""
}

// redirect returns the mode of the redirect. Sealed is for clusters in which aad-pod-identity refuses
// instance metadata already. Where NET_ADMIN is refused, the CNI plugin installs the redirect if the
// cluster has it.
func (b *builder) redirect(w *Workload) string {
	mode := redirectForward
	if w.Today == ByPodIdentity && b.pods.BlocksMetadata && !w.evidence.instance {
		mode = redirectSealed
	}
	switch refused := slices.ContainsFunc(w.Findings, refusesPrivilege); {
	case refused && b.plan.Cluster.CNIPlugin:
		return redirectByCNI + mode
	case refused:
		return redirectNone
	}
	return mode
}

// refusesPrivilege reports whether a finding is about the init container's capability NET_ADMIN.
func refusesPrivilege(f Finding) bool {
	return slices.Contains([]string{"IMDS130", "IMDS131", "IMDS155"}, f.Code)
}
