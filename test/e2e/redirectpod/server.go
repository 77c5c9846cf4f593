package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

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
	listener, err := listen(network, address)
	if err != nil {
		return err
	}
	serve := answerLines
	if network == "bulk" {
		serve = answerBulk
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn, name)
		}
	}()
	return nil
}

func listen(network, address string) (net.Listener, error) {
	switch network {
	case "backlog0":
		return listenBacklog0(address)
	case "tcp6":
		return net.Listen("tcp6", address)
	default:
		return net.Listen("tcp4", address)
	}
}

// listenBacklog0 makes the system calls itself, because package net chooses the length of the
// queue.
func listenBacklog0(address string) (net.Listener, error) {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}), syscall.Listen(fd, 0)); err != nil {
		return nil, err
	}
	return net.FileListener(f)
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

func answerBulk(conn net.Conn, _ string) {
	_, _ = conn.Write(bytes.Repeat([]byte("x"), bulkSize))
	conn.Close()
}

// open connects NAME=LOCAL/REMOTE and waits in the state SYN_SENT, in which the kernel accepts a
// connection from REMOTE (a simultaneous open). It prints "ready" when it has sent the first
// packet, and ends when its standard input is closed.
func open(spec string) error {
	name, ends, _ := strings.Cut(spec, "=")
	from, to, _ := strings.Cut(ends, "/")
	local, err := netip.ParseAddrPort(from)
	if err != nil {
		return err
	}
	remote, err := netip.ParseAddrPort(to)
	if err != nil {
		return err
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	err = errors.Join(
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1), // there may be closed connections at the port
		syscall.Bind(fd, &syscall.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}))
	if err != nil {
		return err
	}
	err = syscall.Connect(fd, &syscall.SockaddrInet4{Port: int(remote.Port()), Addr: remote.Addr().As4()})
	if !errors.Is(err, syscall.EINPROGRESS) {
		return fmt.Errorf("connect: %w, want one in progress", err)
	}
	f := os.NewFile(uintptr(fd), "open")
	defer f.Close()
	go func() { _, _ = fmt.Fprintln(f, name) }() // it waits for the connection
	return untilEOF()
}
