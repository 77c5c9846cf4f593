package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ask returns the name of the server at an endpoint, or the error in one word.
func ask(endpoint string) string {
	conn, err := dial(endpoint)
	if err != nil {
		return reason(err)
	}
	defer conn.Close()
	if strings.HasPrefix(endpoint, "bulk/") {
		n, err := io.Copy(io.Discard, conn)
		if err != nil {
			return fmt.Sprintf("%s_after_%d", reason(err), n)
		}
		return strconv.FormatInt(n, 10)
	}
	return readName(conn, bufio.NewReader(conn))
}

func dial(endpoint string) (net.Conn, error) {
	network, address, _ := strings.Cut(endpoint, "/")
	network, port, _ := strings.Cut(network, ":")
	dialer := net.Dialer{Timeout: patience, Control: mark}
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
	case "mptcp":
		dialer.SetMultipathTCP(true)
	case "tcp6":
		return dialer.Dial("tcp6", address)
	case "bulk":
		dialer.Control = smallBuffer
	case "tcp":
		if from, err := strconv.Atoi(port); err == nil {
			dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: from}
		}
	}
	conn, err := dialer.DialContext(context.Background(), "tcp4", address)
	if err != nil || network != "mptcp" {
		return conn, err
	}
	if multipath, err := conn.(*net.TCPConn).MultipathTCP(); err != nil || !multipath {
		return nil, errors.Join(err, errors.New("no multipath"))
	}
	return conn, nil
}

// mark sets the mark of a connection to that in the environment variable MARK.
func mark(_, _ string, raw syscall.RawConn) error {
	value, err := strconv.Atoi(os.Getenv("MARK"))
	if err != nil {
		return nil // no mark
	}
	return setOption(raw, syscall.SO_MARK, value)
}

// smallBuffer makes the receive buffer so small that the server's bytes stay in its own.
func smallBuffer(_, _ string, raw syscall.RawConn) error {
	return setOption(raw, syscall.SO_RCVBUF, 4096)
}

func setOption(raw syscall.RawConn, option, value int) error {
	var optionErr error
	err := raw.Control(func(fd uintptr) { optionErr = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, value) })
	return errors.Join(err, optionErr)
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

// repeat connects until its standard input is closed. It prints the first answer, and for each
// line of the standard input how often each server has answered since the last line.
func repeat(endpoint string) error {
	fmt.Println(ask(endpoint))
	var mu sync.Mutex
	answers := map[string]int{}
	go func() {
		for {
			answer := ask(endpoint)
			mu.Lock()
			answers[answer]++
			mu.Unlock()
		}
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		mu.Lock()
		var counts []string
		for answer, n := range answers {
			counts = append(counts, fmt.Sprintf("%s=%d", answer, n))
		}
		clear(answers)
		mu.Unlock()
		slices.Sort(counts)
		fmt.Println(strings.Join(counts, " "))
	}
	return nil
}
