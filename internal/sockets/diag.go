package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
)

// The kernel's interface sock_diag(7), of which these are the constants, lists the listening
// sockets alone. For a read of /proc/net/tcp the kernel walks the hash table of all connections of
// the node: in a pod without connections, 2 ms of CPU time for each read of a table with 262,144
// entries, and four such reads for one port. The start of each pod has several of them.
const (
	netlinkSockDiag  = 4
	sockDiagByFamily = 20
	dumpInterrupted  = 0x10 // NLM_F_DUMP_INTR: the list changed meanwhile, and may be incomplete

	diagStateListen = 1 << 10 // TCP_LISTEN, as a set of states

	// struct inet_diag_req_v2 and struct inet_diag_msg. Both have a struct inet_diag_sockid.
	diagRequestSize = 56
	diagMessageSize = 72
	requestStates   = 4 // offset
	requestPort     = 8
	messageAddress  = 8
	messageUID      = 64
)

// diagTimeout bounds the wait for an answer. The kernel answers at once.
const diagTimeout = time.Second

// diagListeners returns the sockets of the network namespace that listen at the port, from
// sock_diag. An error means that this kernel or a seccomp profile does not allow it, or that the
// answer cannot be trusted: the tables have the same sockets then.
func diagListeners(port uint16) (all []listener, err error) {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkSockDiag)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer syscall.Close(fd)
	wait := syscall.NsecToTimeval(diagTimeout.Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	for _, family := range []byte{syscall.AF_INET, syscall.AF_INET6} {
		if err := syscall.Sendto(fd, diagRequest(family, port), 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
			return nil, os.NewSyscallError("sendto", err)
		}
		found, err := readAnswer(func(b []byte) (int, error) { return receive(fd, b) }, family, port)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// diagRequest returns the request for the listening sockets of a family at a port. Its sequence
// number is the family, so that no answer is taken for that to another request.
func diagRequest(family byte, port uint16) []byte {
	request := make([]byte, syscall.SizeofNlMsghdr+diagRequestSize)
	native := binary.NativeEndian
	native.PutUint32(request, uint32(len(request)))
	native.PutUint16(request[4:], sockDiagByFamily)
	native.PutUint16(request[6:], syscall.NLM_F_REQUEST|syscall.NLM_F_DUMP)
	native.PutUint32(request[8:], uint32(family))
	body := request[syscall.SizeofNlMsghdr:]
	body[0], body[1] = family, syscall.IPPROTO_TCP
	native.PutUint32(body[requestStates:], diagStateListen)
	binary.BigEndian.PutUint16(body[requestPort:], port)
	return request
}

// receive reads a datagram of the kernel. Another process can send to the socket too.
func receive(fd int, b []byte) (int, error) {
	for {
		n, from, err := syscall.Recvfrom(fd, b, 0)
		if err != nil {
			return 0, os.NewSyscallError("recvfrom", err)
		}
		if sender, ok := from.(*syscall.SockaddrNetlink); ok && sender.Pid == 0 {
			return n, nil
		}
	}
}

var errDiag = errors.New("sock_diag")

// readAnswer reads the answer to diagRequest, datagram by datagram, until its end.
func readAnswer(receive func([]byte) (int, error), family byte, port uint16) (found []listener, err error) {
	buffer := make([]byte, 32<<10) // more than the kernel puts into a datagram
	for read := 0; read <= maxTable; {
		n, err := receive(buffer)
		if err != nil {
			return nil, err
		}
		read += n
		messages, err := syscall.ParseNetlinkMessage(buffer[:n])
		if err != nil || len(messages) == 0 {
			return nil, fmt.Errorf("%w: %w", errDiag, errMalformed)
		}
		for _, m := range messages {
			switch {
			case m.Header.Seq != uint32(family):
				return nil, fmt.Errorf("%w: an answer to another request", errDiag)
			case m.Header.Flags&dumpInterrupted != 0:
				return nil, fmt.Errorf("%w: interrupted", errDiag)
			case m.Header.Type == syscall.NLMSG_DONE || m.Header.Type == syscall.NLMSG_ERROR:
				return found, status(m.Data)
			case m.Header.Type != sockDiagByFamily:
				return nil, fmt.Errorf("%w: message type %d", errDiag, m.Header.Type)
			}
			l, at, err := parseMessage(m.Data, family)
			if err != nil {
				return nil, err
			}
			if at == port {
				found = append(found, l)
			}
		}
	}
	return nil, fmt.Errorf("%w: too many sockets: more than %d MiB", errDiag, maxTable>>20)
}

// status returns the error with which the kernel ends an answer, or nil.
func status(data []byte) error {
	if len(data) < 4 {
		return fmt.Errorf("%w: %w", errDiag, errMalformed)
	}
	if code := int32(binary.NativeEndian.Uint32(data)); code != 0 {
		return fmt.Errorf("%w: %w", errDiag, syscall.Errno(-code))
	}
	return nil
}

// parseMessage parses a struct inet_diag_msg.
func parseMessage(data []byte, family byte) (l listener, port uint16, err error) {
	if len(data) < diagMessageSize || data[0] != family {
		return l, 0, fmt.Errorf("%w: %w", errDiag, errMalformed)
	}
	address := data[messageAddress:][:4]
	if family == syscall.AF_INET6 {
		address = data[messageAddress:][:16]
	}
	l.addr, _ = netip.AddrFromSlice(address) // 4 or 16 bytes
	l.uid = binary.NativeEndian.Uint32(data[messageUID:])
	return l, binary.BigEndian.Uint16(data[4:]), nil
}
