package netrules

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The functions below return the parts of rules. The expressions are those that nft makes of
// the text, and that the kernel returns: it adds what was left out, such as the end of a range
// of ports, and the rules are compared with what it returns.

// rule joins parts to a rule.
func rule(parts ...nftRule) nftRule { return slices.Concat(parts...) }

// part returns a rule of one part.
func part(text string, exprs ...expr.Any) nftRule { return nftRule{{text, exprs}} }

// The register for the next comparison, and that for the second part of a pair. A register has
// 16 bytes, or 4 if its number is 8 or higher; register and secondWord are adjacent.
const (
	register   = 1
	register2  = 2
	secondWord = 9
)

// equal compares the register.
func equal(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data} }

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: register} }

func ipv4() nftRule {
	return part("meta nfproto ipv4", meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV4}))
}

func ipv6() nftRule {
	return part("meta nfproto ipv6", meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV6}))
}

func tcp() nftRule {
	return part("meta l4proto tcp", meta(expr.MetaKeyL4PROTO), equal([]byte{unix.IPPROTO_TCP}))
}

// Offsets in the headers of IPv4, IPv6 and TCP.
const (
	ipv4Source, ipv4Destination = 12, 16
	ipv6Source                  = 8
	tcpSource, tcpDestination   = 0, 2
	tcpOffsetAndFlags           = 12
	tcpFlags                    = 13
	tcpChecksum                 = 16
)

// The flags of a TCP header.
const (
	flagRST = 0x04
	flagACK = 0x10
)

func networkHeader(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func tcpHeader(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

// daddr matches the destination of an IPv4 packet.
func daddr(a netip.Addr) nftRule {
	return part("ip daddr "+a.String(), networkHeader(ipv4Destination, 4), equal(a.AsSlice()))
}

// saddr matches the source of a packet.
func saddr(a netip.Addr) nftRule {
	if a.Is6() {
		return part("ip6 saddr "+a.String(), networkHeader(ipv6Source, 16), equal(a.AsSlice()))
	}
	return part("ip saddr "+a.String(), networkHeader(ipv4Source, 4), equal(a.AsSlice()))
}

func dport(port uint16) nftRule { return tcpPort("dport", tcpDestination, port) }

func sport(port uint16) nftRule { return tcpPort("sport", tcpSource, port) }

func tcpPort(name string, offset uint32, port uint16) nftRule {
	isTCP := tcp()[0].exprs
	return part(fmt.Sprintf("tcp %s %d", name, port), append(isTCP, tcpHeader(offset, 2), equal(binaryutil.BigEndian.PutUint16(port)))...)
}

// owner matches the packets of processes with the proxy's user and group.
func owner(c Config) nftRule {
	return rule(
		part(fmt.Sprintf("meta skuid %d", c.UID), meta(expr.MetaKeySKUID), equal(binaryutil.NativeEndian.PutUint32(c.UID))),
		part(fmt.Sprintf("meta skgid %d", c.GID), meta(expr.MetaKeySKGID), equal(binaryutil.NativeEndian.PutUint32(c.GID))),
	)
}

// noUser is the number that is no user, in every user namespace.
const noUser uint32 = 1<<32 - 1

// anyOwner matches the packets of all users, and not those without an owner.
func anyOwner() nftRule {
	return part(fmt.Sprintf("meta skuid != %d", noUser), meta(expr.MetaKeySKUID),
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: binaryutil.NativeEndian.PutUint32(noUser)})
}

func outLoopback() nftRule {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return part(`oifname "lo"`, meta(expr.MetaKeyOIFNAME), equal(name))
}

// reply matches the packets of a connection's answering side.
func reply() nftRule {
	const directionReply = 1 // IP_CT_DIR_REPLY
	return part("ct direction reply", &expr.Ct{Key: expr.CtKeyDIRECTION, Register: register}, equal([]byte{directionReply}))
}

func inDenyAll() nftRule {
	return part("ip daddr @"+denyAll, networkHeader(ipv4Destination, 4), &expr.Lookup{SourceRegister: register, SetName: denyAll})
}

// inDenyPorts matches the destination of a TCP packet.
func inDenyPorts() nftRule {
	port := &expr.Payload{DestRegister: secondWord, Base: expr.PayloadBaseTransportHeader, Offset: tcpDestination, Len: 2}
	return part("ip daddr . tcp dport @"+denyPorts,
		networkHeader(ipv4Destination, 4), port, &expr.Lookup{SourceRegister: register, SetName: denyPorts})
}

// isReset matches a TCP reset.
func isReset() nftRule {
	return part("tcp flags & rst == rst",
		tcpHeader(tcpFlags, 1),
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 1, Mask: []byte{flagRST}, Xor: []byte{0}},
		equal([]byte{flagRST}))
}

// becomeReset turns a TCP packet into a reset that acknowledges, by which the other side refuses
// a connection, or closes it. It keeps the byte with the length of the header.
func becomeReset() nftRule {
	return part("tcp flags set rst | ack",
		tcpHeader(tcpOffsetAndFlags, 2),
		&expr.Bitwise{SourceRegister: register, DestRegister: register, Len: 2, Mask: []byte{0xff, 0}, Xor: []byte{0, flagRST | flagACK}},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: register, Base: expr.PayloadBaseTransportHeader,
			Offset: tcpOffsetAndFlags, Len: 2, CsumType: expr.CsumTypeInet, CsumOffset: tcpChecksum})
}

// pass ends the evaluation of a chain. The chains of others still see the packet.
func pass() nftRule { return part("return", &expr.Verdict{Kind: expr.VerdictReturn}) }

func reset() nftRule {
	return part("reject with tcp reset", &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

func unreachable() nftRule {
	const portUnreachable = 3 // ICMP_PORT_UNREACH
	return part("reject with icmp port-unreachable", &expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: portUnreachable})
}

func dnat(to netip.AddrPort) nftRule {
	return part("dnat ip to "+to.String(),
		&expr.Immediate{Register: register, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: register2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: register, RegAddrMax: register,
			RegProtoMin: register2, RegProtoMax: register2, Specified: true})
}

func redirect(port uint16) nftRule {
	return part(fmt.Sprintf("redirect to :%d", port),
		&expr.Immediate{Register: register, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: register, RegisterProtoMax: register, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED})
}
