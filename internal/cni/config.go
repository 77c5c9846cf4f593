package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/cnirequest"
	"imds-oidc-proxy/internal/netrules"
)

// annotationsCapability is the capability with which a plugin's entry asks the runtime for the
// pod's annotations. containerd has it since 1.5.0, and CRI-O since 1.29.0.
const annotationsCapability = "io.kubernetes.cri.pod-annotations"

// Entry is the plugin's entry in a list of the runtime (a network configuration list).
type Entry struct {
	// Type is the file name of the plugin.
	Type string `json:"type"`

	// Capabilities asks the runtime for the pod's annotations.
	Capabilities map[string]bool `json:"capabilities"`

	// ExemptUIDs are the users that pods of this node may exempt from the redirect. Nil allows
	// every user but root. An empty list allows none, so that pods can only ask for the sealed
	// redirect.
	ExemptUIDs *[]uint32 `json:"exemptUIDs,omitempty"`
}

// NewEntry returns the entry of a plugin with this file name.
func NewEntry(name string, exemptUIDs *[]uint32) Entry {
	return Entry{Type: name, Capabilities: map[string]bool{annotationsCapability: true}, ExemptUIDs: exemptUIDs}
}

// config is the entry with what the runtime adds to it for one call.
type config struct {
	Entry

	// PrevResult is the result of the plugin before this one, unchanged: the types of package
	// types lose the fields that they do not know.
	PrevResult json.RawMessage `json:"prevResult"`

	RuntimeConfig struct {
		Annotations map[string]string `json:"io.kubernetes.cri.pod-annotations"`
	} `json:"runtimeConfig"`
}

// knownKeys are the keys of an entry: those of [Entry], and those of the CNI specification that
// the runtime adds.
var knownKeys = []string{"type", "capabilities", "exemptUIDs", "name", "cniVersion", "runtimeConfig", "prevResult", "args"}

// specPrefix is the prefix of further keys of the CNI specification.
const specPrefix = "cni.dev/"

// parseConfig parses the configuration. It refuses unknown keys: a misspelt exemptUIDs would
// limit nothing.
func parseConfig(stdin []byte) (config, error) {
	var c config
	var keys map[string]json.RawMessage
	err := json.Unmarshal(stdin, &c)
	if err == nil {
		err = json.Unmarshal(stdin, &keys)
	}
	if err != nil {
		return c, types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !slices.Contains(knownKeys, key) && !strings.HasPrefix(key, specPrefix) {
			return c, types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("unknown key %q in the plugin's entry: must be one of %s", key, strings.Join(knownKeys[:3], ", ")), "")
		}
	}
	if bytes.Equal(c.PrevResult, []byte("null")) {
		c.PrevResult = nil
	}
	if len(c.PrevResult) > 0 && c.PrevResult[0] != '{' {
		return c, types.NewError(types.ErrDecodingFailure, "prevResult must be an object", "")
	}
	return c, nil
}

// wanted returns the configuration of the redirect that the pod asks for. asked is false if the
// pod does not ask for one.
func (c config) wanted() (wanted netrules.Config, asked bool, err error) {
	annotations := c.RuntimeConfig.Annotations
	// The kubelet adds annotations of its own to every pod.
	if len(annotations) == 0 {
		return wanted, false, types.NewError(types.ErrInvalidNetworkConfig,
			"the runtime passed no annotations of the pod, so that it is unknown whether the pod asks for the redirect",
			"the entry needs the capability "+annotationsCapability+", and the node containerd 1.5.0, CRI-O 1.29.0 or later")
	}
	text, asked := annotations[cnirequest.Annotation]
	if !asked {
		return wanted, false, nil
	}
	if wanted, err = c.parseRequest(text); err != nil {
		err = types.NewError(codeRequest, "annotation "+cnirequest.Annotation+" "+err.Error(), "")
	}
	return wanted, true, err
}

// parseRequest parses the pod's annotation, and checks it against the entry.
func (c config) parseRequest(text string) (wanted netrules.Config, err error) {
	r, err := cnirequest.Parse(text)
	if err != nil {
		return wanted, err
	}
	if uids := c.ExemptUIDs; !r.Sealed && uids != nil && !slices.Contains(*uids, r.UID) {
		return wanted, azure.Invalid(text, fmt.Sprintf("this node exempts no process of UID %d from the redirect: change exemptUIDs in the plugin's entry, or use the sealed redirect", r.UID))
	}
	wanted = netrules.Config{
		Metadata:  netip.AddrPortFrom(netip.MustParseAddr(azure.MetadataIP), azure.MetadataPort),
		ProxyPort: r.Port, UID: r.UID, GID: r.GID, Sealed: r.Sealed,
	}
	for _, s := range r.Deny {
		target, err := netrules.ParseTarget(s)
		if err != nil {
			return wanted, err
		}
		wanted.Deny = append(wanted.Deny, target)
	}
	if err := wanted.Validate(); err != nil {
		return wanted, azure.Invalid(text, err.Error())
	}
	return wanted, nil
}
