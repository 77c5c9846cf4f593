package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// module is a module that a program is linked with.
type module struct {
	path, version, dir string
	// packages are the directories of the linked packages.
	packages []string
}

// allowed is the list of allowed licenses, each with a pattern that recognizes its text. A license
// file that no pattern matches ends the release.
var allowed = []struct {
	id   string
	mark *regexp.Regexp
}{
	{"Apache-2.0", words("Apache License Version 2.0, January 2004")},
	{"MPL-2.0", words("Mozilla Public License Version 2.0|Mozilla Public License, version 2.0")},
	{"ISC", words("Permission to use, copy, modify, and(?:/or)? distribute this software for any purpose")},
	{"MIT", words("Permission is hereby granted, free of charge, to any person obtaining a copy")},
	{"BSD", words("Redistribution and use in source and binary forms, with or without modification, are permitted")},
}

// words returns a pattern that matches the words with any space between them.
func words(s string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)` + strings.ReplaceAll(s, " ", `\s+`))
}

// licenseFile is the name of a file with a license, a notice, or a grant of patents.
var licenseFile = regexp.MustCompile(`(?i)^(?:LICEN[CS]E|COPYING|NOTICE|PATENTS)[^/]*$`)

// writeLicenses writes the licenses of the modules in each program, Go's own among them.
func (r *release) writeLicenses(ctx context.Context) error {
	all, err := r.programs(ctx)
	if err != nil {
		return err
	}
	for _, p := range all {
		text, err := r.licensesOf(ctx, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if err := writeFile(r.licenses(p.name), text); err != nil {
			return err
		}
	}
	return nil
}

// licenses returns the path of the licenses of the modules in a program.
func (r *release) licenses(name string) string {
	return filepath.Join(r.out, "licenses", name, "THIRD_PARTY")
}

func (r *release) licensesOf(ctx context.Context, p program) ([]byte, error) {
	modules, err := r.modules(ctx, p)
	if err != nil {
		return nil, err
	}
	goroot, err := output(ctx, r.root, r.env, "go", "env", "GOROOT")
	if err != nil {
		return nil, err
	}
	modules = append(modules, &module{path: "Go's standard library", version: r.compiler, dir: goroot})
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s %s is linked with the software below.\n", p.name, r.version)
	for _, m := range modules {
		if err := m.writeLicense(&text); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), nil
}

// modules returns the modules that a program is linked with on any of its platforms, sorted.
func (r *release) modules(ctx context.Context, p program) ([]*module, error) {
	found := map[string]*module{}
	for _, on := range p.platforms {
		out, err := output(ctx, r.root, append(r.env, "GOOS="+on.os, "GOARCH="+on.arch), "go", "list", "-deps",
			"-f", "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Version}}\t{{.Dir}}\t{{$.Dir}}{{end}}{{end}}", "./cmd/"+p.name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			fields := strings.Split(strings.TrimSpace(line), "\t")
			if len(fields) != 4 {
				continue // a package of Go or of this repository
			}
			m := found[fields[0]]
			if m == nil {
				m = &module{path: fields[0], version: fields[1], dir: fields[2]}
				found[m.path] = m
			}
			m.packages = append(m.packages, fields[3])
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b *module) int { return strings.Compare(a.path, b.path) }), nil
}

// licenseFiles returns the license files of a module that apply to the linked packages, from the
// module's directory on: those of the packages' directories and of the directories above. Copied code
// has its own license in its directory.
func (m *module) licenseFiles() ([]string, error) {
	dirs := map[string]bool{m.dir: true}
	for _, dir := range m.packages {
		for ; strings.HasPrefix(dir, m.dir+string(filepath.Separator)); dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
	}
	var names []string
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() || !licenseFile.MatchString(e.Name()) || filepath.Ext(e.Name()) == ".go" {
				continue
			}
			name, err := filepath.Rel(m.dir, filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			names = append(names, filepath.ToSlash(name))
		}
	}
	return names, nil
}

// writeLicense writes the name, the licenses and the notices of a module.
func (m *module) writeLicense(text *bytes.Buffer) error {
	names, err := m.licenseFiles()
	if err != nil {
		return err
	}
	var ids []string
	var texts bytes.Buffer
	atRoot := false
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(m.dir, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&texts, "\n%s:\n\n%s\n", name, bytes.TrimSpace(content))
		if id := identify(content); id != "" {
			ids = append(ids, id)
			atRoot = atRoot || !strings.Contains(name, "/")
		} else if base := strings.ToUpper(path.Base(name)); !strings.HasPrefix(base, "NOTICE") && !strings.HasPrefix(base, "PATENTS") {
			return fmt.Errorf("%s %s: %s is not one of the licenses that tools/release/licenses.go allows", m.path, m.version, name)
		}
	}
	if !atRoot {
		return fmt.Errorf("%s %s has no license file", m.path, m.version)
	}
	slices.Sort(ids)
	fmt.Fprintf(text, "\n%s\n%s %s: %s\n", strings.Repeat("=", 80), m.path, m.version, strings.Join(slices.Compact(ids), ", "))
	if slices.Contains(ids, "MPL-2.0") {
		fmt.Fprintf(text, "Its unchanged source: go mod download %s@%s\n", m.path, m.version)
	}
	text.Write(texts.Bytes())
	return nil
}

// identify returns the identifier of a license's text, or "".
func identify(text []byte) string {
	for _, l := range allowed {
		if l.mark.Match(text) {
			return l.id
		}
	}
	return ""
}

// writeFile writes a file, and the directories of its path.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, content, 0o644)
}
