package netrules

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernel is the nf_tables subsystem of a network namespace, by netlink.
type kernel struct {
	// netns is a file descriptor of the namespace. Zero means this process's namespace.
	netns int
	// options are further options of the connections. Nil means none.
	options []nftables.ConnOption
}

// connect returns a connection for one batch or some readings. It opens a socket for each.
func (k kernel) connect() (*nftables.Conn, error) {
	return nftables.New(append(k.options, nftables.WithNetNSFd(k.netns))...)
}

// listChains lists the chains of all tables.
func (k kernel) listChains() ([]*nftables.Chain, error) {
	conn, err := k.connect()
	if err != nil {
		return nil, err
	}
	return conn.ListChains()
}

// commit replaces the native table and removes the chains of old, in one transaction: there is
// no moment without a redirect. A nil table only removes.
func (k kernel) commit(table *nftTable, old leftovers) error {
	conn, err := k.connect()
	if err != nil {
		return err
	}
	header := &nftables.Table{Name: nativeTable, Family: nftables.TableFamilyINet}
	conn.AddTable(header) // so that deleting it succeeds if it does not exist
	conn.DelTable(header)
	if table != nil {
		if err := table.stage(conn, nativeTable); err != nil {
			return err
		}
	}
	if err := old.stageRemoval(conn); err != nil {
		return err
	}
	return conn.Flush()
}

// maxElements is how many elements of a set one message has. The length of an attribute has 16
// bits, which is enough for 1,400 elements.
const maxElements = 1000

// stage adds the table to the batch of a connection.
func (t nftTable) stage(conn *nftables.Conn, name string) error {
	table := conn.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	for _, s := range t.sets {
		set := s.header(table)
		if err := conn.AddSet(set, nil); err != nil {
			return err
		}
		for elements := range slices.Chunk(s.elements(), maxElements) {
			if err := conn.SetAddElements(set, elements); err != nil {
				return err
			}
		}
	}
	accept := nftables.ChainPolicyAccept
	for _, c := range t.chains {
		chain := conn.AddChain(&nftables.Chain{Name: c.name, Table: table, Type: c.kind,
			Hooknum: nftables.ChainHookOutput, Priority: &c.priority, Policy: &accept})
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r.exprs()})
		}
	}
	return nil
}

func (s nftSet) header(table *nftables.Table) *nftables.Set {
	set := &nftables.Set{Table: table, Name: s.name, Interval: true, KeyType: nftables.TypeIPAddr}
	if s.withPorts {
		set.Concatenation, set.KeyType = true, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	}
	return set
}

// elements returns the elements as the kernel stores them: for each range of addresses its
// start, and the address after its end. For a pair both ends are in one element.
func (s nftSet) elements() []nftables.SetElement {
	var all []nftables.SetElement
	for _, t := range s.targets {
		first, last := t.Prefix.Addr().AsSlice(), lastAddress(t)
		if s.withPorts {
			port := binary.BigEndian.AppendUint16(nil, t.Port)
			port = append(port, 0, 0) // each part of a key takes a multiple of four bytes
			all = append(all, nftables.SetElement{Key: append(first, port...), KeyEnd: append(last, port...)})
			continue
		}
		all = append(all, nftables.SetElement{Key: first})
		if after := binary.BigEndian.Uint32(last) + 1; after != 0 { // else the range ends with 255.255.255.255
			all = append(all, nftables.SetElement{Key: binaryutil.BigEndian.PutUint32(after), IntervalEnd: true})
		}
	}
	return all
}

// lastAddress returns the last address of a target's prefix.
func lastAddress(t Target) []byte {
	hosts := uint32(1<<(32-t.Prefix.Bits()) - 1)
	return binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(t.Prefix.Addr().AsSlice())|hosts)
}

// sameElements reports whether the kernel's elements are those of the set. The order has no
// meaning, and neither has the end of a range before the first start, which nft adds.
func (s nftSet) sameElements(got []nftables.SetElement) bool {
	return slices.EqualFunc(sortElements(s.elements()), sortElements(got), func(a, b nftables.SetElement) bool {
		return bytes.Equal(a.Key, b.Key) && bytes.Equal(a.KeyEnd, b.KeyEnd) && a.IntervalEnd == b.IntervalEnd
	})
}

func sortElements(elements []nftables.SetElement) []nftables.SetElement {
	sorted := slices.SortedFunc(slices.Values(elements), func(a, b nftables.SetElement) int {
		return cmp.Or(bytes.Compare(a.Key, b.Key), cmp.Compare(boolInt(b.IntervalEnd), boolInt(a.IntervalEnd)), bytes.Compare(a.KeyEnd, b.KeyEnd))
	})
	if len(sorted) > 0 && sorted[0].IntervalEnd {
		return sorted[1:]
	}
	return sorted
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// kernelRule is a rule as the kernel returns it.
type kernelRule struct {
	handle uint64
	exprs  []kernelExpr
}

// kernelExpr is an expression with its attributes, not decoded: the chains of other programs
// have expressions that this package does not know.
type kernelExpr struct {
	name string
	data []byte
}

// listRules lists the rules of a chain.
func (k kernel) listRules(family nftables.TableFamily, table, chain string) ([]kernelRule, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.netns})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	names, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(table + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain + "\x00")},
	})
	if err != nil {
		return nil, err
	}
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(family), unix.NFNETLINK_V0, 0, 0}, names...),
	})
	if err != nil {
		return nil, err
	}
	var rules []kernelRule
	for _, m := range messages {
		r, err := parseRule(m.Data)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

var errShortMessage = errors.New("the kernel's message is too short")

// messageHeader is the length of struct nfgenmsg, before the attributes of a message.
const messageHeader = 4

func parseRule(message []byte) (r kernelRule, err error) {
	if len(message) < messageHeader {
		return r, errShortMessage
	}
	err = eachAttribute(message[messageHeader:], func(kind uint16, data []byte) error {
		switch kind {
		case unix.NFTA_RULE_HANDLE:
			if len(data) != 8 {
				return errShortMessage
			}
			r.handle = binary.BigEndian.Uint64(data)
		case unix.NFTA_RULE_EXPRESSIONS:
			return eachAttribute(data, func(_ uint16, data []byte) error {
				var e kernelExpr
				err := eachAttribute(data, func(kind uint16, data []byte) error {
					switch kind {
					case unix.NFTA_EXPR_NAME:
						e.name = text(data)
					case unix.NFTA_EXPR_DATA:
						e.data = data
					}
					return nil
				})
				r.exprs = append(r.exprs, e)
				return err
			})
		}
		return nil
	})
	return r, err
}

// eachAttribute calls fn for each attribute of a message or of an attribute.
func eachAttribute(data []byte, fn func(kind uint16, data []byte) error) error {
	attributes, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	for attributes.Next() {
		if err := fn(attributes.Type(), attributes.Bytes()); err != nil {
			return err
		}
	}
	return attributes.Err()
}

// text returns a string of the kernel, which ends with the first zero.
func text(data []byte) string {
	before, _, _ := bytes.Cut(data, []byte{0})
	return string(before)
}

// jumpsTo returns the chain to which the rule jumps, or "" if it jumps to none. It decodes the
// verdict itself, since the rule may be of another program.
func (r kernelRule) jumpsTo() (chain string) {
	for _, e := range r.exprs {
		if e.name != "immediate" {
			continue
		}
		_ = nested(e.data, func(data []byte) { chain = text(data) }, // malformed attributes are no jump
			unix.NFTA_IMMEDIATE_DATA, unix.NFTA_DATA_VERDICT, unix.NFTA_VERDICT_CHAIN)
	}
	return chain
}

// nested calls fn for each attribute at a path of nested attributes.
func nested(data []byte, fn func(data []byte), path ...uint16) error {
	return eachAttribute(data, func(kind uint16, data []byte) error {
		switch {
		case kind != path[0]:
			return nil
		case len(path) == 1:
			fn(data)
			return nil
		}
		return nested(data, fn, path[1:]...)
	})
}

// is reports whether the kernel's rule is the planned one. Each expression is decoded as one of
// the planned type, and must then encode to the same bytes.
func (r kernelRule) is(planned nftRule) bool {
	return slices.EqualFunc(r.exprs, planned.exprs(), func(got kernelExpr, want expr.Any) bool {
		decoded := reflect.New(reflect.TypeOf(want).Elem()).Interface().(expr.Any)
		if expr.Unmarshal(unix.NFPROTO_INET, got.data, decoded) != nil {
			return false
		}
		gotBytes, gotErr := expr.Marshal(unix.NFPROTO_INET, decoded)
		wantBytes, wantErr := expr.Marshal(unix.NFPROTO_INET, want)
		return gotErr == nil && wantErr == nil && bytes.Equal(gotBytes, wantBytes) && got.name == exprName(wantBytes)
	})
}

// attributeHeader is the length of the header of an attribute.
const attributeHeader = 4

// exprName returns the name in an encoded expression, which is its first attribute.
func exprName(encoded []byte) string {
	name, _, _ := bytes.Cut(encoded[attributeHeader:], []byte{0})
	return string(name)
}
