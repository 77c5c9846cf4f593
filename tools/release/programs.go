package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// platform is an operating system and an architecture, as Go names them.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "/" + p.arch }

// file returns the platform as a part of a file's name.
func (p platform) file() string { return p.os + "_" + p.arch }

// program is one of the programs of cmd/.
type program struct {
	name      string
	platforms []platform
}

var (
	nodes = []platform{{"linux", "amd64"}, {"linux", "arm64"}}
	// clients are the platforms of imds-migrate, which people run on their own machines.
	clients = []platform{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"}, {"windows", "amd64"}, {"windows", "arm64"}}
)

// programs returns the programs of a release: all directories of cmd/.
func (r *release) programs(ctx context.Context) ([]program, error) {
	files, err := r.files(ctx, "cmd")
	if err != nil {
		return nil, err
	}
	var all []program
	for _, file := range files {
		name, _, inDir := strings.Cut(strings.TrimPrefix(file, "cmd/"), "/")
		if !inDir || slices.ContainsFunc(all, func(p program) bool { return p.name == name }) {
			continue
		}
		p := program{name, r.nodes()}
		if name == migrate {
			p.platforms = r.only(clients)
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b program) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

// nodes returns the platforms of images.
func (r *release) nodes() []platform { return r.only(nodes) }

// only returns those of the platforms that a snapshot was asked for, or all.
func (r *release) only(all []platform) []platform {
	if r.platforms == nil {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), func(p platform) bool { return !slices.Contains(r.platforms, p) })
}

// parsePlatforms parses a list such as linux/amd64,darwin/arm64.
func parsePlatforms(list string) (parsed []platform, err error) {
	if list == "" {
		return nil, nil
	}
	for name := range strings.SplitSeq(list, ",") {
		os, arch, _ := strings.Cut(name, "/")
		if !slices.Contains(clients, platform{os, arch}) {
			return nil, fmt.Errorf("--platforms: %q: must be one of %v", name, clients)
		}
		parsed = append(parsed, platform{os, arch})
	}
	if !slices.ContainsFunc(parsed, func(p platform) bool { return slices.Contains(nodes, p) }) {
		return nil, fmt.Errorf("--platforms: must have one of %v, for the images", nodes)
	}
	return parsed, nil
}

// migrate is the program that runs on people's own machines.
const migrate = "imds-migrate"

// binary returns the path of a built program.
func (r *release) binary(name string, p platform) string {
	if p.os == "windows" {
		name += ".exe"
	}
	return filepath.Join(r.out, "bin", p.file(), name)
}

// buildPrograms builds the programs of each platform with one run of Go, which compiles their
// common packages once.
func (r *release) buildPrograms(ctx context.Context) error {
	if err := os.WriteFile(filepath.Join(r.out, marker), nil, 0o644); err != nil {
		return err
	}
	all, err := r.programs(ctx)
	if err != nil {
		return err
	}
	for _, on := range r.only(clients) {
		var packages []string
		for _, p := range all {
			for _, its := range p.platforms {
				if its == on {
					packages = append(packages, "./cmd/"+p.name)
				}
			}
		}
		dir := filepath.Dir(r.binary(migrate, on))
		args := append([]string{"build", "-ldflags", "-s -w -X 'main.version=" + r.version + " " + r.commit + "'", "-o", dir + "/"}, packages...)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if _, err := output(ctx, r.root, append(r.env, "GOOS="+on.os, "GOARCH="+on.arch), "go", args...); err != nil {
			return err
		}
	}
	return nil
}
