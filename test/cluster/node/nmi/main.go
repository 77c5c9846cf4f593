// Command nmi is the daemon of the stand-in for aad-pod-identity: it writes what the test sends it to its log, as NMI
// logs each token that it gives.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// address is that of NMI on the node, whose network the pod has.
const address = "127.0.0.1:2579"

// maxLine bounds a line of the log.
const maxLine = 1 << 10

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	server := &http.Server{Addr: address, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		line, _ := io.ReadAll(io.LimitReader(r.Body, maxLine))
		fmt.Printf("%s\n", line)
	})}
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
