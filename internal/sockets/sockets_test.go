package sockets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"imds-oidc-proxy/test/kit/local"
)

// Recorded from Linux 6.18 on amd64, without the columns after the inode.
const (
	header  = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	header6 = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	none6   = "00000000000000000000000000000000:0000"
	rest    = " 00000000:00000000 00:00000000 00000000 "
)

// table4 and table6 return a table. Each line is a local address, a state and a UID.
func table4(sockets ...[3]string) string {
	return table(header, "00000000:0000", sockets)
}

func table6(sockets ...[3]string) string {
	return table(header6, none6, sockets)
}

func table(header, remote string, sockets [][3]string) string {
	var b strings.Builder
	b.WriteString(header)
	for _, s := range sockets {
		b.WriteString("   0: " + s[0] + " " + remote + " " + s[1] + rest + s[2] + "        0 1150 1 000000006aec869a 100 0 0 10 0\n")
	}
	return b.String()
}

func requireLittleEndian(t *testing.T) {
	t.Helper()
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the tables were recorded on a little-endian machine, as CI's is")
	}
}

func TestOwners(t *testing.T) {
	requireLittleEndian(t)
	const (
		loopback = "0100007F:1F40"
		any4     = "00000000:1F40"
		any6     = "00000000000000000000000000000000:1F40"
		mapped   = "0000000000000000FFFF00000100007F:1F40"
		mapped0  = "0000000000000000FFFF000000000000:1F40"
		other4   = "0700F40A:1F40" // 10.244.0.7
		other6   = "00000000000000000000000001000000:1F40"
	)
	for name, tt := range map[string]struct {
		four, six string
		want      []uint32 // nil: no process listens
		wantErr   string
	}{
		"loopback":              {four: table4([3]string{loopback, "0A", "1501"}), want: []uint32{1501}},
		"wildcard":              {four: table4([3]string{any4, "0A", "1000"}), want: []uint32{1000}},
		"IPv6 wildcard":         {four: table4(), six: table6([3]string{any6, "0A", "1000"}), want: []uint32{1000}},
		"mapped":                {four: table4(), six: table6([3]string{mapped, "0A", "1000"}), want: []uint32{1000}},
		"mapped wildcard":       {four: table4(), six: table6([3]string{mapped0, "0A", "1000"}), want: []uint32{1000}},
		"exact before wildcard": {four: table4([3]string{any4, "0A", "1"}, [3]string{loopback, "0A", "1501"}), six: table6([3]string{any6, "0A", "2"}), want: []uint32{1501}},
		"two of one user":       {four: table4([3]string{loopback, "0A", "1501"}, [3]string{loopback, "0A", "1501"}), want: []uint32{1501}},
		"two users":             {four: table4([3]string{loopback, "0A", "1501"}), six: table6([3]string{mapped, "0A", "1000"}), want: []uint32{1000, 1501}},
		"two users on wildcards": {four: table4([3]string{any4, "0A", "1501"}), six: table6([3]string{any6, "0A", "0"}),
			want: []uint32{0, 1501}},
		"a connection":      {four: table4([3]string{loopback, "01", "1000"})},
		"another port":      {four: table4([3]string{"0100007F:1F41", "0A", "1000"})},
		"another address":   {four: table4([3]string{other4, "0A", "1000"}), six: table6([3]string{other6, "0A", "1000"})},
		"the greatest UID":  {four: table4([3]string{loopback, "0A", "4294967295"}), want: []uint32{math.MaxUint32}},
		"no IPv6 table":     {four: table4([3]string{loopback, "0A", "1501"}), want: []uint32{1501}},
		"no line":           {four: header},
		"nothing":           {four: ""},
		"short line":        {four: header + "   0: 0100007F:1F40 00000000:0000 0A\n", wantErr: "line 2: malformed"},
		"blank line":        {four: header + "\n", wantErr: "line 2: malformed"},
		"UID not a number":  {four: table4([3]string{loopback, "0A", "-1"}), wantErr: "line 2: malformed"},
		"UID too large":     {four: table4([3]string{loopback, "0A", "4294967296"}), wantErr: "line 2: malformed"},
		"no port":           {four: table4([3]string{"0100007F", "0A", "1501"}), wantErr: "line 2: malformed"},
		"port too large":    {four: table4([3]string{"0100007F:11F40", "0A", "1501"}), wantErr: "line 2: malformed"},
		"address too short": {four: table4([3]string{"01007F:1F40", "0A", "1501"}), wantErr: "line 2: malformed"},
		"address too long":  {four: table4([3]string{"0100007F0100007F:1F40", "0A", "1501"}), wantErr: "line 2: malformed"},
		"address not hex":   {four: table4([3]string{"0100007G:1F40", "0A", "1501"}), wantErr: "line 2: malformed"},
		"no address":        {four: table4([3]string{":1F40", "0A", "1501"}), wantErr: "line 2: malformed"},
		"endless line":      {four: header + strings.Repeat("x", 100_000), wantErr: "token too long"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ownersIn(8000, tt.four, tt.six)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("got UIDs %d, %v, want error with %q", got, err, tt.wantErr)
				}
				return
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got UIDs %d, %v, want %d", got, err, tt.want)
			}
		})
	}
}

func ownersIn(port uint16, tables ...string) ([]uint32, error) {
	var all []listener
	for _, table := range tables {
		found, err := parseTable(strings.NewReader(table), port)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return owners(all), nil
}

// endless is a reader that repeats one line and counts the bytes that were read.
type endless struct {
	line []byte
	read int
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		n += copy(p[n:], e.line[(e.read+n)%len(e.line):])
	}
	e.read += n
	return n, nil
}

// TestTableIsBounded reads an endless table of listening sockets and one of other sockets.
func TestTableIsBounded(t *testing.T) {
	for _, line := range []string{
		strings.TrimPrefix(table4([3]string{"0100007F:0050", "0A", "0"}), header),
		strings.TrimPrefix(table4([3]string{"0100007F:0050", "01", "0"}), header),
	} {
		table := &endless{line: []byte(line)}
		_, err := parseTable(table, 8000)
		if err == nil || !strings.Contains(err.Error(), "too many sockets") || table.read > maxTable+1 {
			t.Errorf("%q: got %v after %d bytes, want an error after at most %d", line, err, table.read, maxTable)
		}
	}
}

// TestReadError checks that an error while reading the table is returned.
func TestReadError(t *testing.T) {
	broken := errors.New("broken")
	table := io.MultiReader(strings.NewReader(table4([3]string{"0100007F:1F40", "0A", "1501"})), iotest.ErrReader(broken))
	if _, err := parseTable(table, 8000); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

// TestOwnersOfRealSockets checks that Owners returns the user of this process for a socket at
// each kind of address, and no user after the socket is closed.
func TestOwnersOfRealSockets(t *testing.T) {
	for name, listen := range map[string]func(*testing.T) (port uint16, closeSocket func()){
		"127.0.0.1":        func(t *testing.T) (uint16, func()) { return listenOn(t, "tcp4", "127.0.0.1:0") },
		"0.0.0.0":          func(t *testing.T) (uint16, func()) { return listenOn(t, "tcp4", "0.0.0.0:0") },
		"::":               func(t *testing.T) (uint16, func()) { return listenOn(t, "tcp", "[::]:0") },
		"::ffff:127.0.0.1": listenMapped,
	} {
		t.Run(name, func(t *testing.T) {
			port, closeSocket := listen(t)
			got, err := Owners(port)
			if err != nil || !slices.Equal(got, []uint32{uint32(os.Getuid())}) {
				t.Errorf("got UIDs %d, %v, want %d", got, err, os.Getuid())
			}
			closeSocket()
			if got, err := Owners(port); err != nil || len(got) > 0 {
				t.Errorf("closed: got UIDs %d, %v, want none", got, err)
			}
		})
	}
}

// TestConnected checks which lines of a table are a connection from a port at 127.0.0.1:8000.
func TestConnected(t *testing.T) {
	requireLittleEndian(t)
	const from = 0xC001
	for name, tt := range map[string]struct {
		local, remote, state string
		want                 bool
		wantErr              bool
	}{
		"not accepted":       {"0100007F:1F40", "0700F40A:C001", "03", true, false},
		"established":        {"0100007F:1F40", "0100007F:C001", "01", true, false},
		"over":               {"0100007F:1F40", "0700F40A:C001", "06", false, false},
		"listener":           {"0100007F:1F40", "00000000:0000", "0A", false, false},
		"another port":       {"0100007F:1F41", "0700F40A:C001", "03", false, false},
		"from another port":  {"0100007F:1F40", "0700F40A:C002", "03", false, false},
		"another address":    {"0700F40A:1F40", "0700F40A:C001", "03", false, false},
		"the other end":      {"0700F40A:C001", "0100007F:1F40", "01", false, false},
		"malformed remote":   {"0100007F:1F40", "0700F40A", "03", false, true},
		"malformed local":    {"0100007F:x", "0700F40A:C001", "03", false, true},
		"malformed, ignored": {"x", "x", "06", false, false},
	} {
		line := "   0: " + tt.local + " " + tt.remote + " " + tt.state + rest + "0        0 1150 1 000000006aec869a 100 0 0 10 0\n"
		connected := false
		err := eachLine(strings.NewReader(header+line), func(fields [][]byte) (err error) {
			connected, err = parseConnection(fields, 8000, from)
			return err
		})
		if connected != tt.want || (err != nil) != tt.wantErr {
			t.Errorf("%s: got %t, %v, want %t", name, connected, err, tt.want)
		}
	}
}

// TestConnectedOfRealSockets checks a connection that no process has accepted.
func TestConnectedOfRealSockets(t *testing.T) {
	port, _ := listenOn(t, "tcp4", "127.0.0.1:0")
	conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from := conn.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	for _, tt := range []struct {
		port, from uint16
		want       bool
	}{{port, from, true}, {port, from + 1, false}, {port + 1, from, false}} {
		if got, err := Connected(tt.port, tt.from); err != nil || got != tt.want {
			t.Errorf("Connected(%d, %d) = %t, %v, want %t", tt.port, tt.from, got, err, tt.want)
		}
	}
}

// TestExplain checks that the error for a port in use names the user that listens there.
func TestExplain(t *testing.T) {
	port, _ := listenOn(t, "tcp4", "127.0.0.1:0")
	listens := fmt.Sprintf(": a process of UID %d listens there", os.Getuid())
	for _, address := range []string{"127.0.0.1", "", "0.0.0.0"} {
		l, err := net.Listen("tcp4", net.JoinHostPort(address, strconv.Itoa(int(port))))
		if err == nil {
			l.Close()
			t.Fatalf("%q: a second listener at port %d", address, port)
		}
		if got := Explain(err); got.Error() != err.Error()+listens || !errors.Is(got, syscall.EADDRINUSE) {
			t.Errorf("%q: got %v", address, got)
		}
	}
	_, other := net.Listen("tcp", "192.0.2.1:1") // an address of no device
	for _, err := range []error{nil, other, syscall.EADDRINUSE} {
		if got := Explain(err); got != err {
			t.Errorf("got %v, want %v", got, err)
		}
	}
}

// TestExplainBound checks the error for a port that a socket holds without listening.
func TestExplainBound(t *testing.T) {
	_, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", local.BoundPort(t)))
	if got := Explain(err); got == nil || !strings.HasSuffix(got.Error(), "address already in use: by a socket that does not listen, or that was closed just now") {
		t.Errorf("got %v", got)
	}
}

func TestConflicting(t *testing.T) {
	loopback, any4, any6, other := netip.MustParseAddr("127.0.0.1"), netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.MustParseAddr("10.244.0.7")
	all := []listener{{loopback, 1}, {other, 2}, {netip.MustParseAddr("::ffff:127.0.0.1"), 3}, {any6, 4}, {other, 2}}
	for _, tt := range []struct {
		addr netip.Addr
		want []uint32
	}{
		{loopback, []uint32{1, 3, 4}}, {other, []uint32{2, 4}}, {any4, []uint32{1, 2, 3, 4}}, {any6, []uint32{1, 2, 3, 4}}, {netip.Addr{}, []uint32{1, 2, 3, 4}},
	} {
		if got := conflicting(all, tt.addr); !slices.Equal(got, tt.want) {
			t.Errorf("%v: got UIDs %d, want %d", tt.addr, got, tt.want)
		}
	}
}

func listenOn(t *testing.T, network, address string) (port uint16, closeSocket func()) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), func() { l.Close() }
}

// listenMapped listens at ::ffff:127.0.0.1 with an IPv6 socket. It uses system calls, because
// package net would use an IPv4 socket for this address.
func listenMapped(t *testing.T) (port uint16, closeSocket func()) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "mapped")
	t.Cleanup(func() { f.Close() })
	address := &syscall.SockaddrInet6{Addr: [16]byte(net.IPv4(127, 0, 0, 1).To16())}
	if err := errors.Join(syscall.Bind(fd, address), syscall.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(bound.(*syscall.SockaddrInet6).Port), func() { f.Close() }
}

// FuzzParseTable checks that no table makes the parser panic or report more sockets than the
// table has.
func FuzzParseTable(f *testing.F) {
	f.Add([]byte(table4([3]string{"0100007F:1F40", "0A", "1501"})))
	f.Add([]byte(table6([3]string{"0000000000000000FFFF00000100007F:1F40", "0A", "1000"})))
	f.Fuzz(func(t *testing.T, table []byte) {
		found, err := parseTable(bytes.NewReader(table), 8000)
		if err != nil && found != nil {
			t.Errorf("got %v beside the error %v", found, err)
		}
		if len(found) > bytes.Count(table, []byte("0A")) {
			t.Errorf("got %d listeners of %q", len(found), table)
		}
	})
}
