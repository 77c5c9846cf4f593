package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// module is a module that a program is linked with.
type module struct{ path, version, dir string }

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

// writeLicenses writes the licenses of what each program is linked with, Go's own among them.
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

// licenses returns the path of the licenses of what a program is linked with.
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
	modules = append(modules, module{"Go's standard library", r.compiler, goroot})
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
func (r *release) modules(ctx context.Context, p program) ([]module, error) {
	var all []module
	for _, on := range p.platforms {
		out, err := output(ctx, r.root, append(r.env, "GOOS="+on.os, "GOARCH="+on.arch), "go", "list", "-deps",
			"-f", "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Version}}\t{{.Dir}}{{end}}{{end}}", "./cmd/"+p.name)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			if path, rest, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
				version, dir, _ := strings.Cut(rest, "\t")
				all = append(all, module{path, version, dir})
			}
		}
	}
	slices.SortFunc(all, func(a, b module) int { return strings.Compare(a.path, b.path) })
	return slices.Compact(all), nil
}

// writeLicense writes the name, the licenses and the notices of a module.
func (m module) writeLicense(text *bytes.Buffer) error {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return err
	}
	var ids []string
	var texts bytes.Buffer
	for _, e := range entries {
		if e.IsDir() || !licenseFile.MatchString(e.Name()) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&texts, "\n%s:\n\n%s\n", e.Name(), bytes.TrimSpace(content))
		if id := identify(content); id != "" {
			ids = append(ids, id)
		} else if name := strings.ToUpper(e.Name()); !strings.HasPrefix(name, "NOTICE") && !strings.HasPrefix(name, "PATENTS") {
			return fmt.Errorf("%s %s: %s is not one of the licenses that tools/release/licenses.go allows", m.path, m.version, e.Name())
		}
	}
	if len(ids) == 0 {
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
