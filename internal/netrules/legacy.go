package netrules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"
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

// legacyState is what the tables of iptables-legacy have in this namespace, as far as this
// package needs it.
type legacyState struct {
	// ours are the chains of this package and of azure-workload-identity.
	ours []string
	// kubernetes is a chain of kubelet or kube-proxy. It is empty if there is none.
	kubernetes string
}

// readLegacy reads the names of the chains from the kernel. It needs neither iptables nor the
// capability NET_RAW, without which iptables-legacy cannot read them. It creates no table.
func readLegacy() (s legacyState, err error) {
	names, err := os.ReadFile(legacyTables)
	if err != nil {
		return s, nil // no legacy iptables, or a user who may not read it: there is no other list
	}
	for _, table := range strings.Fields(string(names)) {
		chains, err := legacyChains(table)
		if err != nil {
			return s, &Error{Cause: fmt.Sprintf("reading the %s table of iptables-legacy: %v", table, err)}
		}
		for _, chain := range chains {
			switch {
			case isOurs(chain):
				s.ours = append(s.ours, chain)
			case strings.HasPrefix(chain, kubernetesChains):
				s.kubernetes = "the chain " + chain
			}
		}
	}
	return s, nil
}

// Options of a socket for the rules of iptables-legacy, from <linux/netfilter_ipv4/ip_tables.h>,
// with the sizes of struct ipt_getinfo and of the header of struct ipt_get_entries.
const (
	soGetInfo    = 64
	soGetEntries = 65

	infoSize          = 84
	infoSizeOffset    = 80
	entriesHeaderSize = 40
	tableNameSize     = 32
)

// maxLegacyRules is the maximum size of a table, in bytes. It is more than 100,000 rules.
const maxLegacyRules = 32 << 20

// legacyChains returns the names of a table's chains, except the built-in ones.
func legacyChains(table string) ([]string, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	for attempt := 1; ; attempt++ {
		info := make([]byte, infoSize)
		copy(info[:tableNameSize-1], table)
		if err := getsockopt(fd, soGetInfo, info); err != nil {
			return nil, err
		}
		size := binary.NativeEndian.Uint32(info[infoSizeOffset:])
		if size > maxLegacyRules {
			return nil, fmt.Errorf("the rules have %d bytes, more than %d", size, maxLegacyRules)
		}
		entries := make([]byte, entriesHeaderSize+size)
		copy(entries[:tableNameSize-1], table)
		binary.NativeEndian.PutUint32(entries[tableNameSize:], size)
		err := getsockopt(fd, soGetEntries, entries)
		if errors.Is(err, syscall.EAGAIN) && attempt < maxAttempts {
			continue // another process changed the rules since soGetInfo
		}
		if err != nil {
			return nil, err
		}
		return parseLegacyChains(entries[entriesHeaderSize:])
	}
}

func getsockopt(fd, option int, value []byte) error {
	length := uint32(len(value))
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(fd), syscall.IPPROTO_IP, uintptr(option),
		uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// The layout of struct ipt_entry, and of struct xt_entry_target after it.
const (
	entryTargetOffset = 88
	entryNextOffset   = 90
	entrySize         = 112
	targetName        = 2
	targetNameSize    = 29
	targetSize        = 32
	chainNameSize     = 30
)

// errorTarget is the target of an entry that begins a chain. The chain's name follows. The last
// entry of a table has this target, too, and the name "ERROR".
const errorTarget = "ERROR"

var errLegacyRules = errors.New("malformed rules")

func parseLegacyChains(entries []byte) ([]string, error) {
	var chains []string
	for len(entries) > 0 {
		if len(entries) < entrySize {
			return nil, errLegacyRules
		}
		target := int(binary.NativeEndian.Uint16(entries[entryTargetOffset:]))
		next := int(binary.NativeEndian.Uint16(entries[entryNextOffset:]))
		if next > len(entries) || target < entrySize || target+targetSize > next {
			return nil, errLegacyRules
		}
		data := entries[target:next]
		if text(data[targetName:targetName+targetNameSize]) == errorTarget && len(data) >= targetSize+chainNameSize {
			if name := text(data[targetSize : targetSize+chainNameSize]); name != errorTarget {
				chains = append(chains, name)
			}
		}
		entries = entries[next:]
	}
	return chains, nil
}
