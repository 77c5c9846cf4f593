package diagnose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
)

// Metadata finds out who answers metadata requests in this pod. Its functions ask;
// this package only draws conclusions.
type Metadata struct {
	// Port is the proxy's, for texts.
	Port int

	// PortOwner returns the UID of the process that listens at the proxy's port.
	PortOwner func() (uint32, error)

	// ProxyUIDs are the users as which the proxy may run, the usual one first.
	ProxyUIDs []uint32

	// AskPort asks /readyz of the proxy's own port.
	AskPort func(context.Context) (Answer, error)

	// AskRedirect asks /readyz of the metadata address by a connection that can
	// only arrive where a redirect leads it, and never leave the machine.
	AskRedirect func(context.Context) (Answer, error)

	// AskReal asks /metadata/versions, which needs no identity, of the metadata
	// address over whatever way there is. Nil: it is not asked.
	AskReal func(context.Context) (Answer, error)

	// Exempt says that this process runs as the proxy's own user, whom a redirect
	// exempts, so that it cannot see one.
	Exempt bool

	// NoRedirect says that the pod is meant to have no redirect.
	NoRedirect bool
}

// Answer is who answered a request, and how.
type Answer struct {
	// Ours says that it was a proxy such as this one.
	Ours bool
	// Server is the Server header.
	Server string
	// Status is the HTTP status.
	Status int
	// Reason is why our own proxy is not ready. It is read of no other answer.
	Reason string
}

// listener is what answers at the proxy's port.
type listener int

const (
	nothing  listener = iota // or what is no proxy
	proxy                    // a proxy such as this one, of its user
	imposter                 // a process of another user
)

func (w *walk) metadata(ctx context.Context) []Finding {
	m := w.cfg.IMDS
	port, at := m.port(ctx)
	w.proxyRuns = at == proxy
	findings := []Finding{port, m.redirect(ctx, at)}
	if m.AskReal != nil {
		findings = append(findings, m.real(ctx))
	}
	return findings
}

// port says who listens on the proxy's port, and whether it is a proxy. The owner is
// looked up after the answer: a proxy that has just started must not vouch for what
// answered before it.
func (m Metadata) port(ctx context.Context) (f Finding, at listener) {
	f = Finding{Status: OK, Item: fmt.Sprintf("127.0.0.1:%d", m.Port)}
	answer, err := m.AskPort(ctx)
	owner, ownerErr := m.PortOwner()
	if err == nil && answer.Ours {
		at = proxy
	}
	switch {
	case ownerErr == nil && !slices.Contains(m.ProxyUIDs, owner):
		at = imposter
		f.Status, f.Text = Fail, fmt.Sprintf("a process of UID %d listens there; the proxy runs as UID %d", owner, m.ProxyUIDs[0])
		f.Remedy = "remove the container that listens there, which can answer applications in the proxy's place; if the proxy runs as that user, run this check in its container"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Status, f.Text = Note, "no proxy listens there"
		f.Remedy = "start it, or name its port: --proxy-port (PROXY_PORT)"
	case err != nil:
		f.Status, f.Text = Fail, "a process listens there and does not answer: "+fault(err)
		f.Remedy = "see the proxy's log, or name its port: --proxy-port (PROXY_PORT)"
	case !answer.Ours:
		f.Status, f.Text = Fail, fmt.Sprintf("another server listens there (%q, status %d)", clip(answer.Server), answer.Status)
		f.Remedy = "give the proxy another port: --proxy-port (PROXY_PORT), the same for proxy-init"
	case answer.Status != 200:
		f.Status, f.Text = Fail, fmt.Sprintf("this proxy, not ready: %s", clip(answer.Reason))
		f.Remedy = "fix what it names; the steps above say how"
	case ownerErr != nil:
		f.Status, f.Text = Skipped, fmt.Sprintf("a proxy answers, ready; its user is not known: %v", ownerErr)
	default:
		f.Text = "this proxy, ready"
	}
	return f, at
}

// redirect says where a request to the metadata address goes that this user makes.
func (m Metadata) redirect(ctx context.Context, at listener) Finding {
	f := Finding{Status: OK, Item: "redirect"}
	answer, err := m.AskRedirect(ctx)
	switch {
	case err == nil && answer.Ours && at == imposter:
		f.Status, f.Text = Fail, "the metadata address leads to the process of another user"
		f.Remedy = "remove the container that listens at the proxy's port"
	case err == nil && answer.Ours:
		f.Text = "the metadata address leads to this proxy"
	case err == nil:
		f.Status, f.Text = Fail, fmt.Sprintf("the metadata address leads to another server in this pod (%q, status %d)", clip(answer.Server), answer.Status)
		f.Remedy = "remove the other redirect, or have it spare 169.254.169.254 (docs/security.md, \"Beside a service mesh\")"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Status, f.Text = Fail, "the metadata address is redirected, or rejected, and no proxy takes the connection"
		f.Remedy = "start the proxy on the port that proxy-init was given (PROXY_PORT)"
	case errors.Is(err, syscall.EPERM):
		f.Status, f.Text = Skipped, "this kernel lets only root look (before 5.7)"
	case m.Exempt && !m.NoRedirect:
		f.Status, f.Text = Skipped, "not to be seen by the proxy's own user, whom it exempts; ask as the application: curl -sS http://169.254.169.254/readyz says ok"
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
		f.Text += ", as is meant; applications need AZURE_POD_IDENTITY_AUTHORITY_HOST"
	case !running:
		f.Text += ", nor a proxy: metadata requests of this pod go to the node"
		f.Remedy = "run proxy-init, then the proxy"
	default:
		f.Status, f.Text = Fail, "there is none: metadata requests of this pod go to the node, past the proxy"
		f.Remedy = "run proxy-init before the proxy; where none is meant to be, set AZURE_POD_IDENTITY_AUTHORITY_HOST for the applications and say --no-redirect here"
	}
	return f
}

// real says who answered at the metadata address when asked outright.
func (m Metadata) real(ctx context.Context) Finding {
	f := Finding{Status: OK, Item: "node's IMDS"}
	answer, err := m.AskReal(ctx)
	switch {
	case err != nil:
		f.Status, f.Text = Note, "nobody answers for this user: "+fault(err)+"; outside Azure, and in a sealed pod, that is as it should be"
	case answer.Ours:
		f.Text = "out of reach of this user: the proxy answers in its place"
	case m.Exempt && !m.NoRedirect:
		f.Text = fmt.Sprintf("answers the proxy's own user, whom a redirect exempts (%q, status %d)", clip(answer.Server), answer.Status)
	default:
		f.Status, f.Text = Note, fmt.Sprintf("answers this user (%q, status %d): so it does any process of this pod", clip(answer.Server), answer.Status)
		f.Remedy = "run proxy-init, which redirects the metadata address"
	}
	return f
}
