// Command demo shows the whole story on one screen: an application asks the
// metadata address for a token, and gets one from (a stand-in for) Entra.
//
// As root it runs in a network namespace of its own, with the redirect. Without
// root it tries a user namespace, and then falls back to the proxy on loopback,
// without the redirect, and says so.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"imds-oidc-proxy/test/kit/local"
	"imds-oidc-proxy/test/kit/netns"
	"imds-oidc-proxy/test/kit/pod"
)

const (
	// exitNoNamespace tells the process outside that the namespace was made and is
	// of no use, so that it can fall back.
	exitNoNamespace = 75

	// storyTimeout ends a demo that is stuck; it takes a few seconds.
	storyTimeout = time.Minute
)

type options struct {
	shell            bool
	proxy, proxyInit string
}

func main() {
	os.Exit(run())
}

func run() int {
	var opts options
	flags := pflag.NewFlagSet("demo", pflag.ContinueOnError)
	flags.BoolVar(&opts.shell, "shell", false, "leave the pod running, with a shell inside it")
	flags.StringVar(&opts.proxy, "proxy", "bin/proxy", "the proxy to run")
	flags.StringVar(&opts.proxyInit, "proxy-init", "bin/proxy-init", "the proxy-init to run")
	if err := flags.Parse(os.Args[1:]); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return 0
		}
		return fail(err)
	}
	if err := opts.findBinaries(); err != nil {
		return fail(err)
	}
	if netns.Inside() {
		return runInside(opts)
	}
	why := ""
	if code, err := enter(); err != nil {
		why = err.Error()
	} else if code != exitNoNamespace {
		return code
	} else {
		why = "the namespace that this user may make does not let it set up a network"
	}
	fmt.Printf("No network namespace: %s.\nShowing the proxy on loopback instead, without the redirect. Run as root to see all of it.\n\n", why)
	return tell(opts, onLoopback)
}

// enter makes the namespace and runs this program again inside it.
func enter() (exitCode int, err error) {
	for _, program := range []string{"ip", "iptables"} {
		if _, err := exec.LookPath(program); err != nil {
			return 0, fmt.Errorf("the program %s is not installed", program)
		}
	}
	_, code, err := netns.Enter(os.Getuid() != 0)
	return code, err
}

func runInside(opts options) int {
	if _, _, err := netns.Enter(false); err != nil {
		return exitNoNamespace
	}
	if netns.OneUser() {
		return tell(opts, inUserNamespace)
	}
	return tell(opts, inNamespace)
}

// tell starts the pod of the given layout and tells its story.
func tell(opts options, layout func(options) (pod.Config, error)) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	storyCtx, cancel := context.WithTimeout(ctx, storyTimeout)
	defer cancel()

	cfg, err := layout(opts)
	if err != nil {
		return fail(err)
	}
	p, err := pod.Start(storyCtx, cfg)
	if err != nil {
		return fail(err)
	}
	defer p.Stop()
	s := story{pod: p, cfg: cfg, out: os.Stdout}
	if err := s.tell(storyCtx); err != nil {
		return fail(err)
	}
	if opts.shell {
		return s.shell()
	}
	return 0
}

// proxyArgs make a log that a person reads.
func proxyArgs(more ...string) []string {
	return append([]string{"--log-level=debug", "--log-format=console"}, more...)
}

// inNamespace is the pod as it is on a node.
func inNamespace(opts options) (pod.Config, error) {
	return pod.Config{ProxyInit: opts.proxyInit, Proxy: opts.proxy, ProxyArgs: proxyArgs()}, nil
}

// inUserNamespace has no second user whom the redirect could exempt: it is the
// sealed pod, whose proxy forwards nothing.
func inUserNamespace(opts options) (pod.Config, error) {
	return pod.Config{
		OneUser:   true,
		ProxyInit: opts.proxyInit, ProxyInitArgs: []string{"--seal"},
		Proxy: opts.proxy, ProxyArgs: proxyArgs("--imds-passthrough=off"),
	}, nil
}

// onLoopback forwards nothing either: the metadata address of this machine may
// be a real one.
func onLoopback(opts options) (pod.Config, error) {
	port, err := local.FreePort()
	return pod.Config{
		OneUser: true, Port: port,
		Proxy: opts.proxy, ProxyArgs: proxyArgs("--imds-passthrough=off"),
	}, err
}

func (o *options) findBinaries() error {
	for _, path := range []*string{&o.proxy, &o.proxyInit} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return err
		}
		if _, err := os.Stat(absolute); err != nil {
			return fmt.Errorf("%w (make build makes it)", err)
		}
		*path = absolute
	}
	return nil
}

func fail(err error) int {
	fmt.Fprintf(os.Stderr, "demo: %v\n", err)
	return 1
}
