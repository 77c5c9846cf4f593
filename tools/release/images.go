package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// image is an image from scratch with one program.
type image struct {
	name, program, description string
	// value is the image's name in the chart's values, or "".
	value string
	// user is UID:GID, as numbers: for runAsNonRoot, the kubelet cannot tell whether a name is root.
	user string
	// content is what the image has besides the program and licenses.
	content content
}

// content is what an image has besides its program and licenses.
type content int

const (
	nothing  content = iota
	roots            // certificate authorities
	iptables         // iptables of Debian, with both backends
)

// images are the images of a release. Their users and labels are those of the Dockerfiles, which
// are for people's own builds; a test compares them.
var images = []image{
	{"imds-oidc-proxy", "proxy", "Answers managed-identity requests (IMDS) in a pod with Entra tokens for its federated token", "proxy", "1501:1501", roots},
	{iptablesImage, "proxy-init", "Redirects a pod's requests for the instance metadata service to imds-oidc-proxy", "proxyInit", "0:0", iptables},
	{nativeImage, "proxy-init", "Redirects a pod's requests for the instance metadata service to imds-oidc-proxy, by nftables without iptables", "", "0:0", nothing},
	{"imds-oidc-proxy-webhook", "webhook", "Injects imds-oidc-proxy and its redirect into annotated pods", "webhook", "65532:65532", roots},
	{"imds-oidc-proxy-cni", "imds-cni", "CNI plugin that redirects pods' requests for the instance metadata service to imds-oidc-proxy, and its installer", "cni", "0:0", nothing},
}

// iptablesImage is the image of proxy-init that the chart and the manifests name. With iptables,
// proxy-init also works on kernels without what its native backend needs.
const iptablesImage = "imds-oidc-proxy-init"

// nativeImage is the image of proxy-init without iptables.
const nativeImage = iptablesImage + "-native"

// images returns the images of this release. A snapshot may be without the one with iptables; its
// chart then names the native one.
func (r *release) images() []image {
	if r.debs != nil {
		return images
	}
	var rest []image
	for _, i := range images {
		if i.name == nativeImage {
			i.value = "proxyInit"
		}
		if i.name != iptablesImage {
			rest = append(rest, i)
		}
	}
	return rest
}

// certificates is where Go looks for certificate authorities first. A file of a user's own in the
// same directory adds to these.
const certificates = "etc/ssl/certs/ca-certificates.crt"

// writeImages writes each image as an OCI layout, and as an archive that docker, podman and
// containerd load.
func (r *release) writeImages(ctx context.Context) error {
	for _, i := range r.images() {
		index, err := r.index(ctx, i)
		if err != nil {
			return fmt.Errorf("%s: %w", i.name, err)
		}
		if err := r.writeLayout(i.name, index); err != nil {
			return err
		}
	}
	return r.writeValues()
}

// index returns an image for every platform of nodes.
func (r *release) index(ctx context.Context, i image) (v1.ImageIndex, error) {
	index := v1.ImageIndex(emptyIndex)
	for _, on := range r.nodes() {
		img, err := r.image(ctx, i, on)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add:        img,
			Descriptor: v1.Descriptor{MediaType: types.OCIManifestSchema1, Platform: &v1.Platform{OS: on.os, Architecture: on.arch}},
		})
	}
	return mutate.Annotations(index, r.labels(i.name, i.description)).(v1.ImageIndex), nil
}

func (r *release) image(ctx context.Context, i image, on platform) (v1.Image, error) {
	files := tree{}
	if err := files.add(i.program, r.binary(i.program, on), true); err != nil {
		return nil, err
	}
	for name, from := range map[string]string{"LICENSE": r.root + "/LICENSE", "NOTICE": r.root + "/NOTICE", "THIRD_PARTY": r.licenses(i.program)} {
		if err := files.add("licenses/"+name, from, false); err != nil {
			return nil, err
		}
	}
	var env []string
	switch i.content {
	case roots:
		files[certificates] = file{content: rootCertificates()}
	case iptables:
		env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		if err := r.addDebian(ctx, files, on.arch); err != nil {
			return nil, err
		}
	}
	content, err := files.tar(r.time)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompression(compression.GZip))
	if err != nil {
		return nil, err
	}
	created := v1.Time{Time: r.time}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: layer, History: v1.History{Created: created, CreatedBy: "make release"}})
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created, config.Author = on.os, on.arch, created, ""
	config.Config = v1.Config{User: i.user, Env: env, Entrypoint: []string{"/" + i.program}, Labels: r.labels(i.name, i.description)}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON), nil
}

func (r *release) labels(name, description string) map[string]string {
	const prefix = "org.opencontainers.image."
	labels := map[string]string{
		prefix + "title": name, prefix + "description": description,
		prefix + "version": r.version, prefix + "revision": r.commit, prefix + "licenses": "Apache-2.0",
	}
	if r.home != exampleHome {
		labels[prefix+"source"] = r.home
	}
	return labels
}

// rootCertificates returns the certificate authorities of Mozilla, as Go's developers publish
// them for programs.
func rootCertificates() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		// A constraint, such as a date after which the authority is not trusted, has no form in
		// a file of certificates.
		if root.Constraint == nil {
			_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}) // a buffer cannot fail
		}
	}
	return out.Bytes()
}

// refName is the annotation of a layout's index with the name under which programs load an image.
// docker and podman need the full name.
const refName = "org.opencontainers.image.ref.name"

// writeLayout writes an image or a chart as an OCI layout, and the layout as an archive. The
// layout's index has one entry, the index of all platforms: with an entry for each platform,
// programs do not know which one to load.
func (r *release) writeLayout(name string, index v1.ImageIndex) error {
	dir := filepath.Join(r.out, "oci", name)
	path, err := layout.Write(dir, emptyIndex)
	if err != nil {
		return err
	}
	full := name + ":" + r.version
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{refName: full, "io.containerd.image.name": full})); err != nil {
		return err
	}
	files := tree{}
	if err := files.addDir(dir); err != nil {
		return err
	}
	content, err := files.tar(r.time)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.out, name+"_"+r.version+".oci.tar"), content)
}

// addDir adds the files of a directory.
func (t tree) addDir(dir string) error {
	return filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		return t.add(filepath.ToSlash(relative), name, false)
	})
}
