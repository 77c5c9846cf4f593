// Command tutorial serves the made-up cluster of docs/tutorial.md, at three times of its migration, for a person who
// follows the page. It writes a kubeconfig with a context for each time, and runs until it is interrupted.
package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "tutorial:", err)
		os.Exit(1)
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "tutorial-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	server, err := serve("test/tutorial/cluster")
	if err != nil {
		return fmt.Errorf("%w: run this in the root directory of the repository", err)
	}
	defer server.Close()
	kubeconfig, authority := filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "ca.crt")
	if err := server.WriteKubeconfig(kubeconfig, times...); err != nil {
		return err
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(authority, certificate, 0o600); err != nil {
		return err
	}
	fmt.Printf("Run this in another shell, in the root directory of the repository:\n\n  export KUBECONFIG=%s SSL_CERT_FILE=%s\n\nUse this shell for the tutorial only: its programs trust no other certificates.\nEnd with Ctrl-C.\n", kubeconfig, authority)
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	<-ctx.Done()
	return nil
}
