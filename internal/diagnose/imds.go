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

// Metadata finds out who answers metadata requests in this pod. Its functions make the
// requests; this package only draws conclusions.
type Metadata struct {
	// Port is the proxy's, for texts.
	Port uint16

	// PortOwners returns the UIDs of the processes that listen at the proxy's port.
	PortOwners func() ([]uint32, error)

	// ProxyUIDs are the users as which the proxy may run, the usual one first.
	ProxyUIDs []uint32

	// AskPort asks /readyz of the proxy's own port.
	AskPort func(context.Context) (Responder, error)

	// AskRedirect asks /readyz of the metadata address by a connection that can
	// only arrive where a redirect leads it, and never leave the machine.
	AskRedirect func(context.Context) (Responder, error)

	// AskReal asks /metadata/versions, which needs no identity, of the metadata
	// address over whatever way there is. Nil: it is not asked.
	AskReal func(context.Context) (Responder, error)

	// Exempt says that this process runs as the proxy's own user, whom a redirect
	// exempts, so that it cannot see one.
	Exempt bool

	// NoRedirect says that the pod is meant to have no redirect.
	NoRedirect bool
}

// Responder is the server that answered a request, and how.
type Responder struct {
	// Proxy says that its Server header is that of a proxy such as this one.
	Proxy bool
	// Header is its Server header.
	Header string
	// Status is the HTTP status.
	Status int
	// Reason is why a proxy is not ready. It is read of no other server.
	Reason string
}

func (r Responder) String() string {
	return fmt.Sprintf("%q, status %d", clip(r.Header), r.Status)
}

// listener is what listens at the proxy's port.
type listener int

const (
	nothing  listener = iota // or another server
	proxy                    // a proxy such as this one, of its user
	imposter                 // a process of another user
)

func (w *walk) metadata(ctx context.Context) []Finding {
	port, at := w.port(ctx)
	findings := []Finding{port, w.redirect(ctx, at)}
	if w.cfg.IMDS.AskReal != nil {
		findings = append(findings, w.nodeIMDS(ctx))
	}
	return findings
}

// port says who listens at the proxy's port, and whether it is a proxy. The owner is
// looked up after the answer: a proxy that has just started must not vouch for what
// answered before it.
func (w *walk) port(ctx context.Context) (f Finding, at listener) {
	m := w.cfg.IMDS
	f = Finding{Status: OK, Item: fmt.Sprintf("127.0.0.1:%d", m.Port)}
	responder, err := m.AskPort(ctx)
	owners, ownerErr := m.PortOwners()
	stranger := slices.IndexFunc(owners, func(uid uint32) bool { return !slices.Contains(m.ProxyUIDs, uid) })
	if err == nil && responder.Proxy {
		at = proxy
	}
	switch {
	case stranger >= 0:
		at = imposter
		f.Status, f.Text = Fail, fmt.Sprintf("a process of UID %d listens there; the proxy runs as UID %d", owners[stranger], m.ProxyUIDs[0])
		f.Remedy = "remove the container that listens there: it can answer applications in the proxy's place; if the proxy runs as that user, run this check in its container"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Status, f.Text = Note, "no proxy listens there"
		f.Remedy = "start it, or name its port: --proxy-port (PROXY_PORT)"
	case err != nil:
		f.Status, f.Text = Fail, "a process listens there and does not answer: "+exchange.FaultOf(err, "it").Text
		f.Remedy = "see the proxy's log, or name its port: --proxy-port (PROXY_PORT)"
	case !responder.Proxy:
		f.Status, f.Text = Fail, fmt.Sprintf("another server listens there (%s)", responder)
		f.Remedy = "give the proxy another port: --proxy-port (PROXY_PORT), the same for proxy-init"
	case responder.Status != 200:
		f.Status, f.Text = Fail, fmt.Sprintf("this proxy, not ready: %s", clip(responder.Reason))
		f.Remedy = "fix what it names; the steps above say how"
	case ownerErr != nil:
		f.Status, f.Text = Skipped, fmt.Sprintf("a proxy answers, ready; its user is not known: %v", ownerErr)
	case len(owners) == 0:
		f.Status, f.Text = Skipped, "a proxy answered, ready, and no longer listens"
	default:
		f.Text = "this proxy, ready"
	}
	return f, at
}

// redirect says where a request to the metadata address goes that this user makes. The
// rules themselves take privileges to read: the finding names the command that has them.
func (w *walk) redirect(ctx context.Context, at listener) Finding {
	m := w.cfg.IMDS
	f := Finding{Status: OK, Item: "redirect"}
	responder, err := m.AskRedirect(ctx)
	switch {
	case err == nil && responder.Proxy && at == imposter:
		f.Status, f.Text = Fail, "the metadata address leads to the process of another user"
		f.Remedy = "remove the container that listens at the proxy's port"
	case err == nil && responder.Proxy:
		f.Text = "the metadata address leads to this proxy"
	case err == nil:
		f.Status, f.Text = Fail, fmt.Sprintf("the metadata address leads to another server in this pod (%s)", responder)
		f.Remedy = "remove the other redirect, or have it spare 169.254.169.254 (docs/security.md, \"Beside a service mesh\")"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Status, f.Text = Fail, "the metadata address is redirected, or rejected, and no proxy takes the connection"
		f.Remedy = "start the proxy on the port that proxy-init was given (PROXY_PORT)"
	case errors.Is(err, syscall.EPERM):
		f.Status, f.Text, f.Remedy = Skipped, "this kernel lets only root look (before 5.7)", w.rulesCommand()
	case m.Exempt && !m.NoRedirect:
		f.Status, f.Remedy = Skipped, w.rulesCommand()
		f.Text = "not visible to the proxy's own user, whom it exempts; run as the application, expecting ok: curl -sS http://169.254.169.254/readyz"
	default:
		return m.noRedirect(at == proxy)
	}
	return f
}

// noRedirect is a fault only where a proxy waits for requests that go elsewhere.
func (m Metadata) noRedirect(running bool) Finding {
	f := Finding{Status: Note, Item: "redirect", Text: "there is none"}
	switch {
	case m.NoRedirect:
		f.Text += ", as intended; applications need " + azure.EnvIMDSHost
	case !running:
		f.Text += ", nor a proxy: metadata requests of this pod go to the node"
		f.Remedy = "run proxy-init, then the proxy"
	default:
		f.Status, f.Text = Fail, "there is none: metadata requests of this pod go to the node, past the proxy"
		f.Remedy = "run proxy-init before the proxy; where none is intended, set " + azure.EnvIMDSHost + " for the applications, and --no-redirect here"
	}
	return f
}

// nodeIMDS says who answers at the metadata address when asked directly.
func (w *walk) nodeIMDS(ctx context.Context) Finding {
	m := w.cfg.IMDS
	f := Finding{Status: OK, Item: "node's IMDS"}
	responder, err := m.AskReal(ctx)
	switch {
	case err != nil:
		f.Status, f.Text = Note, "not reachable for this user, as outside Azure and in a sealed pod: "+exchange.FaultOf(err, "the metadata address").Text
	case responder.Proxy:
		f.Text = "out of reach of this user: the proxy answers in its place"
	case m.Exempt && !m.NoRedirect:
		f.Text = fmt.Sprintf("answers the proxy's own user, whom a redirect exempts (%s)", responder)
	default:
		f.Status, f.Text = Note, fmt.Sprintf("reachable from this pod (%s): any process here can get the node's identity", responder)
		f.Remedy = "run proxy-init, which redirects the metadata address"
	}
	return f
}

// rulesCommand is the command that checks the redirect's rules. It takes NET_ADMIN and
// iptables, which the sidecar has not.
func (w *walk) rulesCommand() string {
	command := "kubectl debug -it POD"
	if namespace := w.namespace(); namespace != "" {
		command += " -n " + namespace
	}
	command += " --profile=netadmin --image=PROXY_INIT_IMAGE -- /proxy-init --check"
	if port := w.cfg.IMDS.Port; port != azure.ProxyPort {
		command += fmt.Sprintf(" --proxy-port=%d", port)
	}
	return command
}

// namespacePattern is what Kubernetes allows, and no more than a shell takes.
var namespacePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// namespace is the pod's, by the subject of its token. Empty: it is not known.
func (w *walk) namespace() string {
	if w.token == nil {
		return ""
	}
	account, ours := strings.CutPrefix(w.token.Subject, subjectPrefix)
	namespace, _, _ := strings.Cut(account, ":")
	if !ours || !namespacePattern.MatchString(namespace) {
		return ""
	}
	return namespace
}
