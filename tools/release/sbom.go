package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// writeSBOMs writes a software bill of materials of each program, in the format of CycloneDX, from
// what Go has written into the program.
// Without a serial number and a time of writing it is the same for the same commit.
func (r *release) writeSBOMs(ctx context.Context) error {
	all, err := r.programs(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tool := filepath.Join(dir, "cyclonedx-gomod")
	if _, err := output(ctx, filepath.Join(r.root, "tools/release"), r.env, "go", "build", "-o", tool, "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod"); err != nil {
		return err
	}
	if r.debs != nil {
		for _, on := range r.nodes() {
			content, err := r.debianSBOM(on.arch)
			if err != nil {
				return err
			}
			if err := writeFile(filepath.Join(r.out, iptablesImage+"_"+on.file()+"_debian.cdx.json"), content); err != nil {
				return err
			}
		}
	}
	for _, p := range all {
		for _, on := range p.platforms {
			file := filepath.Join(r.out, p.name+"_"+on.file()+".cdx.json")
			if _, err := output(ctx, r.root, r.env, tool, "bin", "-json", "-licenses", "-std", "-noserial", "-notimestamp",
				"-version", r.version, "-output", file, r.binary(p.name, on)); err != nil {
				return err
			}
			if err := withoutGenerator(file); err != nil {
				return err
			}
		}
	}
	return nil
}

// withoutGenerator removes the hashes of the generator from a software bill of materials. The
// generator is built for this machine, so that they differ on another one.
func withoutGenerator(file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var bom map[string]any
	if err := json.Unmarshal(content, &bom); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	metadata, _ := bom["metadata"].(map[string]any)
	tools, _ := metadata["tools"].([]any)
	if len(tools) != 1 {
		return fmt.Errorf("%s: metadata.tools is not a list of one tool, whose hashes must not be in a release", file)
	}
	tool, _ := tools[0].(map[string]any)
	delete(tool, "hashes")
	if content, err = jsonOf(bom); err != nil {
		return err
	}
	return writeFile(file, content)
}
