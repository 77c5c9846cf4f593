// Package sockets reports which user listens at a TCP port, from the kernel's interface
// sock_diag(7) or, where that is not available, from its tables of sockets: /proc/net/tcp and
// /proc/net/tcp6 (proc_net_tcp(5)).
//
// # Security considerations
//
// Any process of a pod can bind a free port and answer in place of the proxy. Nothing in an
// answer identifies the proxy, because another process can send the same bytes. The kernel
// sets the owner of a socket when the socket is created, and reading the owner needs no
// privilege. The owner distinguishes the proxy from the processes of other users. It does not
// distinguish the proxy from a process with the proxy's UID, or from a root process with
// CAP_SETUID or CAP_CHOWN, which can create a socket with that owner. The result is valid only
// at the moment of reading.
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

// The kernel's tables for the network namespace of this process. The one for IPv6 does not
// exist if the kernel has no IPv6.
const (
	tableIPv4 = "/proc/net/tcp"
	tableIPv6 = "/proc/net/tcp6"
)

// maxTable is the maximum size of a table in bytes. A line has about 150 bytes (about 180 for
// IPv6), so this is more than 150,000 sockets, which no pod with a limit on open files or
// memory has. A larger table is an error, so that a listener cannot hide after the limit.
const maxTable = 32 << 20

// Owners returns the UIDs of the users whose processes may accept connections to
// 127.0.0.1:port. These are the owners of the sockets that listen at 127.0.0.1 or at
// ::ffff:127.0.0.1, its form for IPv6 sockets; if there are none, the owners of those that
// listen at a wildcard address. The kernel chooses in the same order. Two users are possible
// only if their sockets are bound to different devices, as the proxy's socket is during
// graceful shutdown. The result is sorted. It is empty if no process listens.
func Owners(port uint16) ([]uint32, error) {
	all, err := listeners(port)
	return owners(all), err
}

// Connected reports whether a connection from the port from is at 127.0.0.1:port, at an IPv4
// socket, whatever its other address is. No process needs to have accepted it: the kernel has a
// socket for it from the first packet on (SYN_RECV), unless it uses SYN cookies.
func Connected(port, from uint16) (bool, error) {
	connected := false
	err := readTable(tableIPv4, func(table io.Reader) error {
		return eachLine(table, func(fields [][]byte) error {
			connects, err := parseConnection(fields, port, from)
			connected = connected || connects
			return err
		})
	})
	return connected && err == nil, err
}

// listeners returns the sockets of the network namespace that listen at the port.
func listeners(port uint16) ([]listener, error) { return first(port, diagListeners, tableListeners) }

// first returns the result of the first source that has no error, or the last error.
func first(port uint16, sources ...func(uint16) ([]listener, error)) (all []listener, err error) {
	for _, source := range sources {
		if all, err = source(port); err == nil {
			return all, nil
		}
	}
	return nil, err
}

// tableListeners returns the listening sockets from the tables.
func tableListeners(port uint16) (all []listener, err error) {
	for _, path := range []string{tableIPv4, tableIPv6} {
		err := readTable(path, func(table io.Reader) error {
			found, err := parseTable(table, port)
			all = append(all, found...)
			return err
		})
		if err != nil && !(path == tableIPv6 && errors.Is(err, fs.ErrNotExist)) {
			return nil, err
		}
	}
	return all, nil
}

// Explain adds the users that listen at the port to an error of [net.Listen] that says that
// the address is in use. It returns all other errors, and nil, unchanged.
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
		return err // the original error matters more
	}
	switch uids := conflicting(all, at.AddrPort().Addr()); len(uids) {
	case 0: // for example, the socket is bound and does not listen, or was closed meanwhile
		return fmt.Errorf("%w: by a socket that does not listen, or that was closed just now", err)
	case 1:
		return fmt.Errorf("%w: a process of UID %d listens there", err, uids[0])
	default:
		return fmt.Errorf("%w: processes of the UIDs %s listen there", err, strings.Trim(fmt.Sprint(uids), "[]"))
	}
}

// conflicting returns the owners of the sockets that prevent a new socket from listening at
// addr: those at the same address and those at a wildcard address. If addr is a wildcard
// address, all sockets conflict.
func conflicting(all []listener, addr netip.Addr) []uint32 {
	addr = addr.Unmap()
	wildcard := !addr.IsValid() || addr.IsUnspecified() // for ":8000", package net has no address
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
		case addr == loopback:
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

func readTable(path string, parse func(table io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := parse(f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// eachLine calls parse with the columns of each line of a table, except the header. It stops at
// the first error: a malformed line is one, because a table that cannot be parsed does not show
// which sockets exist.
func eachLine(table io.Reader, parse func(fields [][]byte) error) error {
	bounded := &io.LimitedReader{R: table, N: maxTable}
	lines := bufio.NewScanner(bounded)
	lines.Scan() // the header
	for n := 2; lines.Scan(); n++ {
		fields := bytes.Fields(lines.Bytes())
		err := errMalformed
		if len(fields) > columnUID {
			err = parse(fields)
		}
		if bounded.N <= 0 {
			return fmt.Errorf("too many sockets: the table is larger than %d MiB", maxTable>>20)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return lines.Err()
}

// parseTable returns the sockets that listen at the port.
func parseTable(table io.Reader, port uint16) (found []listener, err error) {
	err = eachLine(table, func(fields [][]byte) error {
		l, listens, err := parseListener(fields, port)
		if listens && err == nil {
			found = append(found, l)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// The columns of a table that this package uses, and the states of sockets.
const (
	columnLocal  = 1
	columnRemote = 2
	columnState  = 3
	columnUID    = 7

	stateEstablished = "01"
	stateSynRecv     = "03"
	stateListen      = "0A"
)

var errMalformed = errors.New("malformed")

// parseListener parses one line of a table. The result listens is false for a socket in another
// state or at another port.
func parseListener(fields [][]byte, port uint16) (l listener, listens bool, err error) {
	if string(fields[columnState]) != stateListen {
		return l, false, nil
	}
	addr, at, err := parseEnd(fields[columnLocal])
	if err != nil {
		return l, false, err
	}
	uid, err := strconv.ParseUint(string(fields[columnUID]), 10, 32)
	if err != nil {
		return l, false, errMalformed
	}
	return listener{addr, uint32(uid)}, at == port, nil
}

// parseConnection reports whether a line of a table is a connection from the port from at
// 127.0.0.1:port that is not being closed.
func parseConnection(fields [][]byte, port, from uint16) (bool, error) {
	if state := string(fields[columnState]); state != stateEstablished && state != stateSynRecv {
		return false, nil
	}
	addr, at, err := parseEnd(fields[columnLocal])
	if err != nil {
		return false, err
	}
	_, other, err := parseEnd(fields[columnRemote])
	return err == nil && addr == loopback && at == port && other == from, err
}

// loopback is the address at which the proxy listens.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// parseEnd parses one end of a connection, ADDRESS:PORT.
func parseEnd(field []byte) (netip.Addr, uint16, error) {
	address, hexPort, _ := bytes.Cut(field, []byte(":"))
	port, err := strconv.ParseUint(string(hexPort), 16, 16)
	if err != nil {
		return netip.Addr{}, 0, errMalformed
	}
	addr, err := parseAddress(address)
	return addr, uint16(port), err
}

// parseAddress parses an address in the kernel's format: words of 32 bits, each in hexadecimal
// and in the byte order of the machine.
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
