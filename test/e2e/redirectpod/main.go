// Command redirectpod is the program of each process of a pod in the redirect tests, except
// proxy-init: the process that keeps a network namespace open, the servers that a client may
// reach, and the client, which prints the name of the server that answers.
//
//	redirectpod pause
//	redirectpod answer NAME=NETWORK/ADDRESS...
//	redirectpod ask NETWORK/ADDRESS...
//	redirectpod hold NETWORK/ADDRESS
//	redirectpod repeat NETWORK/ADDRESS
//	redirectpod impersonate ADDRESS
//	redirectpod open NAME=LOCAL/REMOTE
//	redirectpod hook FROM=TO@CGROUP
//	redirectpod install NAMESPACE
//	redirectpod validate
//
// NETWORK of a client is one of these:
//
//	tcp       TCP over IPv4; tcp:PORT from a port of its own
//	udp       UDP over IPv4
//	mapped    TCP through an IPv6 socket to the address ::ffff:a.b.c.d
//	tcp6      TCP over IPv6
//	mptcp     Multipath TCP, which falls back to TCP if the server has only that
//	bulk      TCP over IPv4; the answer is the number of bytes that arrived
//
// NETWORK of a server is one of these:
//
//	tcp, udp, tcp6   as above; TCP servers accept Multipath TCP, too
//	backlog0         TCP with a queue of no length, for which the kernel uses SYN cookies
//	bulk             TCP; sends bulkSize bytes and closes the connection
//
// The commands pause, answer, impersonate and hook print "ready", and end when their standard input
// is closed. hold keeps a connection open, sends a request for each line of its standard input,
// and prints the answer. repeat connects without a pause, and prints how often each server has
// answered for each line of its standard input. impersonate answers every HTTP request as a
// proxy that is ready. open connects from LOCAL to REMOTE, where no process listens, and sends
// NAME if REMOTE connects to LOCAL at the same time. hook changes the address FROM to TO in each
// connect of a cgroup's processes, by an eBPF program. install installs the redirect in the network
// namespace of a file, as a CNI plugin does. validate prints how the redirect was proven, or the
// kind of the error.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// patience bounds each wait of a client. All servers are on the same machine, but it may be
// busy. It is shorter than the timeouts of the tests, and no test expects it to pass.
const patience = 15 * time.Second

// bulkSize is more than the receive buffer of a client and less than the send buffer of a
// server: the server closes the connection while most of the bytes are queued.
const bulkSize = 500_000

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "redirectpod:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("a command is required: pause, answer, ask, hold, repeat, impersonate, open, hook, install or validate")
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
	case "repeat":
		return repeat(strings.Join(endpoints, ""))
	case "impersonate":
		return impersonate(strings.Join(endpoints, ""))
	case "open":
		return open(strings.Join(endpoints, ""))
	case "hook":
		return hook(strings.Join(endpoints, ""))
	case "install":
		return install(strings.Join(endpoints, ""))
	case "validate":
		return validate()
	default:
		return fmt.Errorf("unknown command %q", command)
	}
}

func untilEOF() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
