package survey

import (
	"encoding/json"
	"fmt"
	"strings"

	kubejson "sigs.k8s.io/json"
)

// header is what every object has.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Meta
		Namespace       string  `json:"namespace"`
		Name            string  `json:"name"`
		GenerateName    string  `json:"generateName"`
		UID             string  `json:"uid"`
		OwnerReferences []owner `json:"ownerReferences"`
	} `json:"metadata"`
	Status json.RawMessage `json:"status"`
}

type owner struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Controller bool   `json:"controller"`
}

// controller returns the object that created this one.
func (h *header) controller() (Ref, bool) {
	for _, o := range h.Metadata.OwnerReferences {
		if o.Controller {
			return Ref{groupOf(o.APIVersion), o.Kind, h.Metadata.Namespace, o.Name}, true
		}
	}
	return Ref{}, false
}

func (h *header) ref() Ref {
	return Ref{groupOf(h.APIVersion), h.Kind, h.Metadata.Namespace, h.Metadata.Name}
}

// groupOf returns the group of an apiVersion, which is empty for v1.
func groupOf(version string) string {
	group, _, found := strings.Cut(version, "/")
	if !found {
		return ""
	}
	return group
}

func versionOf(version string) string { return version[strings.LastIndexByte(version, '/')+1:] }

// maxMalformed is how many objects that cannot be decoded are listed. The rest is counted.
const maxMalformed = 10

// malformed records an object that cannot be decoded.
func (s *Survey) malformed(where, why string) {
	s.bad++
	switch {
	case s.bad <= maxMalformed:
		s.unread(Malformed, where, why)
	case s.bad == maxMalformed+1:
		s.Unread = append(s.Unread, Unread{})
		fallthrough
	default:
		s.Unread[s.lastMalformed()] = Unread{Malformed, fmt.Sprintf("%d more objects", s.bad-maxMalformed), "they cannot be decoded either"}
	}
}

// lastMalformed returns the place of the entry with the number of further objects.
func (s *Survey) lastMalformed() int {
	for i, u := range s.Unread {
		if u.Code == "" || u.Code == Malformed && strings.HasSuffix(u.What, " more objects") {
			return i
		}
	}
	return len(s.Unread) - 1
}

// add adds one object. Default is the kind of an item of a list that has no kind itself. The last one of
// two objects with the same name counts.
func (s *Survey) add(text []byte, kind header) {
	var h header
	if err := kubejson.UnmarshalCaseSensitivePreserveInts(text, &h); err != nil {
		s.malformed("an object without readable metadata", reason(err))
		return
	}
	if h.Kind == "" {
		h.Kind, h.APIVersion = kind.Kind, kind.APIVersion
	}
	k, known := kindOf(groupOf(h.APIVersion), h.Kind)
	switch {
	case !known || k.Kind == "Secret" && !s.config.Secrets:
		s.Ignored++
		return
	case k.Versions != nil && !contains(k.Versions, versionOf(h.APIVersion)):
		s.unread(Version, k.String(), fmt.Sprintf("version %s is unknown to this program, which knows %s", versionOf(h.APIVersion), strings.Join(k.Versions, ", ")))
		return
	case h.Metadata.Name == "" && h.Metadata.GenerateName == "":
		s.malformed(k.Kind+" without a name", "metadata.name is required")
		return
	}
	if h.Metadata.Name == "" {
		h.Metadata.Name = h.Metadata.GenerateName
	}
	if k.Namespace && h.Metadata.Namespace == "" {
		h.Metadata.Namespace = "default"
	}
	delete(h.Metadata.Annotations, "kubectl.kubernetes.io/last-applied-configuration")
	s.Found[k.String()]++
	if err := s.keep(k, &h, text); err != nil {
		s.malformed(h.Kind+" "+h.Metadata.Namespace+"/"+h.Metadata.Name, reason(err))
	}
}

func contains(list []string, text string) bool {
	for _, item := range list {
		if item == text {
			return true
		}
	}
	return false
}

// keep adds an object of a known kind to its part of the model.
func (s *Survey) keep(k Kind, h *header, text []byte) error {
	switch {
	case k.Kind == "Namespace" && k.Group == "":
		s.Namespaces[h.Metadata.Name] = h.Metadata.Meta
	case k.Kind == "ServiceAccount" && k.Group == "":
		return s.addAccount(h, text)
	case (k.Kind == "ConfigMap" || k.Kind == "Secret") && k.Group == "":
		return s.addConfig(h, text)
	case k.Kind == "Pod" && k.Group == "":
		return s.addPod(h, text)
	case k.Template == none:
		return s.addForeign(h, text)
	case k.Template != "":
		return s.addWorkload(k, h, text)
	default:
		return s.addObject(h, text)
	}
	return nil
}

func (s *Survey) addAccount(h *header, text []byte) error {
	var account struct {
		ImagePullSecrets []struct {
			Name string `json:"name"`
		} `json:"imagePullSecrets"`
	}
	if err := decode(text, &account); err != nil {
		return err
	}
	a := &Account{Ref: h.ref(), Meta: h.Metadata.Meta}
	for _, secret := range account.ImagePullSecrets {
		a.PullSecrets = append(a.PullSecrets, secret.Name)
	}
	s.Accounts[a.Namespace+"/"+a.Name] = a
	return nil
}

func (s *Survey) addObject(h *header, text []byte) error {
	o := &Object{Ref: h.ref(), Version: versionOf(h.APIVersion), Meta: h.Metadata.Meta}
	if err := decode(text, &o.Body); err != nil {
		return err
	}
	for _, key := range []string{"apiVersion", "kind", "metadata"} { // the Ref has them
		delete(o.Body, key)
	}
	s.Objects[o.Ref] = o
	return nil
}

// decode decodes as the API server does: it tells upper from lower case, and ignores unknown fields,
// which may be newer than this program.
func decode(text []byte, into any) error {
	return kubejson.UnmarshalCaseSensitivePreserveInts(text, into)
}

// reason returns an error of decoding in one line.
func reason(err error) string {
	return strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "json: ")
}
