package netrules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// legacyTables lists the tables of iptables-legacy that exist in this network namespace, one
// per line. The file does not exist if the kernel has no legacy iptables, or has not loaded
// it.
const legacyTables = "/proc/net/ip_tables_names"

// legacyTableExists reports whether the table of iptables-legacy exists in this namespace. It
// returns true if that cannot be determined, so that the table is read.
func legacyTableExists(table string) bool {
	names, err := os.ReadFile(legacyTables)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return slices.Contains(strings.Fields(string(names)), table)
}

// The default lock file of the legacy backend, and the environment variable that changes it.
const (
	xtablesLock    = "/run/xtables.lock"
	xtablesLockVar = "XTABLES_LOCKFILE"
)

// useReadableLock lets iptables-legacy run on a read-only root file system. iptables-legacy
// requires a lock file, which it only opens and locks, so any existing file works. This uses
// the executable of this process: another container cannot lock or replace it, as it could a
// file in a shared directory.
//
// It sets the environment variable in this process, since go-iptables has no other way to set
// it for its child processes.
func useReadableLock() error {
	if os.Getenv(xtablesLockVar) != "" {
		return nil
	}
	f, err := os.OpenFile(xtablesLock, os.O_RDONLY|os.O_CREATE, 0o600)
	if err == nil {
		return f.Close()
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("no file to lock for iptables-legacy: %w", err)
	}
	return os.Setenv(xtablesLockVar, self)
}
