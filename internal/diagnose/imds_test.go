package diagnose_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"imds-oidc-proxy/internal/diagnose"
)

// TestMetadata: the findings for each server that may answer.
func TestMetadata(t *testing.T) {
	type asked struct {
		responder diagnose.Responder
		err       error
	}
	ours := asked{diagnose.Responder{Proxy: true, Header: "imds-oidc-proxy/dev", Status: 200}, nil}
	unready := asked{diagnose.Responder{Proxy: true, Status: 503, Reason: "federated-token: has expired"}, nil}
	other := asked{diagnose.Responder{Header: "envoy", Status: 404}, nil}
	refused := asked{err: fmt.Errorf("dial: %w", syscall.ECONNREFUSED)}
	lost := asked{err: context.DeadlineExceeded}
	denied := asked{err: fmt.Errorf("binding: %w", syscall.EPERM)}
	for _, test := range []struct {
		name               string
		port, redirect     asked
		proof              asked
		exempt, noRedirect bool
		wantPort           diagnose.Status
		wantRedirect       diagnose.Status
		wantText           string
	}{
		{"good, as the application", ours, ours, refused, false, false, diagnose.OK, diagnose.OK, "reach the proxy"},
		{"rules of iptables, as the proxy", ours, lost, refused, true, false, diagnose.OK, diagnose.Skipped, "is exempt from the redirect"},
		{"native rules, as the proxy", ours, lost, ours, true, false, diagnose.OK, diagnose.OK, "the rules are in place"},
		{"another server at the address of the proof", ours, lost, other, true, false, diagnose.OK, diagnose.Skipped, "is exempt from the redirect"},
		{"sealed, as the proxy", ours, ours, refused, true, false, diagnose.OK, diagnose.OK, "reach the proxy"},
		{"no redirect", ours, lost, refused, false, false, diagnose.OK, diagnose.Fail, "not to the proxy"},
		{"no redirect, as intended", ours, lost, refused, false, true, diagnose.OK, diagnose.Note, "as intended"},
		{"no redirect, as intended, as the proxy", ours, lost, refused, true, true, diagnose.OK, diagnose.Note, "as intended"},
		{"no redirect and no proxy", refused, lost, refused, false, false, diagnose.Note, diagnose.Note, "no redirect and no proxy"},
		{"a redirect without a proxy", refused, refused, refused, false, false, diagnose.Note, diagnose.Fail, "no proxy listens"},
		{"a proxy that is not ready", unready, unready, refused, false, false, diagnose.Fail, diagnose.OK, "reach the proxy"},
		{"another server on the port", other, lost, refused, false, false, diagnose.Fail, diagnose.Note, "no redirect and no proxy"},
		{"a mesh", ours, other, refused, false, false, diagnose.OK, diagnose.Fail, "envoy"},
		{"a port without an answer", lost, lost, refused, false, false, diagnose.Fail, diagnose.Note, "no redirect and no proxy"},
		{"an old kernel", ours, denied, refused, false, false, diagnose.OK, diagnose.Skipped, "kernel"},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := config(t, goodClaims())
			owners := []uint32{1501}
			if errors.Is(test.port.err, syscall.ECONNREFUSED) {
				owners = nil
			}
			cfg.IMDS = diagnose.Metadata{
				Port:        8000,
				ProxyUIDs:   []uint32{1501},
				PortOwners:  func() ([]uint32, error) { return owners, nil },
				AskPort:     func(context.Context) (diagnose.Responder, error) { return test.port.responder, test.port.err },
				AskRedirect: func(context.Context) (diagnose.Responder, error) { return test.redirect.responder, test.redirect.err },
				AskProof:    func(context.Context) (diagnose.Responder, error) { return test.proof.responder, test.proof.err },
				Exempt:      test.exempt, NoRedirect: test.noRedirect,
			}
			report := diagnose.Run(t.Context(), cfg, nil)
			if f := finding(t, report, diagnose.IMDS, "127.0.0.1:8000"); f.Status != test.wantPort {
				t.Errorf("port: got %+v, want %s", f, test.wantPort)
			}
			if f := finding(t, report, diagnose.IMDS, "redirect"); f.Status != test.wantRedirect || !strings.Contains(f.Text, test.wantText) {
				t.Errorf("redirect: got %+v, want %s and %q", f, test.wantRedirect, test.wantText)
			}
		})
	}
}

// TestPortOwner: the check does not trust the answer of another user's process, even if it
// is the same as the proxy's answer.
func TestPortOwner(t *testing.T) {
	ours := func(context.Context) (diagnose.Responder, error) {
		return diagnose.Responder{Proxy: true, Header: "imds-oidc-proxy/dev", Status: 200}, nil
	}
	for name, test := range map[string]struct {
		owners       []uint32
		err          error
		want         diagnose.Status
		wantRedirect diagnose.Status
		wantText     string
	}{
		"the proxy's user":                     {[]uint32{1501}, nil, diagnose.OK, diagnose.OK, "the proxy is ready"},
		"the check's user":                     {[]uint32{2000}, nil, diagnose.OK, diagnose.OK, "the proxy is ready"},
		"the application":                      {[]uint32{1000}, nil, diagnose.Fail, diagnose.Fail, "a process of UID 1000 listens on this port, but the proxy runs as UID 1501"},
		"a proxy that shuts down, and another": {[]uint32{1000, 1501}, nil, diagnose.Fail, diagnose.Fail, "a process of UID 1000 listens on this port"},
		"root":                                 {[]uint32{0}, nil, diagnose.Fail, diagnose.Fail, "a process of UID 0 listens on this port"},
		"unknown":                              {nil, errors.New("permission denied"), diagnose.Skipped, diagnose.OK, "permission denied"},
		"no longer running":                    {nil, nil, diagnose.Skipped, diagnose.OK, "no longer listens"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, goodClaims())
			cfg.IMDS = diagnose.Metadata{
				Port: 8000, ProxyUIDs: []uint32{1501, 2000}, AskPort: ours, AskRedirect: ours,
				PortOwners: func() ([]uint32, error) { return test.owners, test.err },
			}
			report := diagnose.Run(t.Context(), cfg, nil)
			if f := finding(t, report, diagnose.IMDS, "127.0.0.1:8000"); f.Status != test.want || !strings.Contains(f.Text, test.wantText) {
				t.Errorf("port: got %+v, want %s and %q", f, test.want, test.wantText)
			}
			if f := finding(t, report, diagnose.IMDS, "redirect"); f.Status != test.wantRedirect {
				t.Errorf("redirect: got %+v, want %s", f, test.wantRedirect)
			}
		})
	}
}

// TestPortGuardRefusesProxy: a port at which the proxy's user listens, and which refuses
// connections, has a port guard for another user.
func TestPortGuardRefusesProxy(t *testing.T) {
	for name, test := range map[string]struct {
		owners []uint32
		want   diagnose.Status
		text   string
	}{
		"the proxy listens": {[]uint32{1501}, diagnose.Fail, "its answers are refused: the port guard of proxy-init expects another user or group"},
		"nobody listens":    {nil, diagnose.Note, "no process listens on this port"},
		"an impostor":       {[]uint32{1000}, diagnose.Fail, "a process of UID 1000 listens on this port"},
	} {
		cfg := config(t, goodClaims())
		refused := func(context.Context) (diagnose.Responder, error) { return diagnose.Responder{}, syscall.ECONNREFUSED }
		cfg.IMDS = diagnose.Metadata{
			Port: 8000, ProxyUIDs: []uint32{1501}, AskPort: refused, AskRedirect: refused,
			PortOwners: func() ([]uint32, error) { return test.owners, nil },
		}
		report := diagnose.Run(t.Context(), cfg, nil)
		if f := finding(t, report, diagnose.IMDS, "127.0.0.1:8000"); f.Status != test.want || !strings.Contains(f.Text, test.text) {
			t.Errorf("%s: got %+v, want %s and %q", name, f, test.want, test.text)
		}
	}
}

// TestRealIMDS: the finding depends on the server that answers.
func TestRealIMDS(t *testing.T) {
	node := diagnose.Responder{Header: "IMDS/150.870.65.1325", Status: 200}
	for _, test := range []struct {
		name      string
		responder diagnose.Responder
		err       error
		exempt    bool
		want      diagnose.Status

		noRedirect, requireBlocked bool
		remedy                     string
	}{
		{"the node, exempt", node, nil, true, diagnose.OK, false, false, ""},
		{"the node, not exempt", node, nil, false, diagnose.Note, false, false, "run proxy-init"},
		{"the node, exempt, no redirect", node, nil, true, diagnose.Note, true, false, "deny egress to 169.254.169.254"},
		{"the node, exempt, must be blocked", node, nil, true, diagnose.Fail, false, true, "deny egress to 169.254.169.254"},
		{"the node, no redirect, must be blocked", node, nil, true, diagnose.Fail, true, true, "deny egress to 169.254.169.254"},
		{"the proxy", diagnose.Responder{Proxy: true, Status: 200}, nil, false, diagnose.OK, false, false, ""},
		{"the proxy, the node must be blocked", diagnose.Responder{Proxy: true, Status: 200}, nil, false, diagnose.OK, false, true, ""},
		{"no answer", diagnose.Responder{}, errors.New("lost"), false, diagnose.Note, false, false, ""},
		{"no answer, no redirect", diagnose.Responder{}, errors.New("lost"), false, diagnose.OK, true, false, ""},
		{"no answer, must be blocked", diagnose.Responder{}, errors.New("lost"), false, diagnose.OK, false, true, ""},
	} {
		cfg := config(t, goodClaims())
		cfg.IMDS.Exempt, cfg.IMDS.NoRedirect, cfg.IMDS.RequireBlocked = test.exempt, test.noRedirect, test.requireBlocked
		cfg.IMDS.AskReal = func(context.Context) (diagnose.Responder, error) { return test.responder, test.err }
		if f := finding(t, diagnose.Run(t.Context(), cfg, nil), diagnose.IMDS, "node's IMDS"); f.Status != test.want || !strings.HasPrefix(f.Remedy, test.remedy) {
			t.Errorf("%s: got %+v, want %s, %q", test.name, f, test.want, test.remedy)
		}
	}
}

// TestNoRedirectIsNotSilent: in a pod that is meant to have no redirect, the finding says that the
// node's identity may be reachable, and how to block it.
func TestNoRedirectIsNotSilent(t *testing.T) {
	cfg := config(t, goodClaims())
	cfg.IMDS.NoRedirect = true
	cfg.IMDS.AskRedirect = func(context.Context) (diagnose.Responder, error) {
		return diagnose.Responder{}, context.DeadlineExceeded
	}
	f := finding(t, diagnose.Run(t.Context(), cfg, nil), diagnose.IMDS, "redirect")
	if f.Status != diagnose.Note || !strings.Contains(f.Text, "gets the node's identity") || !strings.Contains(f.Remedy, "NetworkPolicy") {
		t.Errorf("got %+v", f)
	}
}

// TestRulesCommand: if this process cannot check the redirect, the finding has a command that
// can, with the namespace and the port of this pod.
func TestRulesCommand(t *testing.T) {
	for _, test := range []struct {
		subject string
		port    uint16
		want    string
		end     string
	}{
		{subject, 8000, "kubectl debug -it POD -n shop --profile=netadmin --image=PROXY_INIT_IMAGE -- /proxy-init --check", "\n"},
		{subject, 8123, "/proxy-init --check --proxy-port=8123", "\n"},
		{"system:serviceaccount:$(reboot):x", 8000, "-it POD --profile", ""},
		{"someone@example.test", 8000, "-it POD --profile", ""},
	} {
		claims := goodClaims()
		claims["sub"] = test.subject
		cfg := config(t, claims)
		cfg.IMDS.Port, cfg.IMDS.Exempt = test.port, true
		f := finding(t, diagnose.Run(t.Context(), cfg, nil), diagnose.IMDS, "redirect")
		if f.Status != diagnose.Skipped || !strings.Contains(f.Remedy+"\n", test.want+test.end) {
			t.Errorf("%s: got %+v, want %q", test.subject, f, test.want)
		}
	}
}
