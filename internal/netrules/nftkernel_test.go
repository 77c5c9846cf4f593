package netrules

import (
	"testing"

	"github.com/google/nftables"
)

// TestSameElements checks what makes two sets equal: not the order of the elements, and not the end
// of a range before the first start.
func TestSameElements(t *testing.T) {
	s := nftSet{name: denyAll}
	s.targets, _ = denied(denying(t, Config{}, "10.0.0.0/8", "11.0.0.0/8", "192.0.2.1").Deny)
	got := s.elements()
	reversed := make([]nftables.SetElement, 0, len(got)+1)
	for i := range got {
		reversed = append(reversed, got[len(got)-1-i])
	}
	reversed = append(reversed, nftables.SetElement{Key: []byte{0, 0, 0, 0}, IntervalEnd: true})
	for name, tt := range map[string]struct {
		elements []nftables.SetElement
		want     bool
	}{
		"itself":           {got, true},
		"reversed":         {reversed, true},
		"none":             {nil, false},
		"fewer":            {got[2:], false},
		"starts and ends":  {append([]nftables.SetElement{{Key: got[0].Key, IntervalEnd: true}}, got[1:]...), false},
		"a larger range":   {append(got[:len(got)-1:len(got)-1], nftables.SetElement{Key: []byte{192, 0, 2, 3}, IntervalEnd: true}), false},
		"with another end": {append(got[:len(got)-1:len(got)-1], nftables.SetElement{Key: got[len(got)-1].Key, IntervalEnd: true, KeyEnd: []byte{1}}), false},
	} {
		if s.sameElements(tt.elements) != tt.want {
			t.Errorf("%s: want %t", name, tt.want)
		}
	}
}
