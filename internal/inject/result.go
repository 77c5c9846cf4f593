package inject

import "fmt"

// Result is what is to be done to a pod.
type Result struct {
	// Patch is to be applied in order. Empty: there is nothing to do.
	Patch []Operation

	// Warnings are for the pod's author: one line each, about what will be done and
	// is probably not what was meant.
	Warnings []string
}

// Operation is one step of a JSON patch (RFC 6902): add, replace or remove.
type Operation struct {
	Op string `json:"op"`
	// Path is a JSON pointer into the pod.
	Path string `json:"path"`
	// Value is a container, a volume and so on, in the types of k8s.io/api. Nil: a
	// removal.
	Value any `json:"value,omitempty"`
}

// Refusal says why a pod is not injected, in one line for its author: where the
// fault is, and what to write.
type Refusal struct {
	// Where names the annotation or field, such as spec.hostNetwork.
	Where string
	// Remedy says what is wrong with it and what to write.
	Remedy string
}

func (r *Refusal) Error() string { return r.Where + ": " + r.Remedy }

func refuse(where, format string, args ...any) *Refusal {
	return &Refusal{Where: where, Remedy: fmt.Sprintf(format, args...)}
}
