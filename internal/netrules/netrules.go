// Package netrules plans, applies, proves and removes the redirect of the
// metadata address to the proxy.
//
// A [Config] becomes a [Plan] by a pure function; a [Ruleset] is the network
// namespace's iptables, on the backend (nft or legacy) in use there:
//
//	plan := netrules.NewPlan(config)
//	rules, err := netrules.Open(ctx, netrules.Options{Mode: netrules.ModeAuto})
//	err = rules.Apply(ctx, plan)         // one atomic commit per table
//	proof, err := netrules.Prove(ctx, config)
//
// Applying is declarative: whatever an earlier run, with another port or mode,
// left behind is replaced, and so are the rules of azure-workload-identity's
// proxy-init. Rules of anybody else are never touched.
//
// The package installs nothing for IPv6. Azure's metadata service has no IPv6
// address, and the mapped form ::ffff:169.254.169.254 leaves the kernel as IPv4,
// through these rules.
//
// # Security considerations
//
// The rules bind whoever lacks CAP_NET_ADMIN in the namespace. They match in
// OUTPUT, so a packet socket (CAP_NET_RAW and AF_PACKET) passes below them. In
// forwarding mode a process that can become the proxy's UID and GID is exempt.
// docs/security.md has the whole threat model.
//
// Every failure leaves the namespace as it was or more closed: the filter table,
// which rejects, is committed before the nat table, which redirects.
package netrules

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// Config says what the redirect is to be.
type Config struct {
	// Metadata is the address and TCP port that clients dial. An IPv4 address.
	Metadata netip.AddrPort

	// ProxyPort is the port on 127.0.0.1 where the proxy listens. Never zero.
	ProxyPort uint16

	// UID and GID are the proxy's own. In forwarding mode a process must have
	// both to reach the metadata service, and neither is zero: root is what most
	// containers run as. When Sealed, the rules exempt nobody, and UID only says
	// which user may listen at ProxyPort.
	UID, GID uint32

	// Sealed exempts nobody: nothing in the namespace reaches the metadata
	// address. False is forwarding mode.
	Sealed bool

	// Deny lists further destinations to reject, for every process. Empty: none.
	// Never the metadata address, which has its own rules: they come first, so that
	// to deny it would say what is not so.
	Deny []Target
}

// Target is a destination to reject.
type Target struct {
	// Prefix holds the addresses: IPv4, masked.
	Prefix netip.Prefix

	// Port is a TCP port. Zero: every port and protocol.
	Port uint16
}

// ParseTarget reads CIDR[:port], where an address alone is its own /32.
func ParseTarget(s string) (Target, error) {
	host, port, hasPort := strings.Cut(s, ":")
	if !strings.Contains(host, "/") {
		host += "/32"
	}
	prefix, err := netip.ParsePrefix(host)
	if err != nil || !prefix.Addr().Is4() {
		return Target{}, azure.Invalid(s, "must be an IPv4 address or CIDR, with or without :PORT")
	}
	t := Target{Prefix: prefix.Masked()}
	if hasPort {
		if t.Port, err = azure.ParsePort(port); err != nil {
			return Target{}, fmt.Errorf("port %w", err)
		}
	}
	return t, nil
}

// String is the form that [ParseTarget] reads.
func (t Target) String() string {
	if t.Port == 0 {
		return t.Prefix.String()
	}
	return t.Prefix.String() + ":" + strconv.Itoa(int(t.Port))
}

// Errors of [Config.Validate]. A front end maps each to its flag.
var (
	ErrMetadataAddress = errors.New("must be the IPv4 unicast address of another host, outside 127.0.0.0/8")
	ErrMetadataPort    = errors.New("the metadata service's port must be between 1 and 65535")
	ErrProxyPort       = errors.New("the proxy's port must be between 1 and 65535")
	ErrExemptRoot      = errors.New("must not be root: any container that runs as root would reach the node's identity")
	ErrDenyTooWide     = errors.New("must not contain loopback addresses")
	ErrDenyMetadata    = errors.New("must not contain the metadata address, which has rules of its own: " +
		"leave it out of the range; to close it for the proxy too, seal")
)

// loopback is where the redirect goes, and so must stay reachable.
var loopback = netip.MustParsePrefix("127.0.0.0/8")

// Validate reports the first setting that cannot give a working redirect.
func (c Config) Validate() error {
	addr := c.Metadata.Addr()
	switch {
	case !addr.Is4() || addr.IsUnspecified() || addr.IsLoopback() || addr.IsMulticast() || addr == broadcast:
		return ErrMetadataAddress
	case c.Metadata.Port() == 0:
		return ErrMetadataPort
	case c.ProxyPort == 0:
		return ErrProxyPort
	case !c.Sealed && (c.UID == 0 || c.GID == 0):
		return ErrExemptRoot
	}
	for _, t := range c.Deny {
		if t.Prefix.Overlaps(loopback) {
			return fmt.Errorf("%s: %w", t, ErrDenyTooWide)
		}
		if t.Prefix.Contains(addr) {
			return fmt.Errorf("%s: %w", t, ErrDenyMetadata)
		}
	}
	return nil
}

// broadcast is the one IPv4 address that is neither unicast nor multicast.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
