package main

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"

	"sigs.k8s.io/yaml"
)

// pluginPlatform is the plugin on one platform, in the form of krew's manifest.
type pluginPlatform struct {
	Selector struct {
		MatchLabels map[string]string `json:"matchLabels"`
	} `json:"selector"`
	URI    string `json:"uri"`
	SHA256 string `json:"sha256"`
	Bin    string `json:"bin"`
}

func newPluginPlatform(on platform, uri string, archive []byte) pluginPlatform {
	sum := sha256.Sum256(archive)
	p := pluginPlatform{URI: uri, SHA256: hex.EncodeToString(sum[:]), Bin: migrate}
	p.Selector.MatchLabels = map[string]string{"os": on.os, "arch": on.arch}
	if on.os == "windows" {
		p.Bin += ".exe"
	}
	return p
}

// writeKrew writes the manifest with which krew installs imds-migrate as kubectl imds-migrate.
func (r *release) writeKrew(platforms []pluginPlatform) error {
	manifest := map[string]any{
		"apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
		"kind":       "Plugin",
		"metadata":   map[string]any{"name": migrate},
		"spec": map[string]any{
			"version":          r.version,
			"shortDescription": "Migrate pods from IMDS to workload identity",
			"description": "Writes the sidecar of imds-oidc-proxy into manifests, so that workloads whose SDKs know only\n" +
				"Azure's instance metadata service (IMDS) get tokens by workload identity.\n",
			"platforms": platforms,
		},
	}
	content, err := yaml.Marshal(manifest)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(r.out, migrate+".yaml"), content)
}
