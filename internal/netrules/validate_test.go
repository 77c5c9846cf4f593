package netrules

import (
	"net/netip"
	"os"
	"strings"
	"testing"
)

// TestValidateWithoutRedirect has no rules. In test/e2e, Validate runs with real ones.
func TestValidateWithoutRedirect(t *testing.T) {
	other, elsewhere := listen(t)
	go func() {
		for {
			conn, err := other.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	_, inUse := listen(t)
	refusing := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(t))
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	for name, tt := range map[string]struct {
		config Config
		want   Proof
		kind   Kind
		text   string
	}{
		"another server":                    {Config{Metadata: elsewhere, ProxyPort: freePort(t), UID: uid + 1, GID: gid}, "", NoRedirect, "the CNI plugin did not run on this node"},
		"no server":                         {Config{Metadata: refusing, ProxyPort: freePort(t), UID: uid + 1, GID: gid}, "", NoRedirect, "connection refused"},
		"the port of another user":          {Config{Metadata: elsewhere, ProxyPort: inUse.Port(), UID: uid + 1, GID: gid}, "", PortTaken, "is taken"},
		"the proxy listens, no redirect":    {Config{Metadata: elsewhere, ProxyPort: inUse.Port(), UID: uid, GID: gid + 1}, "", NoRedirect, "another server answered"},
		"the proxy listens, and is reached": {Config{Metadata: inUse, ProxyPort: inUse.Port(), UID: uid, GID: gid + 1}, ProvenByProxy, 0, ""},
		"the proxy's user":                  {Config{Metadata: elsewhere, ProxyPort: freePort(t), UID: uid, GID: gid}, "", 0, "run the validation as another user"},
		"the proxy's user, in a sealed pod": {Config{Metadata: elsewhere, ProxyPort: freePort(t), UID: uid, GID: gid, Sealed: true}, "", 0, "run the validation as another user"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // a port of this user is tried again until portTimeout
			got, err := Validate(t.Context(), tt.config)
			e, _ := err.(*Error)
			if got != tt.want || kindOf(err) != tt.kind || (err == nil) != (tt.want != "") {
				t.Errorf("got %q, %v, want %q, kind %d", got, err, tt.want, tt.kind)
			}
			if e != nil && !strings.Contains(e.Cause+e.Remedy, tt.text) {
				t.Errorf("got %q, %q, want %q", e.Cause, e.Remedy, tt.text)
			}
		})
	}
}
