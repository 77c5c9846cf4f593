package survey

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// pageSize is how many objects one request lists, as kubectl does.
	pageSize = "500"

	// maxRestarts is how often a list starts again because its continuation has expired, which happens
	// if reading the pages takes longer than five minutes.
	maxRestarts = 3

	// maxDiscovery bounds a discovery document. The API server's are a few kilobytes.
	maxDiscovery = 8 << 20

	// discoveryTimeout limits each request for a discovery document, as in kubectl: an API server that accepts
	// connections and never answers is reported. Lists may take longer.
	discoveryTimeout = 32 * time.Second
)

// Progress is called before each page of a list, with the kind and the number of objects that were read.
type Progress func(kind string)

// ReadCluster reads all kinds from a cluster. A kind that is forbidden, or whose versions are all
// unknown, is an entry of [Survey.Unread]; that the server cannot be reached, and that pods cannot be
// listed, is an error.
func (s *Survey) ReadCluster(ctx context.Context, client Client, progress Progress) error {
	s.Live = true
	c := &cluster{Survey: s, client: client, progress: progress, items: make(chan item, waitingItems)}
	defer close(c.items)
	go c.add()
	if err := c.facts(ctx); err != nil {
		return err
	}
	kinds, err := c.kinds(ctx)
	if err != nil {
		return err
	}
	for _, k := range kinds {
		if k.Kind == "Secret" && k.Group == "" && !s.config.Secrets || !s.config.wants(k) {
			continue
		}
		if err := c.read(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// wants reports whether a kind is to be read.
func (c Config) wants(k Kind) bool { return c.Kinds == nil || slices.Contains(c.Kinds, k.String()) }

// cluster reads a cluster.
type cluster struct {
	*Survey
	client   Client
	progress Progress
	items    chan item
	served   map[string][]string // versions by group; nil: unknown
}

// waitingItems is how many items of lists wait to be decoded while the next ones are received. An object has at
// most about 1 MiB.
const waitingItems = 32

// item is an item of a list, or a request to close decoded when all before it have been added.
type item struct {
	text    []byte
	kind    header
	decoded chan<- struct{}
}

// add adds the items to the survey, in order: beside the lists, so that decoding does not delay them.
func (c *cluster) add() {
	r := &reader{survey: c.Survey}
	for i := range c.items {
		if i.decoded != nil {
			close(i.decoded)
			continue
		}
		r.object(i.text, i.kind)
	}
}

// wait waits until all items are in the survey, which nothing else may use before.
func (c *cluster) wait() {
	decoded := make(chan struct{})
	c.items <- item{decoded: decoded}
	<-decoded
}

// get decodes a discovery document.
func (c *cluster) get(ctx context.Context, path string, into any) error {
	limited, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	body, err := c.client.Get(limited, path, nil)
	if err == nil {
		defer body.Close()
		err = json.NewDecoder(io.LimitReader(body, maxDiscovery)).Decode(into)
	}
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("no answer to GET %s within %s", path, discoveryTimeout)
	}
	return err
}

// facts reads what is not an object: the server's version, the issuer and the groups.
func (c *cluster) facts(ctx context.Context) error {
	var version struct {
		GitVersion string `json:"gitVersion"`
	}
	switch err := c.get(ctx, "/version", &version); {
	case err == nil:
		c.ServerVersion = version.GitVersion
	case !isAnswer(err):
		return fmt.Errorf("cannot reach the API server: %w", oneLine(err))
	case apierrors.IsUnauthorized(err):
		return errors.New("the API server does not accept your credentials: sign in, or choose another --context")
	default:
		c.NoVersion = denied(err, "get", "/version")
	}
	var discovery struct {
		Issuer string `json:"issuer"`
	}
	if err := c.get(ctx, "/.well-known/openid-configuration", &discovery); err == nil {
		c.Issuer = discovery.Issuer
	} else {
		c.NoIssuer = denied(err, "get", "/.well-known/openid-configuration") + "; or set --issuer"
	}
	return c.groups(ctx)
}

// groups reads which versions of which groups the server serves.
func (c *cluster) groups(ctx context.Context) error {
	var list metav1.APIGroupList
	if err := c.get(ctx, "/apis", &list); err != nil {
		if !isAnswer(err) {
			return fmt.Errorf("cannot reach the API server: %w", oneLine(err))
		}
		return nil
	}
	c.served = map[string][]string{"": {"v1"}}
	for _, group := range list.Groups {
		for _, version := range group.Versions {
			c.served[group.Name] = append(c.served[group.Name], version.Version)
		}
	}
	return nil
}

// isAnswer reports whether the API server has answered.
func isAnswer(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status)
}

// kinds returns the kinds of the table and those of Gatekeeper's constraints, which a cluster defines.
func (c *cluster) kinds(ctx context.Context) ([]Kind, error) {
	versions := c.served[gatekeeper]
	if len(versions) == 0 {
		return Kinds, nil
	}
	var list metav1.APIResourceList
	if err := c.get(ctx, "/apis/"+gatekeeper+"/"+versions[0], &list); err != nil {
		if !isAnswer(err) {
			return nil, fmt.Errorf("cannot read the constraints of Gatekeeper: %w", oneLine(err))
		}
		c.unread(Forbidden, gatekeeper, denied(err, "get", "/apis/"+gatekeeper))
		return Kinds, nil
	}
	var constraints []Kind
	for _, r := range list.APIResources {
		if !strings.Contains(r.Name, "/") {
			constraints = append(constraints, Kind{Group: gatekeeper, Versions: versions[:1], Resource: r.Name, Kind: r.Kind})
		}
	}
	slices.SortFunc(constraints, func(a, b Kind) int { return strings.Compare(a.Resource, b.Resource) })
	return slices.Concat(constraints, Kinds), nil
}

// read lists the objects of one kind, in the first known version that has it: a group may serve its kinds
// in different versions.
func (c *cluster) read(ctx context.Context, k Kind) error {
	versions, served := c.versions(k)
	for _, version := range versions {
		err := c.listWithin(ctx, k, version)
		switch {
		case apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err):
			continue
		case err == nil:
			return nil
		case k.Kind == "Pod" || !apierrors.IsForbidden(err):
			return fmt.Errorf("cannot list %s: %s", k, denied(err, "list", k.String()))
		}
		c.unread(Forbidden, k.String(), denied(err, "list", k.String()))
		return nil
	}
	return c.readUnknown(ctx, k, served)
}

// listWithin lists a kind in the namespace that was requested, or everywhere.
func (c *cluster) listWithin(ctx context.Context, k Kind, version string) error {
	namespace := c.config.Namespace
	if !k.Namespace || k.Everywhere && !c.config.Within {
		namespace = ""
	}
	err := c.list(ctx, k, version, namespace)
	if apierrors.IsForbidden(err) && namespace == "" && k.Everywhere && c.config.Namespace != "" {
		c.unread(Forbidden, k.String(), "read in namespace "+c.config.Namespace+" only: "+denied(err, "list", k.String()))
		err = c.list(ctx, k, version, c.config.Namespace)
	}
	return err
}

// versions returns the known versions that the server serves of a kind's group, and all others. Without
// discovery, all known versions are tried.
func (c *cluster) versions(k Kind) (known, others []string) {
	if c.served == nil {
		return k.Versions, nil
	}
	for _, version := range k.Versions {
		if slices.Contains(c.served[k.Group], version) {
			known = append(known, version)
		}
	}
	others = slices.DeleteFunc(slices.Clone(c.served[k.Group]), func(v string) bool { return slices.Contains(k.Versions, v) })
	return known, others
}

// readUnknown records a kind that the server has in versions only that are not known. A kind that it does
// not have is not installed.
func (c *cluster) readUnknown(ctx context.Context, k Kind, others []string) error {
	for _, version := range others {
		var list metav1.APIResourceList
		if err := c.get(ctx, "/apis/"+k.Group+"/"+version, &list); err != nil {
			if !isAnswer(err) {
				return fmt.Errorf("cannot look for %s: %w", k, oneLine(err))
			}
			continue
		}
		if slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool { return r.Name == k.Resource }) {
			c.unread(Version, k.String(), fmt.Sprintf("the cluster serves version %s, and this program knows %s", version, strings.Join(k.Versions, ", ")))
			return nil
		}
	}
	return nil
}

// list lists all pages of a kind.
func (c *cluster) list(ctx context.Context, k Kind, version, namespace string) error {
	path := "/api/" + version
	if k.Group != "" {
		path = "/apis/" + k.Group + "/" + version
	}
	if namespace != "" {
		path += "/namespaces/" + namespace
	}
	kind := header{APIVersion: strings.TrimPrefix(k.Group+"/"+version, "/"), Kind: k.Kind}
	defer c.wait()
	restarts, next, found := 0, "", 0
	for {
		shown := k.String()
		if found > 0 {
			shown += fmt.Sprintf(" (%d)", found)
		}
		c.progress(shown)
		more, n, err := c.page(ctx, path+"/"+k.Resource, next, kind)
		found += n
		switch {
		case apierrors.IsResourceExpired(err) && restarts < maxRestarts:
			c.wait()
			restarts, next, found = restarts+1, "", 0 // objects that were read already are replaced
			c.Found[k.String()] = 0
			continue
		case err != nil || more == "":
			return err
		}
		next = more
	}
}

// page reads one page, and returns the token of the next one and the number of items.
func (c *cluster) page(ctx context.Context, path, token string, kind header) (next string, n int, err error) {
	query := url.Values{"limit": {pageSize}}
	if token != "" {
		query.Set("continue", token)
	}
	body, err := c.client.Get(ctx, path, query)
	if err != nil {
		return "", 0, err
	}
	defer body.Close()
	f := &reader{deliver: func(text []byte, kind header) {
		n++
		c.items <- item{text: text, kind: kind}
	}}
	fields, _, err := f.fields(json.NewDecoder(body), kind)
	var metadata metav1.ListMeta
	if err == nil && fields["metadata"] != nil {
		err = json.Unmarshal(fields["metadata"], &metadata)
	}
	if err != nil {
		return "", n, fmt.Errorf("the answer is cut off or invalid: %w", unexpected(err))
	}
	return metadata.Continue, n, nil
}

// denied returns what an answer means for the reader, with the permission that is missing.
func denied(err error, verb, what string) string {
	if apierrors.IsForbidden(err) {
		return fmt.Sprintf("you may not %s %s", verb, what)
	}
	return oneLine(err).Error()
}

// oneLine returns an error without line breaks.
func oneLine(err error) error {
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}
