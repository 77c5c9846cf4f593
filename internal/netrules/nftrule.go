package netrules

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

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
				e, err := parseExpr(data)
				r.exprs = append(r.exprs, e)
				return err
			})
		}
		return nil
	})
	return r, err
}

func parseExpr(data []byte) (e kernelExpr, err error) {
	err = eachAttribute(data, func(kind uint16, data []byte) error {
		switch kind {
		case unix.NFTA_EXPR_NAME:
			e.name = text(data)
		case unix.NFTA_EXPR_DATA:
			e.data = data
		}
		return nil
	})
	return e, err
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
