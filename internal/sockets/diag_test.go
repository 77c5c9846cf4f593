package sockets

import (
	"cmp"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// open listens, and returns the port.
func open(t *testing.T, c net.ListenConfig, network, address string) uint16 {
	t.Helper()
	l, err := c.Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// TestDiagAgreesWithTables compares both sources of listening sockets, for sockets of each kind.
func TestDiagAgreesWithTables(t *testing.T) {
	ordinary, multipath, owned := net.ListenConfig{}, net.ListenConfig{}, net.ListenConfig{}
	ordinary.SetMultipathTCP(false)
	multipath.SetMultipathTCP(true)
	owned.SetMultipathTCP(false)
	owned.Control = func(_, _ string, c syscall.RawConn) (err error) {
		if os.Getuid() != 0 {
			return nil
		}
		return errors.Join(c.Control(func(fd uintptr) { err = syscall.Fchown(int(fd), 1501, -1) }), err)
	}
	for name, port := range map[string]uint16{
		"loopback":      open(t, ordinary, "tcp4", "127.0.0.1:0"),
		"wildcard":      open(t, ordinary, "tcp4", "0.0.0.0:0"),
		"dual stack":    open(t, ordinary, "tcp", ":0"),
		"IPv6 loopback": open(t, ordinary, "tcp6", "[::1]:0"),
		"MPTCP":         open(t, multipath, "tcp4", "127.0.0.1:0"),
		"another user":  open(t, owned, "tcp4", "127.0.0.1:0"),
	} {
		got, err := diagListeners(port)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want, err := tableListeners(port)
		if err != nil || len(want) != 1 {
			t.Fatalf("%s: the tables have %v, %v; want one socket", name, want, err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		if name == "another user" && os.Getuid() == 0 && got[0].uid != 1501 {
			t.Errorf("%s: UID %d, want 1501", name, got[0].uid)
		}
	}
}

// TestDiagOfSharedPort checks a port at which several sockets listen, and one at which none does.
func TestDiagOfSharedPort(t *testing.T) {
	port := open(t, net.ListenConfig{}, "tcp4", "127.0.0.1:0")
	at := (&net.TCPAddr{IP: net.IPv6loopback, Port: int(port)}).String()
	open(t, net.ListenConfig{}, "tcp6", at)
	order := func(a, b listener) int { return cmp.Compare(a.addr.String(), b.addr.String()) }
	got, err := diagListeners(port)
	want, tableErr := tableListeners(port)
	slices.SortFunc(got, order)
	slices.SortFunc(want, order)
	if err != nil || tableErr != nil || len(want) != 2 || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v, %v", got, err, want, tableErr)
	}
	if got, err := diagListeners(0xffff); err != nil || len(got) > 0 {
		if want, _ := tableListeners(0xffff); len(want) == 0 {
			t.Errorf("port 65535: %v, %v, want none", got, err)
		}
	}
}

// message returns a netlink message. Its sequence number is that of a request for IPv4.
func message(kind, flags uint16, data []byte) []byte {
	b := make([]byte, syscall.SizeofNlMsghdr, syscall.SizeofNlMsghdr+len(data))
	binary.NativeEndian.PutUint32(b, uint32(syscall.SizeofNlMsghdr+len(data)))
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[8:], syscall.AF_INET)
	return append(b, data...)
}

// socketAt returns a struct inet_diag_msg of a socket at 127.0.0.1:port of UID 1501.
func socketAt(port uint16) []byte {
	b := make([]byte, diagMessageSize)
	b[0] = syscall.AF_INET
	binary.BigEndian.PutUint16(b[4:], port)
	copy(b[messageAddress:], []byte{127, 0, 0, 1})
	binary.NativeEndian.PutUint32(b[messageUID:], 1501)
	return b
}

func errorCode(errno syscall.Errno) []byte {
	return binary.NativeEndian.AppendUint32(nil, uint32(-int32(errno)))
}

// TestReadAnswer checks the answers of the kernel that are refused, so that the tables are read
// instead: an incomplete list could hide a listener.
func TestReadAnswer(t *testing.T) {
	var (
		done     = message(syscall.NLMSG_DONE, syscall.NLM_F_MULTI, errorCode(0))
		socket   = message(sockDiagByFamily, syscall.NLM_F_MULTI, socketAt(8000))
		other    = message(sockDiagByFamily, syscall.NLM_F_MULTI, socketAt(8001))
		want     = listener{loopback, 1501}
		foreign  = slices.Clone(socket)
		otherOne = slices.Clone(socket)
	)
	binary.NativeEndian.PutUint32(foreign[8:], syscall.AF_INET6)
	otherOne[syscall.SizeofNlMsghdr] = syscall.AF_INET6
	for name, c := range map[string]struct {
		datagrams [][]byte
		found     int
		err       string // none if empty
	}{
		"one":                     {[][]byte{slices.Concat(socket, done)}, 1, ""},
		"in two datagrams":        {[][]byte{socket, slices.Concat(socket, done)}, 2, ""},
		"another port":            {[][]byte{slices.Concat(other, done)}, 0, ""},
		"none":                    {[][]byte{done}, 0, ""},
		"no such module":          {[][]byte{message(syscall.NLMSG_ERROR, 0, errorCode(syscall.ENOENT))}, 0, "no such file or directory"},
		"an error at the end":     {[][]byte{socket, message(syscall.NLMSG_DONE, 0, errorCode(syscall.ENOMEM))}, 0, "cannot allocate memory"},
		"an error without code":   {[][]byte{message(syscall.NLMSG_ERROR, 0, nil)}, 0, "malformed"},
		"interrupted":             {[][]byte{socket, message(syscall.NLMSG_DONE, dumpInterrupted, errorCode(0))}, 0, "interrupted"},
		"of another request":      {[][]byte{foreign, done}, 0, "another request"},
		"of another family":       {[][]byte{otherOne, done}, 0, "malformed"},
		"of another type":         {[][]byte{message(999, 0, socketAt(8000))}, 0, "message type 999"},
		"too short":               {[][]byte{message(sockDiagByFamily, 0, socketAt(8000)[:60])}, 0, "malformed"},
		"no message":              {[][]byte{{1, 2, 3}}, 0, "malformed"},
		"no end":                  {[][]byte{socket}, 0, "EOF"},
		"longer than any table":   {[][]byte{nil}, 0, "too many sockets"},
		"nothing within a second": {nil, 0, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			endless := slices.Repeat(socket, 300)
			receive := func(b []byte) (int, error) {
				if strings.HasPrefix(name, "longer") {
					return copy(b, endless), nil
				}
				if len(c.datagrams) == 0 {
					return 0, errors.New("EOF")
				}
				n := copy(b, c.datagrams[0])
				c.datagrams = c.datagrams[1:]
				return n, nil
			}
			found, err := readAnswer(receive, syscall.AF_INET, 8000)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("error %v, want one with %q", err, c.err)
			}
			if err == nil && len(found) != c.found || err == nil && c.found > 0 && found[0] != want {
				t.Errorf("%v, want %d of %v", found, c.found, want)
			}
		})
	}
}

// TestFirst checks that the tables are read where sock_diag is not available.
func TestFirst(t *testing.T) {
	fails := func(uint16) ([]listener, error) { return []listener{{loopback, 1}}, errDiag }
	works := func(uint16) ([]listener, error) { return []listener{{loopback, 2}}, nil }
	if all, err := first(1, fails, works); err != nil || len(all) != 1 || all[0].uid != 2 {
		t.Errorf("%v, %v, want the second source", all, err)
	}
	if all, err := first(1, fails, fails); !errors.Is(err, errDiag) || all != nil {
		t.Errorf("%v, %v, want the error and no sockets", all, err)
	}
}
