package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Names of the last two files of a release.
const (
	sumsFile       = "SHA256SUMS"
	provenanceFile = "provenance.intoto.json"
)

// sum is a file of the release and its SHA-256, in the form of a subject of an in-toto statement.
type sum struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// writeSums writes what was built from what, as an unsigned SLSA statement, and the checksum of
// every file that is published.
func (r *release) writeSums(context.Context) error {
	sums, err := r.sums()
	if err != nil {
		return err
	}
	statement, err := jsonOf(r.statement(sums))
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(r.out, provenanceFile), statement); err != nil {
		return err
	}
	if sums, err = r.sums(); err != nil {
		return err
	}
	var out bytes.Buffer
	for _, s := range sums {
		fmt.Fprintf(&out, "%s  %s\n", s.Digest["sha256"], s.Name)
	}
	return writeFile(filepath.Join(r.out, sumsFile), out.Bytes())
}

// sums returns the checksums of the files, sorted by name. The directories bin, licenses and
// oci are left out: the archives contain them.
func (r *release) sums() ([]sum, error) {
	var all []sum
	entries, err := os.ReadDir(r.out)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() || e.Name() == marker {
			continue
		}
		content, err := os.ReadFile(filepath.Join(r.out, e.Name()))
		if err != nil {
			return nil, err
		}
		digest := sha256.Sum256(content)
		all = append(all, sum{e.Name(), map[string]string{"sha256": hex.EncodeToString(digest[:])}})
	}
	return all, nil
}

// statement returns a statement of SLSA provenance, https://slsa.dev/spec/v1.0/provenance. It
// does not have the times of the build, so that it is the same for the same commit.
func (r *release) statement(subjects []sum) any {
	source := "git+" + r.home + "@" + r.version
	return map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       subjects,
		"predicateType": "https://slsa.dev/provenance/v1",
		"predicate": map[string]any{
			"buildDefinition": map[string]any{
				"buildType":          r.home + "/blob/main/RELEASE.md",
				"externalParameters": map[string]any{"command": "make release", "version": r.version, "registry": r.registry},
				"internalParameters": map[string]any{"toolchain": r.compiler},
				"resolvedDependencies": []any{map[string]any{
					"uri": source, "digest": map[string]string{"gitCommit": strings.TrimSuffix(r.commit, dirty)},
				}},
			},
			"runDetails": map[string]any{"builder": map[string]string{"id": r.home + "/tree/main/tools/release"}},
		},
	}
}

// jsonOf returns a value as indented JSON.
func jsonOf(value any) ([]byte, error) {
	content, err := json.MarshalIndent(value, "", "  ")
	return append(content, '\n'), err
}
