// Package cniinstall adds a plugin to the list that a node's container runtime uses (a network
// configuration list of the CNI specification), keeps it there, and removes it.
//
//	installer := cniinstall.New(cniinstall.Config{Name: "imds-cni", …})
//	err := installer.Run(ctx) // until ctx is done, or another program removes the plugin again and again
//	…
//	err = installer.Uninstall()
//
// The node's network belongs to another program, which writes the list at the start of the node,
// at upgrades and at times of its own. So the package never makes a list: it waits for the first
// valid one. It adds one entry, keeps all other bytes, and compares again after each change in the
// directory and at intervals.
//
// The plugin's file comes before the entry, and the entry goes before the file: with an entry
// without the file, the runtime can neither start nor delete pods.
//
// # Security considerations
//
// Who can write to the directories is root on the node anyway. A list that the package does not
// understand as a whole stays as it is.
package cniinstall

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Config configures an [Installer]. All fields are required.
type Config struct {
	// Name is the plugin's file name and the type of its entry.
	Name string

	// Program is the file that is copied to BinDir.
	Program string

	// BinDir is the runtime's directory of plugins, and ConfDir that of its configuration.
	BinDir, ConfDir string

	// Entry is the plugin's entry, in JSON.
	Entry []byte

	// Log gets a line for each change on the node, and for each new reason why the plugin is
	// not in place.
	Log *zap.Logger
}

// Installer installs one plugin on this node.
type Installer struct {
	Config

	interval time.Duration // compareInterval, except in tests
	repairs  []time.Time   // within fightTime

	mu        sync.Mutex // guards the fields below
	notReady  error
	installed bool // it was in place once
}

// errNotCompared is why an Installer is not ready before its first comparison.
var errNotCompared = errors.New("the node's files have not been read yet")

// New returns an Installer.
func New(c Config) *Installer {
	return &Installer{Config: c, interval: compareInterval, notReady: errNotCompared}
}

// Ready returns nil while the plugin is in place, and otherwise the reason in one line.
func (i *Installer) Ready() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.notReady
}

// The changes that [Installer.compare] can make.
const (
	changedBinary = "copied the plugin"
	changedList   = "added the plugin's entry"
	changedOther  = "removed the plugin's entry from a list that the runtime does not use"
)

// compare compares the node's files with what they must be, and changes what differs. It returns
// the changes that it has made.
func (i *Installer) compare() (changes []string, err error) {
	copied, err := copyBinary(i.Program, filepath.Join(i.BinDir, i.Name))
	if err != nil {
		return nil, fmt.Errorf("cannot copy the plugin to %s: %w", i.BinDir, err)
	}
	if copied {
		changes = append(changes, changedBinary)
	}
	files, err := readFiles(i.ConfDir)
	if err != nil {
		return changes, err
	}
	used, err := inUse(files)
	if err != nil {
		return changes, fmt.Errorf("%s: %w", i.ConfDir, err)
	}
	more, err := i.edit(files, used)
	return append(changes, more...), err
}

// inUse returns the list that the runtime uses: the first valid file by name.
func inUse(files []file) (file, error) {
	first := slices.IndexFunc(files, func(f file) bool { return f.err == nil })
	switch {
	case len(files) == 0:
		return file{}, errors.New("there is no list yet: waiting for the node's CNI plugin to write it")
	case first < 0:
		return file{}, fmt.Errorf("%s cannot be used: %w", filepath.Base(files[0].path), files[0].err)
	case files[first].list == nil:
		return file{}, fmt.Errorf("%s is the first file and no list: the plugin can only be added to a file NAME%s", filepath.Base(files[first].path), listExtension)
	}
	return files[first], nil
}

// edit adds the entry to the list in use, and removes it from other lists, where an earlier
// comparison may have added it.
func (i *Installer) edit(files []file, used file) (changes []string, err error) {
	for _, f := range files {
		switch {
		case f.list == nil || f.path != used.path && !f.list.mentions(i.Name):
		case f.path != used.path:
			if err := i.takeOut(f); err != nil {
				return changes, err
			}
			changes = append(changes, changedOther)
		case !f.list.has(i.Name, i.Entry):
			text, err := f.list.with(i.Name, i.Entry)
			if err == nil {
				err = f.write(text)
			}
			if err != nil {
				return changes, fmt.Errorf("cannot add the plugin to %s: %w", f.path, err)
			}
			changes = append(changes, changedList)
		}
	}
	return changes, nil
}

func (i *Installer) takeOut(f file) error {
	rest, err := f.list.without(i.Name)
	if err == nil {
		err = f.write(rest.text)
	}
	if err != nil {
		return fmt.Errorf("cannot remove the plugin from %s: %w", f.path, err)
	}
	return nil
}

// Uninstall removes the entry from all lists. The plugin's file stays: see [Installer.RemoveBinary].
func (i *Installer) Uninstall() error {
	removeTemporary(i.BinDir, i.ConfDir)
	files, err := readFiles(i.ConfDir)
	if err != nil {
		return err
	}
	for _, f := range files {
		switch {
		case f.err != nil && bytes.Contains(f.text, []byte(i.Name)):
			return fmt.Errorf("%s seems to have the plugin's entry, and cannot be used: %w", f.path, f.err)
		case f.list == nil || !f.list.mentions(i.Name):
			continue
		}
		if err := i.takeOut(f); err != nil {
			return err
		}
		i.Log.Info("removed the plugin's entry", zap.String("file", f.path))
	}
	return nil
}

// RemoveBinary removes the plugin's file. A runtime that still uses a list with the entry, such
// as for a pod that it is starting, then fails for that pod. CRI-O keeps the list of each pod
// until the pod is deleted.
func (i *Installer) RemoveBinary() error {
	path := filepath.Join(i.BinDir, i.Name)
	err := os.Remove(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	i.Log.Info("removed the plugin", zap.String("file", path))
	return nil
}

// record logs the outcome of a comparison, and keeps it for [Installer.Ready]. It returns
// [ErrFight] if the plugin had to be repaired too often.
func (i *Installer) record(changes []string, err error, now time.Time) error {
	i.mu.Lock()
	was, repaired := i.notReady, i.installed && len(changes) > 0
	i.notReady, i.installed = err, i.installed || err == nil
	i.mu.Unlock()
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		i.Log.Error("the plugin is not in place", zap.Error(err))
	case err == nil && was != nil:
		i.Log.Info("the plugin is in place", zap.Strings("changes", changes))
	case repaired:
		i.Log.Warn("another program removed or changed the plugin: it is in place again", zap.Strings("changes", changes))
	}
	if !repaired {
		return nil
	}
	i.repairs = append(slices.DeleteFunc(i.repairs, func(at time.Time) bool { return now.Sub(at) > fightTime }), now)
	if len(i.repairs) > maxRepairs {
		return fmt.Errorf("%w: it was repaired %d times within %s; last: %s", ErrFight, len(i.repairs), fightTime, strings.Join(changes, ", "))
	}
	return nil
}
