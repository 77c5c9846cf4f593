package netrules

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
)

// legacyEntry returns a rule of iptables-legacy as the kernel stores it: with matches of the given
// size, and a target with data.
func legacyEntry(matches int, target, data string) []byte {
	entry := make([]byte, entrySize+matches+targetSize+chainNameSize+2)
	binary.NativeEndian.PutUint16(entry[entryTargetOffset:], uint16(entrySize+matches))
	binary.NativeEndian.PutUint16(entry[entryNextOffset:], uint16(len(entry)))
	copy(entry[entrySize+matches+targetName:], target)
	copy(entry[entrySize+matches+targetSize:], data)
	return entry
}

func TestParseLegacyChains(t *testing.T) {
	rule := legacyEntry(48, "REDIRECT", "AZWI_PROXY_OUTPUT") // the data of a rule is no name of a chain
	for name, tt := range map[string]struct {
		entries []byte
		want    []string
	}{
		"none":        {nil, nil},
		"no chains":   {slices.Concat(rule, legacyEntry(0, "", ""), legacyEntry(0, errorTarget, errorTarget)), nil},
		"two chains":  {slices.Concat(rule, legacyEntry(0, errorTarget, natChain), rule, legacyEntry(0, errorTarget, "OTHERS"), legacyEntry(0, errorTarget, errorTarget)), []string{natChain, "OTHERS"}},
		"a long name": {legacyEntry(0, errorTarget, strings.Repeat("x", 29)), []string{strings.Repeat("x", 29)}},
	} {
		got, err := parseLegacyChains(tt.entries)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, tt.want)
		}
	}
	with := func(offset int, value uint16) []byte {
		entry := legacyEntry(0, errorTarget, natChain)
		binary.NativeEndian.PutUint16(entry[offset:], value)
		return entry
	}
	whole := legacyEntry(0, errorTarget, natChain)
	for name, entries := range map[string][]byte{
		"too short":              whole[:entrySize-1],
		"ends in the target":     whole[:entrySize+targetSize-1],
		"no size":                with(entryNextOffset, 0),
		"too large":              with(entryNextOffset, uint16(len(whole)+1)),
		"target in the header":   with(entryTargetOffset, entrySize-1),
		"target after the entry": with(entryTargetOffset, uint16(len(whole))),
	} {
		if got, err := parseLegacyChains(entries); !errors.Is(err, errLegacyRules) {
			t.Errorf("%s: got %q, %v, want %v", name, got, err, errLegacyRules)
		}
	}
}

// FuzzParseLegacyChains checks that no table makes the parser panic or run forever.
func FuzzParseLegacyChains(f *testing.F) {
	f.Add(slices.Concat(legacyEntry(48, "REDIRECT", ""), legacyEntry(0, errorTarget, natChain)))
	f.Fuzz(func(t *testing.T, entries []byte) {
		chains, err := parseLegacyChains(entries)
		if len(chains) > len(entries)/entrySize {
			t.Errorf("got %d chains in %d bytes, %v", len(chains), len(entries), err)
		}
	})
}
