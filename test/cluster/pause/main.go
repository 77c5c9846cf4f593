// Command pause waits for SIGTERM or SIGINT. It is the program of a pod's sandbox
// container, and of application containers in which tests run other programs.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// Without a handler, the kernel does not deliver these signals to process 1 of a PID
	// namespace.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
}
