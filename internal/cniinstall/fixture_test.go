package cniinstall

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// node is the directories of a node, and an installer for it.
type node struct {
	*Installer
	t   *testing.T
	log *observer.ObservedLogs
}

// newNode returns a node with these configuration files.
func newNode(t *testing.T, files map[string]string) *node {
	t.Helper()
	dir := t.TempDir()
	core, log := observer.New(zap.DebugLevel)
	n := &node{t: t, log: log, Installer: New(Config{
		Name: kind, Entry: []byte(entry), Log: zap.New(core),
		Program: filepath.Join(dir, "program"), BinDir: filepath.Join(dir, "bin"), ConfDir: filepath.Join(dir, "net.d"),
	})}
	for _, made := range []string{n.BinDir, n.ConfDir} {
		if err := os.Mkdir(made, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.write(n.Program, "the program")
	for name, text := range files {
		n.write(n.conf(name), text)
	}
	return n
}

func (n *node) conf(name string) string { return filepath.Join(n.ConfDir, name) }
func (n *node) binary() string          { return filepath.Join(n.BinDir, kind) }

// write writes a file in place, as programs do that do not rename.
func (n *node) write(path, text string) {
	n.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) read(path string) string {
	n.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

// hasEntry reports whether a configuration file has the plugin's entry.
func (n *node) hasEntry(name string) bool {
	return strings.Contains(n.read(n.conf(name)), entry)
}

// logged returns how often a message was logged.
func (n *node) logged(message string) int { return n.log.FilterMessage(message).Len() }
