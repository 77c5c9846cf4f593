package diagnose

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"imds-oidc-proxy/internal/azure"
	"imds-oidc-proxy/internal/exchange"
)

// Metadata has functions that send metadata requests. Their results show which server
// answers the application's requests.
type Metadata struct {
	// Port is the proxy's port, for texts.
	Port uint16

	// PortOwners returns the UIDs of the processes that listen on the proxy's port.
	PortOwners func() ([]uint32, error)

	// ProxyUIDs are the users that the proxy may run as, the usual one first.
	ProxyUIDs []uint32

	// AskPort sends a request for /readyz to the proxy's port.
	AskPort func(context.Context) (Responder, error)

	// AskRedirect sends a request for /readyz to the metadata address, over a connection
	// that cannot leave the machine. So it gets an answer only if there is a redirect.
	AskRedirect func(context.Context) (Responder, error)

	// AskProof sends a request for /readyz to [azure.RedirectProof], which the native rules
	// lead to the proxy for every user.
	AskProof func(context.Context) (Responder, error)

	// AskReal sends a request for /metadata/versions, which needs no identity, to the
	// metadata address, without this restriction. Nil: it is not called.
	AskReal func(context.Context) (Responder, error)

	// Exempt is true if this process runs as the proxy's user, which is exempt from the
	// redirect. Then AskRedirect cannot see the redirect, and AskProof is called.
	Exempt bool

	// NoRedirect is true if the pod is meant to have no redirect.
	NoRedirect bool

	// RequireBlocked is true if the pod must not reach the node's IMDS.
	RequireBlocked bool
}

// Responder describes the server that answered a request, and its answer.
type Responder struct {
	// Proxy is true if the Server header is that of this proxy.
	Proxy bool
	// Header is the Server header.
	Header string
	// Status is the HTTP status.
	Status int
	// Reason is the reason for which a proxy is not ready. Other servers have none.
	Reason string
}

func (r Responder) String() string {
	return fmt.Sprintf("%q, status %d", clip(r.Header), r.Status)
}

// listener is the kind of process that listens on the proxy's port.
type listener int

const (
	noProxy  listener = iota // no process, or another server
	proxy                    // the proxy
	imposter                 // a process of another user
)

func (r *run) metadata(ctx context.Context) []Finding {
	port, at := r.port(ctx)
	findings := []Finding{port, r.redirect(ctx, at)}
	if r.cfg.IMDS.AskReal != nil {
		findings = append(findings, r.nodeIMDS(ctx))
	}
	return findings
}

// port checks which process listens on the proxy's port. It gets the owner after the answer,
// because a process of another user could take the port after an earlier look. It misses
// only a process that answers and then returns the port to a new proxy before the look.
func (r *run) port(ctx context.Context) (f Finding, at listener) {
	m := r.cfg.IMDS
	f = Finding{Status: OK, Item: fmt.Sprintf("127.0.0.1:%d", m.Port)}
	responder, err := m.AskPort(ctx)
	owners, ownerErr := m.PortOwners()
	other := slices.IndexFunc(owners, func(uid uint32) bool { return !slices.Contains(m.ProxyUIDs, uid) })
	if err == nil && responder.Proxy {
		at = proxy
	}
	switch {
	case other >= 0:
		at = imposter
		f.Status, f.Text = Fail, fmt.Sprintf("a process of UID %d listens on this port, but the proxy runs as UID %d", owners[other], m.ProxyUIDs[0])
		f.Remedy = "remove the container that listens on this port: it can answer applications in the proxy's place; if the proxy runs as that user, run this check in its container"
	case errors.Is(err, syscall.ECONNREFUSED) && len(owners) > 0:
		f.Status, f.Text = Fail, "the proxy listens on this port, but its answers are refused: the port guard of proxy-init expects another user or group"
		f.Remedy = "set PROXY_UID and PROXY_GID of proxy-init to the user and group of the proxy's container, and create the pod again"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Status, f.Text = Note, "no process listens on this port"
		f.Remedy = "start the proxy, or set its port: --proxy-port (PROXY_PORT)"
	case err != nil:
		f.Status, f.Text = Fail, "a process listens on this port but does not answer: "+exchange.FaultOf(err, "it").Text
		f.Remedy = "see the proxy's log, or set its port: --proxy-port (PROXY_PORT)"
	case !responder.Proxy:
		f.Status, f.Text = Fail, fmt.Sprintf("another server listens on this port (%s)", responder)
		f.Remedy = "choose another port, the same for the proxy and proxy-init: --proxy-port (PROXY_PORT)"
	case responder.Status != 200:
		f.Status, f.Text = Fail, fmt.Sprintf("the proxy is not ready: %s", clip(responder.Reason))
		f.Remedy = "fix this first; the steps above say how"
	case ownerErr != nil:
		f.Status, f.Text = Skipped, fmt.Sprintf("the proxy is ready, but its user is unknown: %v", ownerErr)
	case len(owners) == 0:
		f.Status, f.Text = Skipped, "the proxy was ready, but no longer listens on this port"
	default:
		f.Text = "the proxy is ready"
	}
	return f, at
}

// redirect checks where requests to the metadata address go if this user sends them. To
// read the rules themselves requires privileges: the finding has a command with them.
func (r *run) redirect(ctx context.Context, at listener) Finding {
	m := r.cfg.IMDS
	f := Finding{Status: OK, Item: "redirect"}
	responder, err := m.AskRedirect(ctx)
	switch {
	case err == nil && responder.Proxy && at == imposter:
		f.Status, f.Text = Fail, "requests to the metadata address reach a process of another user"
		f.Remedy = "remove the container that listens on the proxy's port"
	case err == nil && responder.Proxy:
		f.Text = "requests to the metadata address reach the proxy"
	case err == nil:
		f.Status, f.Text = Fail, fmt.Sprintf("requests to the metadata address reach another server in this pod (%s)", responder)
		f.Remedy = "remove the other redirect, or exclude " + azure.MetadataIP + " from it (docs/security.md, \"Beside a service mesh\")"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Status, f.Text = Fail, "connections to the metadata address are refused: a rule redirects or rejects them, and no proxy listens"
		f.Remedy = "start the proxy on the port of the redirect (PROXY_PORT of proxy-init)"
	case errors.Is(err, syscall.EPERM):
		f.Status, f.Text, f.Remedy = Skipped, "only root can check this, because the kernel is older than 5.7", r.rulesCommand()
	case m.Exempt && !m.NoRedirect:
		return r.exemptRedirect(ctx)
	default:
		return m.noRedirect(at == proxy)
	}
	return f
}

// exemptRedirect is redirect for the proxy's user. The rules of iptables have no proof for it.
func (r *run) exemptRedirect(ctx context.Context) Finding {
	if responder, err := r.cfg.IMDS.AskProof(ctx); err == nil && responder.Proxy {
		return Finding{Status: OK, Item: "redirect", Text: "the rules are in place and lead to the proxy; they exempt this user"}
	}
	return Finding{Status: Skipped, Item: "redirect", Remedy: r.rulesCommand(),
		Text: "the proxy's user is exempt from the redirect and cannot check it; run as the application (the answer must be ok): curl -sS http://" + azure.MetadataIP + "/readyz"}
}

// noRedirect returns the finding for a pod without a redirect. This is a failure only if a
// proxy is running, because then the application's requests do not reach it.
func (m Metadata) noRedirect(running bool) Finding {
	f := Finding{Status: Note, Item: "redirect", Text: "there is no redirect"}
	switch {
	case m.NoRedirect:
		f.Text += ", as intended; only clients that use " + azure.EnvIMDSHost + " or " + azure.EnvIdentityEndpoint +
			" ask the proxy; any other gets the node's identity, unless the node's IMDS is blocked"
		f.Remedy = denyEgress + "; --ask-imds shows whether it is blocked, and with --require-imds-blocked the proxy is not ready before"
	case !running:
		f.Text += " and no proxy: metadata requests of this pod go to the node"
		f.Remedy = "run proxy-init, then start the proxy"
	default:
		f.Status = Fail
		f.Text += ": metadata requests of this pod go to the node and not to the proxy"
		f.Remedy = "run proxy-init before the proxy; if the pod is meant to have no redirect, set " + azure.EnvIMDSHost + " for the applications and --no-redirect for this check"
	}
	return f
}

// nodeIMDS checks which server answers at the metadata address.
func (r *run) nodeIMDS(ctx context.Context) Finding {
	m := r.cfg.IMDS
	f := Finding{Status: OK, Item: "node's IMDS"}
	responder, err := m.AskReal(ctx)
	switch {
	case err != nil && (m.NoRedirect || m.RequireBlocked):
		f.Text = "blocked, as far as this user can tell: " + exchange.FaultOf(err, "the metadata address").Text
	case err != nil:
		f.Status, f.Text = Note, "not reachable for this user, as expected outside Azure and in a sealed pod: "+exchange.FaultOf(err, "the metadata address").Text
	case responder.Proxy:
		f.Text = "not reachable for this user, because the proxy answers instead"
	case m.Exempt && !m.NoRedirect && !m.RequireBlocked:
		f.Text = fmt.Sprintf("reachable for the proxy's user, which is exempt from the redirect (%s)", responder)
	default:
		f.Status, f.Text = Note, fmt.Sprintf("reachable from this pod (%s): any process here can get the node's identity", responder)
		f.Remedy = "run proxy-init, which redirects the metadata address"
		if m.NoRedirect || m.RequireBlocked {
			f.Remedy = denyEgress
		}
		if m.RequireBlocked {
			f.Status = Fail
		}
	}
	return f
}

// denyEgress is the remedy for a pod without a redirect.
const denyEgress = "deny egress to " + azure.MetadataIP + " by a NetworkPolicy (deploy/no-redirect), or restrict IMDS for the node pool"

// rulesCommand returns the command that checks the redirect's rules. It requires NET_ADMIN, which
// the sidecar does not have.
func (r *run) rulesCommand() string {
	command := "kubectl debug -it POD"
	if namespace := r.namespace(); namespace != "" {
		command += " -n " + namespace
	}
	command += " --profile=netadmin --image=PROXY_INIT_IMAGE -- /proxy-init --check"
	if port := r.cfg.IMDS.Port; port != azure.ProxyPort {
		command += fmt.Sprintf(" --proxy-port=%d", port)
	}
	return command
}

// namespacePattern matches the names that Kubernetes allows. None of their characters is
// special to a shell.
var namespacePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// namespace returns the pod's namespace from the subject of its token. Empty: it is unknown.
func (r *run) namespace() string {
	if r.token == nil {
		return ""
	}
	account, ours := strings.CutPrefix(r.token.Subject, subjectPrefix)
	namespace, _, _ := strings.Cut(account, ":")
	if !ours || !namespacePattern.MatchString(namespace) {
		return ""
	}
	return namespace
}
