// Package netrules plans, applies, proves and removes the rules that redirect the metadata
// address to the proxy.
//
// [NewPlan] is a pure function from a [Config] to a [Plan]. A [Ruleset] represents the rules of
// the network namespace, with the [Backend] in use there: native nftables, or iptables with its
// nft or legacy backend:
//
//	plan := netrules.NewPlan(config)
//	rules, err := netrules.Open(ctx, netrules.Options{Backend: netrules.Auto})
//	err = rules.Apply(ctx, plan)
//	proof, err := netrules.Prove(ctx, config, rules.Guard())
//
// Apply is idempotent. It replaces the rules of earlier runs, with other settings and backends
// too, and those of azure-workload-identity's proxy-init. It never changes the rules of other
// programs.
//
// [InstallIn] and [CheckIn] do the same from outside of the namespace, with the native backend.
// [Validate] proves from inside, without privileges, what another program has installed.
//
// The package redirects and rejects nothing on IPv6. Azure's metadata service has no IPv6 address,
// and the kernel sends packets to the mapped address ::ffff:169.254.169.254 as IPv4, so that these
// rules apply. The port guard of the native backend covers ::1, too.
//
// # Security considerations
//
// The rules constrain processes without CAP_NET_ADMIN in the namespace. They match in the hook
// output, so they do not apply to packet sockets (AF_PACKET, which needs CAP_NET_RAW). In
// forwarding mode a process that can change to the proxy's UID and GID is exempt. docs/security.md
// has the whole threat model.
//
// The package fails closed: after a failure the rules are unchanged or reject more than before. The
// native backend has one transaction. With iptables, the filter table, which rejects, is committed
// before the nat table, which redirects.
package netrules

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"imds-oidc-proxy/internal/azure"
)

// Config configures the redirect.
type Config struct {
	// Metadata is the address and TCP port that clients connect to. It must be an IPv4
	// address.
	Metadata netip.AddrPort

	// ProxyPort is the port on 127.0.0.1 where the proxy listens. It must not be zero.
	ProxyPort uint16

	// UID and GID are those of the proxy. In forwarding mode a process must have both to
	// reach the metadata service, and neither may be zero, because most containers run as
	// root. When Sealed, the rules exempt no process, and UID is only the user that may
	// listen at ProxyPort.
	UID, GID uint32

	// Sealed exempts no process: nothing in the namespace reaches the metadata address.
	// Otherwise the mode is forwarding.
	Sealed bool

	// Deny lists further destinations to reject, for every process. It must not contain
	// the metadata address: its own rules come first, so denying it would have no effect.
	// It has at most [MaxDeny] items.
	Deny []Target
}

// Target is a destination to reject.
type Target struct {
	// Prefix is the range of IPv4 addresses, with zeros after the prefix length.
	Prefix netip.Prefix

	// Port is a TCP port. Zero means all ports and protocols.
	Port uint16
}

// ParseTarget parses CIDR[:PORT]. An address without a prefix length means /32.
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

// String returns the target in the format of [ParseTarget].
func (t Target) String() string {
	if t.Port == 0 {
		return t.Prefix.String()
	}
	return t.Prefix.String() + ":" + strconv.Itoa(int(t.Port))
}

// Errors of [Config.Validate]. The caller adds the name of the flag.
var (
	ErrMetadataAddress = errors.New("must be the IPv4 unicast address of another host, outside 127.0.0.0/8")
	ErrMetadataPort    = errors.New("the metadata service's port must be between 1 and 65535")
	ErrProxyPort       = errors.New("the proxy's port must be between 1 and 65535")
	ErrExemptRoot      = errors.New("must not be root: any container that runs as root would reach the node's identity")
	ErrDenyTooWide     = errors.New("must not contain loopback addresses")
	ErrDenyTooMany     = fmt.Errorf("must have at most %d destinations", MaxDeny)
	ErrDenyMetadata    = errors.New("must not contain the metadata address, which has its own rules: " +
		"exclude it from the range; to reject it for the proxy too, use --seal")
)

// MaxDeny is the maximum number of denied destinations. The kernel must accept them in one
// transaction, whose size is limited by the buffer of a socket: 208 KiB by default, and an element
// of a set takes at most 44 bytes.
const MaxDeny = 2000

// loopback contains the destination of the redirect, which must stay reachable.
var loopback = netip.MustParsePrefix("127.0.0.0/8")

// Validate returns an error for the first setting with which the redirect cannot work.
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
	case len(c.Deny) > MaxDeny:
		return ErrDenyTooMany
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

// broadcast is the limited broadcast address, which is neither unicast nor multicast.
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
