// Command pause waits for SIGTERM or SIGINT. It keeps a pod's namespaces open, or takes
// the place of an application.
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
