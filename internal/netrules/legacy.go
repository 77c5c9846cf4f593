package netrules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// legacyTables lists the tables of iptables-legacy that exist in this network
// namespace, one to a line. There is no such file where the kernel has no
// legacy iptables, or has not loaded it.
const legacyTables = "/proc/net/ip_tables_names"

// legacyTableExists reports whether iptables-legacy has the table here. In doubt
// it says yes, and the table is read.
func legacyTableExists(table string) bool {
	names, err := os.ReadFile(legacyTables)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	return slices.Contains(strings.Fields(string(names)), table)
}

// Where the legacy backend keeps its lock unless told otherwise, and how to tell it.
const (
	xtablesLock    = "/run/xtables.lock"
	xtablesLockVar = "XTABLES_LOCKFILE"
)

// useReadableLock lets iptables-legacy run on a read-only root file system. It
// insists on a lock file, which it only opens and locks: any file that exists
// will do, and this program's own cannot be taken or replaced by another
// container, as one in a shared directory could.
//
// It sets this process's environment, since go-iptables offers no other way to
// reach that of its children.
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
