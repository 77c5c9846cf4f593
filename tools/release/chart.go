package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"sigs.k8s.io/yaml"
)

// chartName is the name of the chart. In a registry it is below charts/, since an image has the
// same name.
const chartName = "imds-oidc-proxy"

// The media types of a chart in a registry.
const (
	chartConfigType types.MediaType = "application/vnd.cncf.helm.config.v1+json"
	chartLayerType  types.MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
)

// digests returns the digest of each image of the release.
func (r *release) digests() (map[string]string, error) {
	found := map[string]string{}
	for _, i := range r.images() {
		index, err := layout.ImageIndexFromPath(filepath.Join(r.out, "oci", i.name))
		if err != nil {
			return nil, err
		}
		manifest, err := index.IndexManifest()
		if err != nil {
			return nil, err
		}
		found[i.name] = manifest.Manifests[0].Digest.String()
	}
	return found, nil
}

// withDigests writes the images and their digests into the chart's values. It edits the text,
// since the comments are the documentation.
func (r *release) withDigests(values []byte) ([]byte, error) {
	digests, err := r.digests()
	if err != nil {
		return nil, err
	}
	if r.registry != "" {
		place := regexp.MustCompile(`(\n  registry: )""\n`)
		if len(place.FindAll(values, -1)) != 1 {
			return nil, errors.New("values.yaml of the chart has no empty images.registry")
		}
		values = place.ReplaceAll(values, []byte("${1}"+r.registry+"\n"))
	}
	for _, i := range r.images() {
		if i.value == "" {
			continue
		}
		place := regexp.MustCompile(`(\n  ` + i.value + `:\n(?:    .*\n)*?    repository: )\S+((?:\n    .*)*?\n    digest: )""\n`)
		if len(place.FindAll(values, -1)) != 1 {
			return nil, fmt.Errorf("values.yaml of the chart has no images.%s with a repository and then an empty digest", i.value)
		}
		values = place.ReplaceAll(values, []byte("${1}"+i.name+"${2}"+digests[i.name]+"\n"))
	}
	return values, nil
}

// writeValues writes the digests of the images as values for an installation of the chart from
// the repository.
func (r *release) writeValues() error {
	digests, err := r.digests()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# The images of %s, for helm install -f values.yaml --set images.registry=…\nimages:\n", r.version)
	for _, i := range r.images() {
		value := i.value
		if value == "" {
			value = "# without iptables: proxyInit"
		}
		fmt.Fprintf(&out, "  %s: {repository: %s, digest: %s}\n", value, i.name, digests[i.name])
	}
	return writeFile(filepath.Join(r.out, "values.yaml"), out.Bytes())
}

// writeChart writes the chart as an archive and as an OCI artifact. helm package is not used,
// since its archive contains the time of packaging.
func (r *release) writeChart(ctx context.Context) error {
	names, err := r.files(ctx, "charts/"+chartName)
	if err != nil {
		return err
	}
	files := tree{}
	for _, name := range names {
		if err := files.add(strings.TrimPrefix(name, "charts/"), filepath.Join(r.root, name), false); err != nil {
			return err
		}
	}
	values, err := r.withDigests(files[chartName+"/values.yaml"].content)
	if err != nil {
		return err
	}
	files[chartName+"/values.yaml"] = file{content: values}
	meta, err := r.chartMetadata(files[chartName+"/Chart.yaml"].content)
	if err != nil {
		return err
	}
	files[chartName+"/Chart.yaml"] = file{content: meta}
	archive, err := files.tarGz(r.time)
	if err != nil {
		return err
	}
	number := strings.TrimPrefix(r.version, "v")
	if err := writeFile(filepath.Join(r.out, chartName+"-"+number+".tgz"), archive); err != nil {
		return err
	}
	config, err := yaml.YAMLToJSON(files[chartName+"/Chart.yaml"].content)
	if err != nil {
		return err
	}
	artifact, err := newArtifact(config, chartConfigType, archive, chartLayerType)
	if err != nil {
		return err
	}
	path, err := layout.Write(filepath.Join(r.out, "oci", "chart"), emptyIndex)
	if err != nil {
		return err
	}
	return path.AppendImage(artifact, layout.WithAnnotations(map[string]string{refName: "charts/" + chartName + ":" + number}))
}

// chartMetadata returns Chart.yaml with what only a release knows, in the form of Artifact Hub: where
// the source is, and the images.
func (r *release) chartMetadata(text []byte) ([]byte, error) {
	var meta map[string]any
	if err := yaml.Unmarshal(text, &meta); err != nil {
		return nil, err
	}
	annotations, ok := meta["annotations"].(map[string]any)
	if !ok {
		return nil, errors.New("no annotations in Chart.yaml")
	}
	annotations["artifacthub.io/prerelease"] = strconv.FormatBool(strings.Contains(r.version, "-"))
	if r.home != exampleHome {
		meta["home"], meta["sources"] = r.home, []string{r.home}
	}
	if r.registry != "" {
		digests, err := r.digests()
		if err != nil {
			return nil, err
		}
		var list []map[string]any
		for _, i := range r.images() {
			var platforms []string
			for _, on := range r.nodes() {
				platforms = append(platforms, on.String())
			}
			list = append(list, map[string]any{"name": i.name, "image": r.registry + "/" + i.name + "@" + digests[i.name], "platforms": platforms})
		}
		content, err := yaml.Marshal(list)
		if err != nil {
			return nil, err
		}
		annotations["artifacthub.io/images"] = string(content)
	}
	return yaml.Marshal(meta)
}

// artifact is an OCI artifact with one layer.
type artifact struct {
	config, layer, manifest []byte
	layerType               types.MediaType
}

func newArtifact(config []byte, configType types.MediaType, layer []byte, layerType types.MediaType) (v1.Image, error) {
	a := &artifact{config: config, layer: layer, layerType: layerType}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
	var err error
	if manifest.Config, err = descriptor(config, configType); err != nil {
		return nil, err
	}
	of, err := descriptor(layer, layerType)
	if err != nil {
		return nil, err
	}
	manifest.Layers = []v1.Descriptor{of}
	if a.manifest, err = jsonOf(manifest); err != nil {
		return nil, err
	}
	return partial.CompressedToImage(a)
}

func descriptor(content []byte, mediaType types.MediaType) (v1.Descriptor, error) {
	digest, size, err := v1.SHA256(bytes.NewReader(content))
	return v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size}, err
}

func (a *artifact) RawConfigFile() ([]byte, error)      { return a.config, nil }
func (a *artifact) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a *artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }
func (a *artifact) LayerByDigest(v1.Hash) (partial.CompressedLayer, error) {
	return staticLayer(a.layer, a.layerType), nil
}

// writeArchives writes an archive of each program for each platform, and the krew manifest of
// the kubectl plugin.
func (r *release) writeArchives(ctx context.Context) error {
	all, err := r.programs(ctx)
	if err != nil {
		return err
	}
	var plugin []pluginPlatform
	for _, p := range all {
		for _, on := range p.platforms {
			name, content, err := r.archive(p, on)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(r.out, name), content, 0o644); err != nil {
				return err
			}
			if p.name == migrate {
				plugin = append(plugin, newPluginPlatform(on, r.url+"/"+name, content))
			}
		}
	}
	return r.writeKrew(plugin)
}

// archive returns a program with its licenses.
func (r *release) archive(p program, on platform) (name string, content []byte, err error) {
	files := tree{}
	binary := r.binary(p.name, on)
	for name, from := range map[string]string{
		filepath.Base(binary): binary, "LICENSE": r.root + "/LICENSE", "NOTICE": r.root + "/NOTICE", "THIRD_PARTY": r.licenses(p.name),
	} {
		if err := files.add(name, from, from == binary); err != nil {
			return "", nil, err
		}
	}
	name = p.name + "_" + r.version + "_" + on.file()
	if on.os == "windows" {
		content, err = files.zip(r.time)
		return name + ".zip", content, err
	}
	content, err = files.tarGz(r.time)
	return name + ".tar.gz", content, err
}
