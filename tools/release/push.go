package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// emptyIndex is the index of a layout before its first entry.
var emptyIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)

func staticLayer(content []byte, mediaType types.MediaType) v1.Layer {
	return static.NewLayer(content, mediaType)
}

// pushAll pushes the images and the chart of a release to a registry, with the credentials of
// docker's or podman's configuration. Unless force is set, it pushes nothing if a tag of the registry
// has another digest: that tag can be a release.
func pushAll(ctx context.Context, out, registry string, force bool, stdout io.Writer) error {
	if err := checkRegistry("--push", registry); err != nil {
		return err
	}
	layouts, err := filepath.Glob(filepath.Join(out, "oci", "*"))
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(out, sumsFile)); err != nil || len(layouts) == 0 {
		return fmt.Errorf("%s has no complete release: make release", out)
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	var entries []entry
	for _, dir := range layouts {
		e, err := readEntry(dir, registry)
		if err == nil && !force {
			err = e.movesTag(options)
		}
		if err != nil {
			return fmt.Errorf("pushing to %s: %w", registry, reason(err))
		}
		entries = append(entries, e)
	}
	for _, e := range entries {
		if err := e.push(options); err != nil {
			return fmt.Errorf("pushing to %s: %w", registry, reason(err))
		}
		fmt.Fprintf(stdout, "pushed %s@%s\n", e.ref, e.Digest)
	}
	return nil
}

// registryForm is what the chart's schema allows.
var registryForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z.-]*(:[0-9]{1,5})?(/[0-9a-z][0-9a-z._-]*)*$`)

func checkRegistry(flag, registry string) error {
	if !registryForm.MatchString(registry) {
		return fmt.Errorf("%s: %q: must be a registry and a path, such as registry.example.test/team", flag, registry)
	}
	return nil
}

// entry is the only entry of a layout: an index of images, or a chart.
type entry struct {
	layout v1.ImageIndex
	v1.Descriptor
	ref name.Reference // its name in the registry
}

func readEntry(dir, registry string) (e entry, err error) {
	if e.layout, err = layout.ImageIndexFromPath(dir); err != nil {
		return e, err
	}
	manifest, err := e.layout.IndexManifest()
	if err != nil {
		return e, err
	}
	e.Descriptor = manifest.Manifests[0]
	e.ref, err = name.ParseReference(registry + "/" + e.Annotations[refName])
	return e, err
}

// movesTag returns an error if the registry has the tag with another digest.
func (e entry) movesTag(options []remote.Option) error {
	found, err := remote.Head(e.ref, options...)
	// Some registries answer 401 or 403 for a repository that the first push makes.
	var refused *transport.Error
	if errors.As(err, &refused) && slices.Contains([]int{http.StatusNotFound, http.StatusUnauthorized, http.StatusForbidden}, refused.StatusCode) {
		return nil
	}
	if err != nil {
		return err
	}
	if found.Digest != e.Digest {
		return fmt.Errorf("%s is %s there, and a push would replace it by %s: to do so, make push FORCE=1", e.ref, found.Digest, e.Digest)
	}
	return nil
}

func (e entry) push(options []remote.Option) error {
	if e.MediaType.IsIndex() {
		child, err := e.layout.ImageIndex(e.Digest)
		if err != nil {
			return err
		}
		return remote.WriteIndex(e.ref, child, options...)
	}
	child, err := e.layout.Image(e.Digest)
	if err != nil {
		return err
	}
	return remote.Write(e.ref, child, options...)
}

// reason returns an error of several lines as one.
func reason(err error) error {
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}
