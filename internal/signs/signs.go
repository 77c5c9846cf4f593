// Package signs finds in a configuration that a program asks for tokens of a managed identity: in
// environment variables, command lines, configuration files and names of images.
//
//	for _, s := range signs.Env("ARM_USE_MSI", "true") { … } // IMDS224 (Terraform), certain
//
// A sign is of a tool, whose own setting it is, or a general one. Tools have the codes of package plan, which
// docs/plan.md explains. A sign never contains a value that may be secret: of a value it has at most the ID of an identity.
// The package does not know Kubernetes.
package signs

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// Certainty says how reliable a sign is.
type Certainty int

const (
	// Hint is not enough for a verdict: it is listed only.
	Hint Certainty = iota
	// Likely is planned for, and has to be confirmed by the author.
	Likely
	// Certain means that the program acts on the setting.
	Certain
)

// String returns the name that reports use.
func (c Certainty) String() string { return [...]string{"hint", "likely", "certain"}[c] }

// The sources of general signs.
const (
	// ClientID is AZURE_CLIENT_ID without another credential, which the default chains of Azure's SDKs take
	// for a managed identity.
	ClientID = "client ID"
	// OtherEndpoint is a variable with which SDKs request tokens at an endpoint of App Service or Service
	// Fabric, and OtherHost one with which they request them at another address than that of IMDS.
	OtherEndpoint = "other endpoint"
	OtherHost     = "other host"
	// Service is the address of a service of Azure. It is no sign beside a key or a password.
	Service = "service"
	// Setting is any other setting for a managed identity.
	Setting = "setting"
)

// Sign is one setting with which a program asks for tokens of a managed identity.
type Sign struct {
	// Source is the code of the tool, such as IMDS224, or one of the constants for general signs.
	Source string
	// Text is the evidence, such as ARM_USE_MSI=true. It contains no secret.
	Text string

	Certainty Certainty

	// ClientID, ObjectID and ResourceID name the identity. All are empty if the setting names none.
	ClientID   azure.ClientID
	ObjectID   azure.Selector
	ResourceID azure.Selector
}

// pattern is one row of a table: a sign is there if match is found, and with it also, and not
// without. A nil expression is ignored.
type pattern struct {
	source        string
	text          string // the evidence; empty: what match has found
	match         *regexp.Regexp
	also, without *regexp.Regexp
	certainty     Certainty
	// identity finds the ID of the identity in its first group.
	identity *regexp.Regexp
}

func (p pattern) find(text string) (Sign, bool) {
	found := p.match.FindString(text)
	if found == "" || p.also != nil && !p.also.MatchString(text) || p.without != nil && p.without.MatchString(text) {
		return Sign{}, false
	}
	s := Sign{Source: p.source, Text: cmp.Or(p.text, strings.Join(strings.Fields(found), " ")), Certainty: p.certainty}
	if p.identity != nil {
		if m := p.identity.FindStringSubmatch(text); m != nil {
			s.name(m[1])
		}
	}
	return s, true
}

// name sets the client ID or the resource ID that a setting contains. A text that is neither is
// ignored: it may be a placeholder.
func (s *Sign) name(id string) {
	id = strings.Trim(id, `"' `)
	if client, err := azure.ParseClientID(id); err == nil {
		s.ClientID = client
	} else if resource, err := azure.ParseResourceID(id); err == nil {
		s.ResourceID = resource
	}
}

func findAll(table []pattern, text string) []Sign {
	var found []Sign
	for _, p := range table {
		if s, ok := p.find(text); ok {
			found = append(found, s)
		}
	}
	return found
}

// Sort sorts signs by source and text, and removes equal ones.
func Sort(list []Sign) []Sign {
	slices.SortFunc(list, func(a, b Sign) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Text, b.Text), cmp.Compare(a.ClientID, b.ClientID),
			cmp.Compare(a.ResourceID, b.ResourceID), cmp.Compare(a.ObjectID, b.ObjectID), cmp.Compare(b.Certainty, a.Certainty))
	})
	return slices.Compact(list)
}

// A GUID, in quotes or not, and a resource ID. They are parsed again, exactly.
const anID = `["']?([0-9A-Fa-f]{8}-[0-9A-Fa-f-]{27}|/subscriptions/[^\s"',;]+)`

func re(expression string) *regexp.Regexp { return regexp.MustCompile(expression) }
