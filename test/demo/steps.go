package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
	"imds-oidc-proxy/test/kit/entra"
	"imds-oidc-proxy/test/kit/netns"
	"imds-oidc-proxy/test/kit/pod"
)

// resource is the resource for which the application requests a token.
const resource = "https://vault.azure.net"

// podUID is the invented UID of the pod, which is the secret of App Service's protocol.
const podUID = "3f8c1b7e-5d2a-4e96-9b04-d1a7c6e2f580"

// steps prints the steps of the demo in a running pod.
type steps struct {
	pod *pod.Pod
	cfg pod.Config
	out io.Writer
	n   int // number of the last step
}

func (s *steps) show(ctx context.Context) error {
	if err := s.showFederatedToken(); err != nil {
		return err
	}
	if s.cfg.ProxyInit != "" {
		if err := s.showRedirect(ctx); err != nil {
			return err
		}
	}
	claims, err := s.showToken(ctx, "The application requests a token from the metadata service", "")
	if err != nil {
		return err
	}
	if _, err := s.showToken(ctx, "The second request is a cache hit", ""); err != nil {
		return err
	}
	if _, err := s.showToken(ctx, "It names the identity by object ID, which no setting has: the proxy finds it in the token", "&object_id="+claims.ObjectID); err != nil {
		return err
	}
	if err := s.showInstance(ctx); err != nil {
		return err
	}
	s.showWithoutMetadata(ctx)
	if err := s.showAppService(ctx); err != nil {
		return err
	}
	s.showCounts()
	s.showLog()
	return nil
}

func (s *steps) heading(format string, args ...any) {
	s.n++
	fmt.Fprintf(s.out, "%d. %s\n\n", s.n, fmt.Sprintf(format, args...))
}

// lines prints text indented below a heading, and an empty line after it.
func (s *steps) lines(text string) {
	for line := range strings.Lines(strings.TrimSpace(text)) {
		fmt.Fprintf(s.out, "   %s\n", strings.TrimRight(line, "\n"))
	}
	fmt.Fprintln(s.out)
}

func (s *steps) showFederatedToken() error {
	token, err := exchange.ReadFederatedToken(s.pod.Token.Path())
	if err != nil {
		return err
	}
	s.heading("The pod's federated token, which the kubelet renews (here: a stand-in for it)")
	s.lines(fmt.Sprintf("issuer    %s\nsubject   %s\naudience  %s\nexpires   in %s",
		token.Issuer, token.Subject, strings.Join(token.Audiences, ", "), time.Until(token.ExpiresOn).Round(time.Minute)))
	return nil
}

func (s *steps) showRedirect(ctx context.Context) error {
	rules, err := s.pod.RunProxyInit(ctx, "--dry-run")
	if err != nil {
		return err
	}
	if s.cfg.OneUser {
		s.heading("proxy-init has installed the redirect for all users, as root of a user namespace")
	} else {
		s.heading("proxy-init has installed the redirect, as root with NET_ADMIN only")
	}
	s.lines(chainsOf(rules))
	return nil
}

// chainsOf returns the chains and rules of a table in nft's syntax, as nft lists them.
func chainsOf(table string) string {
	var chains strings.Builder
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if chain, ok := strings.CutPrefix(line, "chain "); ok {
			chains.WriteString(strings.TrimSuffix(chain, " {") + "\n")
		} else if rule, ok := strings.CutPrefix(line, "meta nfproto "); ok {
			_, rule, _ = strings.Cut(rule, " ") // without the family, which the next match implies
			chains.WriteString("  " + rule + "\n")
		}
	}
	return chains.String()
}

// port returns the proxy's port.
func (s *steps) port() string { return strconv.Itoa(cmp.Or(s.cfg.Port, azure.ProxyPort)) }

// url returns the URL of a path of the metadata service, at the metadata address if there is a
// redirect, otherwise at the proxy's address.
func (s *steps) url(path string) string {
	host := netns.MetadataAddress
	if s.cfg.ProxyInit == "" {
		host = "127.0.0.1:" + s.port()
	}
	return "http://" + host + path
}

func (s *steps) tokenURL() string {
	return s.url("/metadata/identity/oauth2/token?api-version=2018-02-01&resource=" + resource)
}

func (s *steps) instanceURL() string {
	return s.url("/metadata/instance/compute?api-version=2021-02-01")
}

// curl sends a request as the application.
func (s *steps) curl(ctx context.Context, url string) (body string, err error) {
	body, err = s.pod.Application(ctx, nil, "curl", "-sS", "--fail-with-body", "-H", "Metadata:true", url)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, body)
	}
	return body, nil
}

// showToken shows a token request with a further part of the query, and returns the claims of the
// token.
func (s *steps) showToken(ctx context.Context, heading, query string) (entra.AccessToken, error) {
	s.heading("%s", heading)
	url := s.tokenURL() + query
	body, err := s.curl(ctx, url)
	if err != nil {
		return entra.AccessToken{}, err
	}
	return s.answer(fmt.Sprintf("curl -H Metadata:true %q", url), body)
}

func (s *steps) showInstance(ctx context.Context) error {
	s.heading("Instance metadata comes from a file of the pod, not from the node")
	body, err := s.curl(ctx, s.instanceURL())
	if err != nil {
		return err
	}
	s.lines(fmt.Sprintf("$ curl -H Metadata:true %q\n%s", s.instanceURL(), body))
	return nil
}

// showAppService requests a token as an application of a pod without a redirect does: it has only
// environment variables, and sends nothing to the metadata address.
func (s *steps) showAppService(ctx context.Context) error {
	s.heading("Without a redirect, variables name the proxy: the protocol of Azure App Service, which most SDKs speak")
	s.lines(strings.Join(s.appServiceEnv(), "\n") + "   (the pod's UID)")
	body, err := s.pod.Application(ctx, s.appServiceEnv(), "sh", "-c", strings.Replace(appServiceCommand, "curl", "curl -sS --fail-with-body", 1))
	if err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	_, err = s.answer(appServiceCommand, body)
	return err
}

// appServiceCommand is the command of App Service's documentation.
const appServiceCommand = `curl -H "X-IDENTITY-HEADER: $IDENTITY_HEADER" "$IDENTITY_ENDPOINT?api-version=2019-08-01&resource=` + resource + `"`

// appServiceEnv returns the variables of the newer version of App Service's protocol.
func (s *steps) appServiceEnv() []string {
	return []string{azure.EnvIdentityEndpoint + "=http://127.0.0.1:" + s.port() + azure.AppServicePath, azure.EnvIdentityHeader + "=" + podUID}
}

// answer prints a command with its answer, in which the token is shortened, and the token's claims,
// which it returns.
func (s *steps) answer(command, body string) (entra.AccessToken, error) {
	var answer map[string]string
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		return entra.AccessToken{}, fmt.Errorf("the proxy's answer: %w", err)
	}
	token := answer["access_token"]
	claims, err := entra.DecodeAccessToken(token)
	if err != nil {
		return claims, err
	}
	shortened := strings.Replace(body, token, fmt.Sprintf("%.12s… (%d bytes)", token, len(token)), 1)
	s.lines("$ " + command + "\n" + shortened)
	s.lines(fmt.Sprintf("The token's claims: aud %s, appid %s,\noid %s, tid %s", claims.Resource, claims.ClientID, claims.ObjectID, claims.TenantID))
	return claims, nil
}

func (s *steps) showWithoutMetadata(ctx context.Context) {
	s.heading("A request without the Metadata header is refused, which protects against SSRF")
	body, _ := s.pod.Application(ctx, nil, "curl", "-sS", s.tokenURL()) // the output shows an error
	s.lines(fmt.Sprintf("$ curl %q\n%s", s.tokenURL(), body))
}

func (s *steps) showCounts() {
	s.heading("Requests that left the pod")
	text := fmt.Sprintf("Entra            %d exchange", len(s.pod.Entra.Exchanges()))
	if s.pod.Binding != nil {
		requests := s.pod.Binding.Requests()
		text = fmt.Sprintf("the token proxy  %d exchange, for %s by the server name\n                 %s, which then asked Entra, whose assertion has the subject %q",
			len(requests), requests[0].Subject, requests[0].ServerName, s.pod.Entra.Exchanges()[0].Subject)
	}
	if s.pod.Decoy != nil {
		text += fmt.Sprintf("\nthe node's IMDS  %d requests (a decoy at %s)", len(s.pod.Decoy.Requests()), netns.MetadataAddress)
	}
	s.lines(text)
}

func (s *steps) showLog() {
	s.heading("The proxy's log")
	s.lines(s.pod.ProxyLog.String())
}

// shell runs a shell as the application's user and returns when it ends.
func (s *steps) shell() int {
	user := pod.ApplicationUID
	if s.cfg.OneUser {
		user = os.Getuid()
	}
	fmt.Fprintf(s.out, "A shell inside the pod, as the application (UID %d). Try:\n\n   curl -i -H Metadata:true %q\n   curl -i -H Metadata:true %q\n   curl -i %q\n   %s\n\nexit ends the pod.\n",
		user, s.tokenURL(), s.instanceURL(), s.url("/readyz"), appServiceCommand)
	cmd := exec.Command("/bin/sh", "-i")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Dir = "/"
	cmd.Env = append(s.appServiceEnv(), "PATH="+os.Getenv("PATH"), "HOME=/", "TERM="+os.Getenv("TERM"), "PS1=pod$ ")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if user != os.Getuid() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(user), Gid: uint32(user)}
	}
	_ = cmd.Run() // the exit code is that of the user's last command
	return 0
}
