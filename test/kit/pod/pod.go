// Package pod runs the processes of a pod with the sidecar, without a cluster: the real
// proxy-init and the real proxy in a network namespace, and the application's clients. It
// also runs a stand-in for Entra and for the cluster's OIDC issuer, writes the federated
// token as the kubelet does, and starts a decoy of the node's real IMDS at the metadata
// address, so that a test notices a request that bypasses the proxy.
//
// Tests and the demo use it. It needs root, because the processes run as three users: the
// init container as root, the proxy as 1501 and the application as 1000.
package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"imds-oidc-proxy/test/kit/binding"
	"imds-oidc-proxy/test/kit/entra"
)

// The identities of the pod.
const (
	ClientID       = "6c0ac4e6-9b6d-4d2a-8d5a-6f1f3a1f9b10"
	Subject        = "system:serviceaccount:demo:app"
	ProxyUID       = 1501
	ApplicationUID = 1000

	// tokenProxyName and tokenProxyPath are the server name and the path of the token proxy of
	// an identity binding.
	tokenProxyName = "a1b2c3d4.ests.aks"
	tokenProxyPath = "/identity-binding"
)

// stopTimeout bounds how long a process may take to exit after SIGTERM.
const stopTimeout = 10 * time.Second

// Config configures the programs of the pod.
type Config struct {
	// ProxyInit and Proxy are the binaries to run. Without ProxyInit there is no redirect.
	ProxyInit, Proxy string

	// ProxyInitArgs and ProxyArgs are added to the arguments of a pod's manifest.
	ProxyInitArgs, ProxyArgs []string

	// ProxyEnv is added to the proxy's environment.
	ProxyEnv []string

	// ProxyPrefix is a command that root runs, that changes to ProxyUID, and that becomes the
	// proxy, whose command line is appended. It may be empty.
	ProxyPrefix []string

	// Backend is proxy-init's --backend. If it is empty, proxy-init chooses.
	Backend string

	// OneUser runs all processes as the caller: for a user namespace with one user, or
	// for a caller that is not root.
	OneUser bool

	// Port is the port of the proxy. The default is 8000.
	Port int

	// IdentityBinding gives the pod an identity binding of AKS, with a stand-in for its token
	// proxy. Entra then has no credential for the pod's federated token.
	IdentityBinding bool

	// Entra configures the stand-in. The zero value works.
	Entra entra.Config
}

// Pod is a running pod.
type Pod struct {
	// Entra is the stand-in. It counts requests and can be made to fail.
	Entra *entra.Server
	// Decoy is the server in place of the node's IMDS. Nil without a redirect.
	Decoy *Decoy
	// Binding is the stand-in for the token proxy. Nil without an identity binding.
	Binding *binding.Server
	// Token is the projected service-account token.
	Token *entra.ProjectedToken
	// InitOutput is what proxy-init printed.
	InitOutput string
	// ProxyLog is the proxy's log so far.
	ProxyLog *Log

	cfg   Config
	dir   string
	proxy *process
}

// Start starts the stand-ins, installs the redirect and starts the proxy. It returns when
// the proxy is ready. For a redirect, the caller must be inside a network namespace of
// package netns.
func Start(ctx context.Context, cfg Config) (_ *Pod, err error) {
	if cfg.Port == 0 {
		cfg.Port = 8000
	}
	// Other users of the pod read the files that are written here, whatever the caller's
	// umask is.
	syscall.Umask(0o022)
	p := &Pod{cfg: cfg, ProxyLog: &Log{}}
	defer func() {
		if err != nil {
			p.Stop()
		}
	}()
	if p.dir, err = os.MkdirTemp("", "pod-"); err != nil {
		return nil, err
	}
	if err = os.Chmod(p.dir, 0o755); err != nil { // the proxy's user reads files in it
		return nil, err
	}
	if p.cfg.Proxy, err = copyProgram(cfg.Proxy, p.dir); err != nil {
		return nil, err
	}
	if err = p.startStandIns(); err != nil {
		return nil, err
	}
	if cfg.ProxyInit != "" {
		if p.InitOutput, err = p.RunProxyInit(ctx); err != nil {
			return nil, err
		}
	}
	if err = p.StartProxy(ctx); err != nil {
		return nil, err
	}
	return p, nil
}

// copyProgram copies a program to dir, where every user can run it. A program in a home
// directory may be out of reach for other users.
func copyProgram(program, dir string) (string, error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	copied := filepath.Join(dir, filepath.Base(program))
	return copied, os.WriteFile(copied, content, 0o755)
}

// Stop stops all processes of the pod and removes its files. The redirect ends with the
// network namespace.
func (p *Pod) Stop() {
	if p.proxy != nil {
		p.proxy.stop()
	}
	if p.Decoy != nil {
		p.Decoy.Close()
	}
	if p.Binding != nil {
		p.Binding.Close()
	}
	if p.Entra != nil {
		p.Entra.Close()
	}
	os.RemoveAll(p.dir)
}

func (p *Pod) startStandIns() error {
	var err error
	p.cfg.Entra.ServerNames = append(p.cfg.Entra.ServerNames, tokenProxyName)
	if p.Entra, err = entra.Start(p.cfg.Entra); err != nil {
		return err
	}
	p.Entra.AddApplication(entra.Application{
		ClientID:    ClientID,
		Credentials: []entra.FederatedCredential{{Subject: Subject}},
	})
	if err := p.Entra.WriteCA(p.CAFile()); err != nil {
		return err
	}
	volume := filepath.Join(p.dir, "token")
	if err := os.Mkdir(volume, 0o755); err != nil {
		return err
	}
	token := entra.ProjectedTokenConfig{Dir: volume, Subject: Subject}
	if p.cfg.IdentityBinding {
		token.Audience = binding.Audience
		if err := p.startBinding(); err != nil {
			return err
		}
	}
	if p.Token, err = p.Entra.ProjectToken(token); err != nil {
		return err
	}
	if p.cfg.ProxyInit == "" {
		return nil
	}
	p.Decoy, err = StartDecoy()
	return err
}

// startBinding starts the token proxy, which lets the pod's service account use each identity that
// has a binding.
func (p *Pod) startBinding() (err error) {
	p.Binding, err = binding.Start(binding.Config{
		Entra: p.Entra, Certificate: p.Entra.Certificate(), ServerName: tokenProxyName, Path: tokenProxyPath, Review: p.Entra.ReviewFederatedToken,
		Allowed: func(_ context.Context, subject, _ string) (bool, error) { return subject == Subject, nil },
	})
	if err == nil {
		p.Binding.Bind(entra.Application{ClientID: ClientID})
	}
	return err
}

// CAFile returns the path of the stand-in's certificate authority in PEM.
func (p *Pod) CAFile() string { return filepath.Join(p.dir, "ca.pem") }

// Environment returns the environment variables that azure-workload-identity's webhook
// injects, and PROXY_CA_FILE with the stand-in's certificate authority.
func (p *Pod) Environment() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"),
		"AZURE_CLIENT_ID=" + ClientID,
		"AZURE_TENANT_ID=" + p.Entra.TenantID(),
		"AZURE_FEDERATED_TOKEN_FILE=" + p.Token.Path(),
		"AZURE_AUTHORITY_HOST=" + p.Entra.AuthorityHost(),
		"PROXY_CA_FILE=" + p.CAFile(),
	}
	if p.Binding != nil {
		env = append(env, "AZURE_KUBERNETES_TOKEN_PROXY="+p.Binding.URL(), "AZURE_KUBERNETES_SNI_NAME="+tokenProxyName, "AZURE_KUBERNETES_CA_FILE="+p.CAFile())
	}
	return env
}

// RunProxyInit runs proxy-init as the init container of a manifest: as root, with only the
// capabilities that it needs.
func (p *Pod) RunProxyInit(ctx context.Context, args ...string) (string, error) {
	if p.cfg.Backend != "" {
		args = append(args, "--backend="+p.cfg.Backend)
	}
	args = append(append([]string{p.cfg.ProxyInit}, p.cfg.ProxyInitArgs...), args...)
	if !p.cfg.OneUser {
		args = append(withCapabilities(p.cfg.Backend), args...)
	}
	out, err := run(ctx, command{args: args, env: []string{"PATH=" + os.Getenv("PATH"), fmt.Sprintf("PROXY_PORT=%d", p.cfg.Port)}})
	if err != nil {
		return out, fmt.Errorf("proxy-init: %w: %s", err, out)
	}
	return out, nil
}

// withCapabilities returns the prefix of a command that drops all capabilities except those
// that iptables needs. The legacy backend needs NET_RAW for a raw socket.
func withCapabilities(backend string) []string {
	keep := "-all,+net_admin"
	if backend == "legacy" {
		keep += ",+net_raw"
	}
	return []string{"setpriv", "--no-new-privs", "--bounding-set=" + keep, "--inh-caps=-all"}
}

// StartProxy starts the proxy as in a manifest, and waits until the proxy's --probe
// reports that it is ready.
func (p *Pod) StartProxy(ctx context.Context) error {
	port := fmt.Sprintf("--proxy-port=%d", p.cfg.Port)
	args, uid := append([]string{p.cfg.Proxy, port}, p.cfg.ProxyArgs...), p.uid(ProxyUID)
	if len(p.cfg.ProxyPrefix) > 0 {
		args, uid = slices.Concat(p.cfg.ProxyPrefix, args), os.Getuid()
	}
	proxy, err := start(command{
		args: args, env: append(p.Environment(), p.cfg.ProxyEnv...), uid: uid, output: p.ProxyLog,
	})
	if err != nil {
		return err
	}
	p.proxy = proxy
	out, err := run(ctx, command{args: []string{p.cfg.Proxy, port, "--probe"}, uid: p.uid(ProxyUID)})
	if err != nil {
		return fmt.Errorf("the proxy is not ready: %w: %s; its log:\n%s", err, out, p.ProxyLog)
	}
	return nil
}

// RunProxy runs a proxy that is expected to fail at its start, and returns its output.
func (p *Pod) RunProxy(ctx context.Context, args ...string) (string, error) {
	return run(ctx, command{
		args: append([]string{p.cfg.Proxy, fmt.Sprintf("--proxy-port=%d", p.cfg.Port)}, args...),
		env:  p.Environment(), uid: p.uid(ProxyUID),
	})
}

// ProxyProgram returns the path of the proxy's binary, which every user can run.
func (p *Pod) ProxyProgram() string { return p.cfg.Proxy }

// SignalProxy sends a signal to the proxy. WaitProxy waits until it exits.
func (p *Pod) SignalProxy(s syscall.Signal) error { return p.proxy.cmd.Process.Signal(s) }

// WaitProxy waits until the proxy exits, and returns its exit code.
func (p *Pod) WaitProxy(ctx context.Context) (int, error) { return p.proxy.wait(ctx) }

// ProxyPID returns the proxy's process ID.
func (p *Pod) ProxyPID() int { return p.proxy.cmd.Process.Pid }

// Application runs a command as the application's user and returns its standard output.
// The command's environment is env, PATH and HOME.
func (p *Pod) Application(ctx context.Context, env []string, args ...string) (string, error) {
	return run(ctx, command{args: args, env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/"}, env...), uid: p.uid(ApplicationUID)})
}

// As runs a command as the given user, like Application without further environment
// variables.
func (p *Pod) As(ctx context.Context, uid int, args ...string) (string, error) {
	return run(ctx, command{args: args, env: []string{"PATH=" + os.Getenv("PATH"), "HOME=/"}, uid: p.uid(uid)})
}

func (p *Pod) uid(uid int) int {
	if p.cfg.OneUser {
		return os.Getuid()
	}
	return uid
}
