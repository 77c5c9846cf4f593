package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/flagenv"
	"imds-oidc-proxy/internal/inject"
	"imds-oidc-proxy/internal/manifest"
)

// podIdentityGroup is the API group of aad-pod-identity's objects, and podIdentityLabel the label
// of a pod that selects its bindings.
const (
	podIdentityGroup = "aadpodidentity.k8s.io"
	podIdentityLabel = "aadpodidbinding"
)

// maxIdentities is the maximum number of identities of one pod. A request for an unknown object ID
// can cost an exchange of each of them.
const maxIdentities = 64

// identities has the managed identities of --identity-file, by client ID in the order of the files,
// and the bindings of aad-pod-identity.
type identities struct {
	order     []azure.ClientID
	selectors map[azure.ClientID][]azure.Selector
	objects   map[string]azure.ClientID // of the AzureIdentities, by namespace and name
	bindings  []binding
}

// binding is an AzureIdentityBinding: it binds the pods with this value of podIdentityLabel to an
// AzureIdentity, which has its namespace.
type binding struct{ selector, identity string }

// readIdentities reads the files of --identity-file.
func (m *migration) readIdentities(stdin io.Reader) {
	m.identities = identities{selectors: map[azure.ClientID][]azure.Selector{}, objects: map[string]azure.ClientID{}}
	for _, name := range m.options.identityFile {
		before := len(m.identities.order)
		f, err := newFile(name, stdin)
		if err == nil {
			err = m.documents(f, everyPart, m.readIdentity)
			f.stdin.close()
		}
		if err == nil && len(m.identities.order) == before && m.refused == 0 {
			err = errors.New("has no identity: it must have AzureIdentity objects, or be the output of az identity list --output json")
		}
		if err != nil {
			m.refuse(&file{name: name}, object{}, err)
		}
	}
}

// readIdentity reads a document: the list that az identity list prints, the identity of az identity
// show, or objects of aad-pod-identity.
func (m *migration) readIdentity(d document) error {
	for _, item := range d.Root().Items() {
		m.addIdentity(d.file, object{}, item, "clientId", "principalId", "id")
	}
	for _, o := range d.objects {
		switch {
		case o.kind == "" && o.group == "":
			m.addIdentity(d.file, object{}, o.node, "clientId", "principalId", "id")
		case o.kind == "AzureIdentity" && o.group == podIdentityGroup:
			m.addPodIdentity(d.file, o)
		case o.kind == "AzureIdentityBinding" && o.group == podIdentityGroup:
			m.addBinding(o)
		}
	}
	return nil
}

// addPodIdentity adds an AzureIdentity. Type 0, the default, is a managed identity. The others are
// applications, which have no resource ID.
func (m *migration) addPodIdentity(f *file, o object) {
	spec := o.node.Get("spec")
	if kind, _ := spec.Get("type").Scalar(); kind != "" && kind != "0" {
		return
	}
	if id := m.addIdentity(f, o, spec, "clientID", "", "resourceID"); id != "" {
		m.identities.objects[o.namespace+"/"+o.name] = id
	}
}

func (m *migration) addBinding(o object) {
	identity, _ := o.node.Get("spec", "azureIdentity").Scalar()
	selector, _ := o.node.Get("spec", "selector").Scalar()
	m.identities.bindings = append(m.identities.bindings, binding{selector, o.namespace + "/" + identity})
}

// addIdentity adds the identity of a node, whose IDs have these keys. An empty key means that the
// node has no object ID. It returns "" if the node is refused.
func (m *migration) addIdentity(f *file, o object, node *manifest.Node, clientKey, objectKey, resourceKey string) azure.ClientID {
	text, _ := node.Get(clientKey).Scalar()
	clientID, err := azure.ParseClientID(text)
	var selectors []azure.Selector
	for _, part := range []struct {
		key   string
		parse func(string) (azure.Selector, error)
	}{{objectKey, azure.ParseObjectID}, {resourceKey, azure.ParseResourceID}} {
		value, _ := node.Get(part.key).Scalar()
		if part.key == "" || value == "" {
			continue
		}
		selector, invalid := part.parse(value)
		if invalid != nil {
			err = fmt.Errorf("%s %w", part.key, invalid)
		}
		selectors = append(selectors, selector)
	}
	if err != nil {
		if _, invalid := azure.ParseClientID(text); invalid != nil {
			err = fmt.Errorf("%s %w", clientKey, invalid)
		}
		m.refuse(f, o, &manifest.Error{Line: node.Line(), Reason: err.Error()})
		return ""
	}
	m.identities.add(clientID, selectors)
	return clientID
}

// add adds an identity. Several files may each have some of its selectors.
func (i *identities) add(clientID azure.ClientID, selectors []azure.Selector) {
	if _, known := i.selectors[clientID]; !known {
		i.order = append(i.order, clientID)
		i.selectors[clientID] = nil
	}
	for _, selector := range selectors {
		if !slices.Contains(i.selectors[clientID], selector) {
			i.selectors[clientID] = append(i.selectors[clientID], selector)
		}
	}
}

// of returns the value of [inject.IdentitiesAnnotation] for a pod with this default client ID: all
// identities, or those that its annotation allows, or those that aad-pod-identity binds it to.
func (i *identities) of(pod *corev1.Pod, defaultID string) (string, error) {
	var pairs []string
	count := 0
	for _, clientID := range i.order {
		if !i.mayUse(pod, defaultID, clientID) || len(i.selectors[clientID]) == 0 {
			continue
		}
		count++
		for _, selector := range i.selectors[clientID] {
			pairs = append(pairs, string(selector)+"="+string(clientID))
		}
	}
	if count > maxIdentities {
		return "", fmt.Errorf("--identity-file: %d identities for this pod: must be at most %d; list the client IDs in annotation %s, or reduce the file: az identity list --resource-group GROUP --output json",
			count, maxIdentities, inject.AllowedClientIDsAnnotation)
	}
	return strings.Join(pairs, ","), nil
}

func (i *identities) mayUse(pod *corev1.Pod, defaultID string, clientID azure.ClientID) bool {
	if value := pod.Annotations[inject.AllowedClientIDsAnnotation]; value != "" {
		allowed, _ := flagenv.ParseList(value, azure.ParseClientID) // package inject refuses an invalid list
		return slices.Contains(allowed, clientID)
	}
	label := pod.Labels[podIdentityLabel]
	if len(i.bindings) == 0 || label == "" || string(clientID) == defaultID {
		return true
	}
	return slices.ContainsFunc(i.bindings, func(b binding) bool { return b.selector == label && i.objects[b.identity] == clientID })
}

// identityMark returns the annotation that --identity-file gives a pod whose proxy is injected. It
// returns none if the template has it already, with a warning if its author has written another
// value.
func (m *migration) identityMark(f *file, o object, template *manifest.Node, pod *corev1.Pod, account *corev1.ServiceAccount) ([]mark, error) {
	if pod.Labels[inject.UseLabel] != "true" || pod.Annotations[inject.InjectProxyAnnotation] != "true" {
		return nil, nil
	}
	value, err := m.identities.of(pod, strings.ToLower(account.Annotations[inject.ClientIDAnnotation]))
	if err != nil {
		return nil, &manifest.Error{Line: template.Line(), Reason: err.Error()}
	}
	node := template.Get("metadata", "annotations", inject.IdentitiesAnnotation)
	written, _ := node.Scalar()
	switch {
	case value == "", value == written:
		return nil, nil
	case node != nil && !slices.Contains(recorded(pod.Annotations[inject.AddedAnnotation]), identitiesID):
		m.warn(f, o, node.Line(), fmt.Sprintf("annotation %s is not changed by --identity-file: remove it to get %s", inject.IdentitiesAnnotation, value))
		return nil, nil
	}
	return []mark{{identitiesID, "annotations", inject.IdentitiesAnnotation, value}}, nil
}
