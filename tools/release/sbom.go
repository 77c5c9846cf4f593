package main

import (
	"context"
	"os"
	"path/filepath"
)

// writeSBOMs writes a software bill of materials of each program, in the format of CycloneDX, from
// what Go has written into the program.
// Without a serial number and a time of writing it is the same for the same commit.
func (r *release) writeSBOMs(ctx context.Context) error {
	all, err := r.programs()
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
			if err := writeFile(filepath.Join(r.out, "sbom", iptablesImage+"_"+on.file()+"_debian.cdx.json"), content); err != nil {
				return err
			}
		}
	}
	for _, p := range all {
		for _, on := range p.platforms {
			file := filepath.Join(r.out, "sbom", p.name+"_"+on.file()+".cdx.json")
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				return err
			}
			if _, err := output(ctx, r.root, r.env, tool, "bin", "-json", "-licenses", "-std", "-noserial", "-notimestamp",
				"-version", r.version, "-output", file, r.binary(p.name, on)); err != nil {
				return err
			}
		}
	}
	return nil
}
