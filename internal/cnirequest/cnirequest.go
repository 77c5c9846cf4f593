// Package cnirequest is the annotation with which a pod asks the CNI plugin for its redirect.
// Injection writes it, and the plugin reads it.
//
//	text := cnirequest.New(8000, azure.ProxyID, azure.ProxyID).String()
//	request, err := cnirequest.Parse(pod.Annotations[cnirequest.Annotation])
//
// The package imports the standard library and internal/azure only, so that neither the plugin
// links Kubernetes' libraries nor injection links those of the redirect.
//
// # Security considerations
//
// Everyone who may create pods in a namespace, or change their annotations, chooses the text.
// [Parse] therefore accepts only texts that [Request.String] can have written: no field that is
// unknown, missing, given twice or spelled in another way. The values are numbers and
// destinations. They choose the redirect of the pod's own network namespace, and never become a
// path or part of a command.
package cnirequest

import (
	"encoding/json"
	"fmt"
	"strconv"

	"imds-oidc-proxy/internal/azure"
)

// Annotation is the name of the annotation.
const Annotation = "imds-oidc-proxy/cni-redirect"

// version is the version of the format. A plugin refuses all others: an older plugin would
// ignore a field that a newer webhook writes, such as one that closes a destination.
const version = 1

const (
	// maxLength is the maximum length of a text in bytes. The longest with maxDeny destinations
	// has about 700.
	maxLength = 1024

	// maxDeny is the maximum number of denied destinations. Injection writes two.
	maxDeny = 16

	// maxID is the largest user or group ID of a container in Kubernetes.
	maxID = 1<<31 - 1
)

// Request is the redirect that a pod asks for. The metadata address is not part of it: the
// plugin always redirects Azure's.
type Request struct {
	// Version is the version of the format.
	Version int `json:"version"`

	// Port is the port of the proxy on 127.0.0.1.
	Port uint16 `json:"port"`

	// UID and GID are those of the proxy.
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`

	// Sealed exempts no process from the redirect, not even the proxy.
	Sealed bool `json:"sealed"`

	// Deny lists further destinations to reject, in the format of proxy-init's --deny. [Parse]
	// does not validate them.
	Deny []string `json:"deny,omitempty"`
}

// New returns a request in the current version, in forwarding mode.
func New(port uint16, uid, gid uint32) Request {
	return Request{Version: version, Port: port, UID: uid, GID: gid}
}

// String returns the value of the annotation.
func (r Request) String() string {
	text, _ := json.Marshal(r) // cannot fail for these types
	return string(text)
}

// Parse parses the value of the annotation. The error quotes the value and says what it must be.
func Parse(s string) (Request, error) {
	if len(s) > maxLength {
		return Request{}, azure.Invalid(s, "must have at most "+strconv.Itoa(maxLength)+" bytes")
	}
	var r Request
	switch err := json.Unmarshal([]byte(s), &r); {
	case err == nil && r.Version > version:
		return Request{}, azure.Invalid(s, fmt.Sprintf("has version %d, and this CNI plugin knows version %d: install the CNI plugin of the webhook's release on this node", r.Version, version))
	case err != nil || r.Version != version || r.String() != s:
		return Request{}, azure.Invalid(s, "must have the exact form that injection writes, such as "+New(azure.ProxyPort, azure.ProxyID, azure.ProxyID).String())
	}
	if reason := r.invalid(); reason != "" {
		return Request{}, azure.Invalid(s, reason)
	}
	return r, nil
}

// invalid returns what is wrong with the values, or "".
func (r Request) invalid() string {
	switch {
	case r.Port == 0:
		return "port must be between 1 and 65535"
	case r.UID == 0 || r.GID == 0:
		return "uid and gid must not be root's: any container that runs as root would reach the node's identity"
	case r.UID > maxID || r.GID > maxID:
		return fmt.Sprintf("uid and gid must be at most %d", maxID)
	case len(r.Deny) > maxDeny:
		return fmt.Sprintf("deny must have at most %d destinations", maxDeny)
	}
	return ""
}
