// Command client is used for both sides of an attack on the proxy: the hostile container, which
// opens many connections, and the well-behaved client beside it, which repeats one request and
// measures how long it waits for an answer.
//
//	client attack KIND ADDRESS CONNECTIONS
//	client ask ADDRESS TARGET
//
// Both print "ready" when they have begun, run until their standard input is closed, and then print
// their results as one line of JSON. The tests run them as the application's user, without
// capabilities.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "attack":
		connections, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		a, err := newAttack(args[1], args[2])
		if err != nil {
			return err
		}
		a.start(connections)
		return untilEOF(a.result)
	case len(args) == 3 && args[0] == "ask":
		a := newAsker(args[1], args[2])
		a.start()
		return untilEOF(a.result)
	}
	return errors.New("usage: client attack KIND ADDRESS CONNECTIONS, or client ask ADDRESS TARGET")
}

func untilEOF(result func() any) error {
	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result())
}
