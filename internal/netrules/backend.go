package netrules

import "imds-oidc-proxy/internal/azure"

// Backend names a way to install the redirect. A kernel can have rules of all backends at once.
type Backend string

const (
	// Auto is Native if the kernel supports it, else NFT, else Legacy.
	Auto Backend = "auto"
	// Native is nftables by netlink, in a table of its own. It needs no program, and is the
	// only backend with the port guard.
	Native Backend = "native"
	// NFT is iptables on nftables. It needs the program iptables-nft, and kernel modules of
	// iptables (xt_owner and others).
	NFT Backend = "nft"
	// Legacy is iptables on its own kernel interface. It needs the program iptables-legacy.
	Legacy Backend = "legacy"
)

// ParseBackend parses the name of a backend.
func ParseBackend(s string) (Backend, error) {
	switch b := Backend(s); b {
	case Auto, Native, NFT, Legacy:
		return b, nil
	}
	return "", azure.Invalid(s, "must be auto, native, nft or legacy")
}
