package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// emptyIndex is the index of a layout before its first entry.
var emptyIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)

func staticLayer(content []byte, mediaType types.MediaType) v1.Layer {
	return static.NewLayer(content, mediaType)
}

// pushAll pushes the images and the chart of a release to a registry, with the credentials of
// docker's or podman's configuration.
func pushAll(ctx context.Context, out, registry string, stdout io.Writer) error {
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
	for _, dir := range layouts {
		pushed, err := push(ctx, dir, registry)
		if err != nil {
			return fmt.Errorf("pushing to %s: %w", registry, reason(err))
		}
		fmt.Fprintln(stdout, "pushed", pushed)
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

// push pushes the only entry of a layout, under the name of its annotation.
func push(ctx context.Context, dir, registry string) (pushed string, err error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return "", err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return "", err
	}
	entry := manifest.Manifests[0]
	ref, err := name.ParseReference(registry + "/" + entry.Annotations[refName])
	if err != nil {
		return "", err
	}
	options := []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
	if entry.MediaType.IsIndex() {
		child, err := index.ImageIndex(entry.Digest)
		if err != nil {
			return "", err
		}
		return ref.String() + "@" + entry.Digest.String(), remote.WriteIndex(ref, child, options...)
	}
	child, err := index.Image(entry.Digest)
	if err != nil {
		return "", err
	}
	return ref.String() + "@" + entry.Digest.String(), remote.Write(ref, child, options...)
}

// reason returns an error of several lines as one.
func reason(err error) error {
	return errors.New(strings.Join(strings.Fields(err.Error()), " "))
}
