// Command pause waits until it is told to end: it holds a pod's namespaces, or is
// an application that has nothing to do.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// The first process of a namespace gets no signal that it has no handler for.
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
}
