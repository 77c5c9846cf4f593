// Command demo shows how an application sends a request to the metadata address and gets a token
// from Entra. A stand-in takes the place of Entra.
//
// As root, the demo runs in a new network namespace, with the redirect. As another user, it tries
// a user namespace. If that is not possible, it prints the reason and runs the proxy on the
// loopback device, without the redirect.
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
	// exitNoNamespace is the exit code of the process in the namespace if it cannot set up
	// the network, so that the process outside falls back.
	exitNoNamespace = 75

	// demoTimeout bounds the demo, which takes a few seconds.
	demoTimeout = time.Minute
)

type options struct {
	shell, binding   bool
	proxy, proxyInit string
}

func main() {
	os.Exit(run())
}

func run() int {
	var opts options
	flags := pflag.NewFlagSet("demo", pflag.ContinueOnError)
	flags.BoolVar(&opts.shell, "shell", false, "start a shell in the pod at the end")
	flags.BoolVar(&opts.binding, "identity-binding", false, "give the pod an identity binding of AKS: a token proxy requests the tokens of Entra")
	flags.StringVar(&opts.proxy, "proxy", "bin/proxy", "`file` of the proxy")
	flags.StringVar(&opts.proxyInit, "proxy-init", "bin/proxy-init", "`file` of proxy-init")
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
		why = "this user cannot set up the network in a user namespace"
	}
	fmt.Printf("Cannot use a network namespace: %s.\nRunning the proxy on the loopback device, without the redirect. Run as root to see the redirect.\n\n", why)
	return show(opts, onLoopback)
}

// enter makes the namespace and runs this program again in it.
func enter() (exitCode int, err error) {
	if _, err := exec.LookPath("ip"); err != nil {
		return 0, errors.New("the program ip is not installed")
	}
	_, code, err := netns.Enter(os.Getuid() != 0)
	return code, err
}

func runInside(opts options) int {
	if _, _, err := netns.Enter(false); err != nil {
		return exitNoNamespace
	}
	if netns.OneUser() {
		return show(opts, inUserNamespace)
	}
	return show(opts, inNamespace)
}

// show starts the pod with this layout and prints the steps of the demo.
func show(opts options, layout func(options) (pod.Config, error)) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	demoCtx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()

	cfg, err := layout(opts)
	if err != nil {
		return fail(err)
	}
	dir, err := os.MkdirTemp("", "demo-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	instance, err := writeInstance(dir)
	if err != nil {
		return fail(err)
	}
	cfg.ProxyArgs = append(cfg.ProxyArgs, "--instance-metadata="+instance)
	cfg.IdentityBinding = opts.binding
	cfg.ProxyEnv = []string{"PROXY_APP_SERVICE_HEADER=" + podUID} // injection refers to the pod's UID
	p, err := pod.Start(demoCtx, cfg)
	if err != nil {
		return fail(err)
	}
	defer p.Stop()
	s := steps{pod: p, cfg: cfg, out: os.Stdout}
	if err := s.show(demoCtx); err != nil {
		return fail(err)
	}
	if opts.shell {
		return s.shell()
	}
	return 0
}

// writeInstance writes a document of instance metadata that the proxy's user can read.
func writeInstance(dir string) (path string, err error) {
	path = filepath.Join(dir, "instance.json")
	document := `{"compute": {"azEnvironment": "AzurePublicCloud", "location": "westeurope", "name": "demo-node"}}`
	return path, errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, []byte(document), 0o644))
}

// proxyArgs returns arguments of the proxy with a log for people.
func proxyArgs(more ...string) []string {
	return append([]string{"--log-level=debug", "--log-format=console"}, more...)
}

// inNamespace returns the configuration of a pod as on a node.
func inNamespace(opts options) (pod.Config, error) {
	return pod.Config{ProxyInit: opts.proxyInit, Proxy: opts.proxy, ProxyArgs: proxyArgs()}, nil
}

// inUserNamespace returns the configuration of a sealed pod, in which the proxy forwards no
// requests: a user namespace has only one user, so the redirect cannot exempt the proxy.
func inUserNamespace(opts options) (pod.Config, error) {
	return pod.Config{
		OneUser:   true,
		ProxyInit: opts.proxyInit, ProxyInitArgs: []string{"--seal", "--proxy-uid=0", "--proxy-gid=0"},
		Proxy: opts.proxy, ProxyArgs: proxyArgs("--imds-passthrough=off"),
	}, nil
}

// onLoopback returns the configuration without a namespace. The proxy forwards no requests,
// because this machine may have a real metadata service.
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
			return fmt.Errorf("%w: run make build", err)
		}
		*path = absolute
	}
	return nil
}

func fail(err error) int {
	fmt.Fprintf(os.Stderr, "demo: %v\n", err)
	return 1
}
