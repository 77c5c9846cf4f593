package plan

import (
	"slices"
	"strings"
)

// Change is a change of one field.
type Change struct {
	// Path is the field. Numbers are positions in lists.
	Path []string `json:"path"`
	// Value is the new value. It is empty if the field is removed.
	Value  string `json:"value,omitempty"`
	Remove bool   `json:"remove,omitempty"`
}

// change sets the changes of the object's fields.
func (b *builder) change(o *Object) {
	if o.rule.immutable {
		return
	}
	client := "<CLIENT_ID>"
	if o.Identity.Default != nil {
		client = string(o.Identity.Default.ClientID)
	}
	values := strings.NewReplacer("$CLIENT", client, "$TENANT", string(b.options.TenantID))
	mapping := at(o.body, o.path...)
	path := func(key string) []string { return append(slices.Clone(o.path), strings.Split(key, ".")...) }
	for _, key := range sorted(o.rule.set) {
		if o.rule.set[key] == "$TENANT" && b.options.TenantID == "" {
			continue // optional
		}
		if value := values.Replace(o.rule.set[key]); text(mapping, strings.Split(key, ".")...) != value {
			o.Changes = append(o.Changes, Change{Path: path(key), Value: value})
		}
	}
	if o.NewServiceAccount != "" {
		o.Changes = append(o.Changes, Change{Path: path("serviceAccountRef.name"), Value: o.NewServiceAccount})
		if o.Namespace == "" {
			o.Changes = append(o.Changes, Change{Path: path("serviceAccountRef.namespace"), Value: b.operatorOf(o.rule).namespace})
		}
	}
	for _, key := range o.rule.remove {
		if at(mapping, strings.Split(key, ".")...) != nil {
			o.Changes = append(o.Changes, Change{Path: path(key), Remove: true})
		}
	}
}
