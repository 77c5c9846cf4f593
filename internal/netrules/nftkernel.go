package netrules

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
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
	return nftables.New(slices.Concat(k.options, []nftables.ConnOption{nftables.WithNetNSFd(k.netns)})...)
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
// bits, which is enough for 1,800 elements.
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
	return slices.Equal(sortedTexts(s.elements()), sortedTexts(got))
}

// sortedTexts returns the elements as sorted texts. An end comes before a start at the same address.
func sortedTexts(elements []nftables.SetElement) []string {
	const end, start = "\x00", "\x01"
	var texts []string
	for _, e := range elements {
		kind := start
		if e.IntervalEnd {
			kind = end
		}
		texts = append(texts, string(e.Key)+kind+string(e.KeyEnd))
	}
	slices.Sort(texts)
	if len(texts) > 0 && strings.HasSuffix(texts[0], end) {
		return texts[1:]
	}
	return texts
}
