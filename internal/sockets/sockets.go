// Package sockets reports which user listens at a port of the loopback address, as
// the kernel's table of TCP sockets says (/proc/net/tcp, proc_net_tcp(5)).
//
// # Security considerations
//
// Any process of a pod can bind a free port and answer in the proxy's place; whatever
// such a process sends can be copied. The owner of a socket is set by the kernel when
// the socket is made, and reading it takes no privilege. It tells the proxy from a
// process of any other user. It does not tell the proxy from a process that has the
// proxy's UID, or that is root with CAP_SETUID or CAP_CHOWN and can get a socket with
// that owner. The answer holds for the moment of reading.
package sockets

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The kernel's tables for this process's network namespace. There is none for IPv6
// where the kernel has no IPv6.
const (
	tableIPv4 = "/proc/net/tcp"
	tableIPv6 = "/proc/net/tcp6"
)

// maxTable bounds what is read of one table. A line has some 150 bytes (some 180 for
// IPv6), so this is more than 150,000 sockets, which no pod with a limit on open files
// or memory has. A larger table is an error, so that a listener cannot hide behind it.
const maxTable = 32 << 20

// Owners returns the users (UIDs) whose processes may accept connections to
// 127.0.0.1:port: the owners of the sockets that listen at that address, in its form for
// IPv6 sockets (::ffff:127.0.0.1) too, or, where there is none, at a wildcard address. That
// is the order in which the kernel chooses. There is rarely more than one user: it takes
// sockets that are bound to different devices, as the proxy's is during its shutdown. The
// result is sorted; it is empty where no process listens.
func Owners(port uint16) ([]uint32, error) {
	all, err := listeners(port)
	return owners(all), err
}

// listeners returns the sockets of the network namespace that listen at the port.
func listeners(port uint16) ([]listener, error) {
	var all []listener
	for _, table := range []string{tableIPv4, tableIPv6} {
		found, err := readTable(table, port)
		if err != nil && !(table == tableIPv6 && errors.Is(err, fs.ErrNotExist)) {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// Explain adds to an error of [net.Listen] which users listen at the port, if the error is
// that the address is in use. It returns other errors as they are, also nil.
func Explain(err error) error {
	failed, ok := errors.AsType[*net.OpError](err)
	if !ok || !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	at, ok := failed.Addr.(*net.TCPAddr)
	if !ok {
		return err
	}
	all, readErr := listeners(at.AddrPort().Port())
	if readErr != nil {
		return err // which has the reason
	}
	switch uids := conflicting(all, at.AddrPort().Addr()); len(uids) {
	case 0: // a socket may be bound and not listen, or be gone by now
		return fmt.Errorf("%w; no process listens there: a socket that does not listen holds the port, or has just released it", err)
	case 1:
		return fmt.Errorf("%w: a process of UID %d listens there", err, uids[0])
	default:
		return fmt.Errorf("%w: processes of the UIDs %s listen there", err, strings.Trim(fmt.Sprint(uids), "[]"))
	}
}

// conflicting returns the owners of the sockets that keep a new socket from listening at
// the address: those at the same address, and, as a wildcard address covers all others, those
// at a wildcard address or, for a wildcard address, all.
func conflicting(all []listener, addr netip.Addr) []uint32 {
	addr = addr.Unmap()
	wildcard := !addr.IsValid() || addr.IsUnspecified() // package net reports ":8000" without an address
	var uids []uint32
	for _, l := range all {
		if other := l.addr.Unmap(); wildcard || other.IsUnspecified() || other == addr {
			uids = append(uids, l.uid)
		}
	}
	slices.Sort(uids)
	return slices.Compact(uids)
}

// listener is a socket that listens at the port.
type listener struct {
	addr netip.Addr
	uid  uint32
}

func owners(all []listener) []uint32 {
	var exact, wildcard []uint32
	for _, l := range all {
		switch addr := l.addr.Unmap(); {
		case addr == netip.AddrFrom4([4]byte{127, 0, 0, 1}):
			exact = append(exact, l.uid)
		case addr.IsUnspecified():
			wildcard = append(wildcard, l.uid)
		}
	}
	uids := exact
	if len(uids) == 0 {
		uids = wildcard
	}
	slices.Sort(uids)
	return slices.Compact(uids)
}

func readTable(path string, port uint16) ([]listener, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	found, err := parseTable(f, port)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return found, nil
}

// parseTable returns the sockets that listen at the port. A line that is not as the
// kernel writes it is an error: a table that cannot be understood proves nothing.
func parseTable(table io.Reader, port uint16) ([]listener, error) {
	bounded := &io.LimitedReader{R: table, N: maxTable}
	lines := bufio.NewScanner(bounded)
	lines.Scan() // the names of the columns
	var found []listener
	for n := 2; lines.Scan(); n++ {
		l, listens, err := parseLine(lines.Bytes(), port)
		if bounded.N <= 0 {
			return nil, fmt.Errorf("too many sockets: the table is larger than %d MiB", maxTable>>20)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if listens {
			found = append(found, l)
		}
	}
	return found, lines.Err()
}

// The columns that are read, and the state of a socket that listens.
const (
	columnLocal = 1
	columnState = 3
	columnUID   = 7
	stateListen = "0A"
)

var errMalformed = errors.New("malformed")

// parseLine returns what the line says; listens is false for a socket in another state
// or at another port.
func parseLine(line []byte, port uint16) (l listener, listens bool, err error) {
	fields := bytes.Fields(line)
	if len(fields) <= columnUID {
		return l, false, errMalformed
	}
	if string(fields[columnState]) != stateListen {
		return l, false, nil
	}
	address, hexPort, _ := bytes.Cut(fields[columnLocal], []byte(":"))
	at, err := strconv.ParseUint(string(hexPort), 16, 16)
	if err != nil {
		return l, false, errMalformed
	}
	if l.addr, err = parseAddress(address); err != nil {
		return l, false, err
	}
	uid, err := strconv.ParseUint(string(fields[columnUID]), 10, 32)
	if err != nil {
		return l, false, errMalformed
	}
	l.uid = uint32(uid)
	return l, uint16(at) == port, nil
}

// parseAddress reads an address as the kernel writes it: words of 32 bits, each in
// hexadecimal and in the machine's byte order.
func parseAddress(text []byte) (netip.Addr, error) {
	raw := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(raw, text); err != nil || len(raw)%4 != 0 {
		return netip.Addr{}, errMalformed
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.Addr{}, errMalformed
	}
	return addr, nil
}
