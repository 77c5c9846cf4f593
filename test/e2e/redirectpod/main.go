// Command redirectpod is the program of each process of a pod in the redirect tests, except
// proxy-init: the process that keeps a network namespace open, the servers that a client may
// reach, and the client, which prints the name of the server that answers.
//
//	redirectpod pause
//	redirectpod answer NAME=NETWORK/ADDRESS...
//	redirectpod ask NETWORK/ADDRESS...
//	redirectpod hold NETWORK/ADDRESS
//	redirectpod impersonate ADDRESS
//
// NETWORK is tcp, udp or mapped, which is TCP through an IPv6 socket to the address
// ::ffff:a.b.c.d. The commands pause, answer and impersonate print "ready", and end when their
// standard input is closed. hold keeps a connection open, sends a request for each line of its
// standard input, and prints the answer. impersonate answers every HTTP request as a proxy
// that is ready.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

// patience bounds each wait of a client. All servers are on the same machine, but it may be
// busy. It is shorter than the timeouts of the tests, and no test expects it to pass.
const patience = 15 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "redirectpod:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("a command is required: pause, answer, ask, hold or impersonate")
	}
	switch command, endpoints := args[0], args[1:]; command {
	case "pause":
		return untilEOF()
	case "answer":
		for _, e := range endpoints {
			if err := answer(e); err != nil {
				return err
			}
		}
		return untilEOF()
	case "ask":
		for _, e := range endpoints {
			fmt.Println(ask(e))
		}
		return nil
	case "hold":
		return hold(strings.Join(endpoints, ""))
	case "impersonate":
		return impersonate(strings.Join(endpoints, ""))
	default:
		return fmt.Errorf("unknown command %q", command)
	}
}

func untilEOF() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// answer starts a server NAME=NETWORK/ADDRESS. It sends its name to each client that connects,
// and again for each line or datagram from the client.
func answer(spec string) error {
	name, endpoint, _ := strings.Cut(spec, "=")
	network, address, _ := strings.Cut(endpoint, "/")
	if network == "udp" {
		conn, err := net.ListenPacket("udp4", address)
		if err != nil {
			return err
		}
		go answerDatagrams(conn, name)
		return nil
	}
	listener, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go answerLines(conn, name)
		}
	}()
	return nil
}

// impersonate gives the same answer as /readyz of the proxy to every request.
func impersonate(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Server", "imds-oidc-proxy/dev")
		fmt.Fprint(w, "ok")
	})}
	go server.Serve(listener)
	return untilEOF()
}

func answerDatagrams(conn net.PacketConn, name string) {
	buf := make([]byte, 512)
	for {
		_, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = conn.WriteTo([]byte(name+"\n"), from)
	}
}

func answerLines(conn net.Conn, name string) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for {
		if _, err := fmt.Fprintln(conn, name); err != nil || !lines.Scan() {
			return
		}
	}
}

// ask returns the name of the server at an endpoint, or the error in one word.
func ask(endpoint string) string {
	conn, err := dial(endpoint)
	if err != nil {
		return reason(err)
	}
	defer conn.Close()
	return readName(conn, bufio.NewReader(conn))
}

func dial(endpoint string) (net.Conn, error) {
	network, address, _ := strings.Cut(endpoint, "/")
	switch network {
	case "mapped":
		return dialMapped(address)
	case "udp":
		conn, err := net.Dial("udp4", address)
		if err != nil {
			return nil, err
		}
		_, err = conn.Write([]byte("?"))
		return conn, err
	default:
		return net.DialTimeout("tcp4", address, patience)
	}
}

// dialMapped makes the system calls itself, because package net would use an IPv4 socket for
// such an address.
func dialMapped(address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "mapped")
	defer f.Close()
	timeout := syscall.NsecToTimeval(int64(patience))
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &timeout); err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

func readName(conn net.Conn, r *bufio.Reader) string {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return reason(err)
	}
	line, err := r.ReadString('\n')
	if err != nil {
		return reason(err)
	}
	return strings.TrimSpace(line)
}

// reason returns one word for an error.
func reason(err error) string {
	timeout, ok := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EPERM):
		// EPERM is the error for a datagram that the local host rejects.
		return "refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "unreachable"
	case ok && timeout.Timeout(), errors.Is(err, syscall.EINPROGRESS):
		return "timeout"
	case errors.Is(err, io.EOF):
		return "closed"
	}
	return strings.ReplaceAll(err.Error(), " ", "_")
}

// hold prints the server's name, and again for each line of the standard input, always over
// the same connection.
func hold(endpoint string) error {
	conn, err := dial(endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	fmt.Println(readName(conn, r))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if _, err := fmt.Fprintln(conn, "again"); err != nil {
			fmt.Println(reason(err))
			continue
		}
		fmt.Println(readName(conn, r))
	}
	return nil
}
