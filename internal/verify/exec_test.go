package verify

import (
	"io"
	"strings"
	"sync"
	"testing"
)

// onlyReader hides the methods of a reader that io.Copy prefers.
type onlyReader struct{ io.Reader }

// TestLimited checks that two streams are copied at the same time without a loss, up to the limit.
func TestLimited(t *testing.T) {
	for _, size := range []int{0, 1000, maxOutput / 2, maxOutput/2 + 1, maxOutput} {
		out := new(limited)
		var group sync.WaitGroup
		for range 2 {
			group.Go(func() {
				n, err := io.Copy(out, onlyReader{strings.NewReader(strings.Repeat("x", size))})
				if int(n) != size || err != nil {
					t.Errorf("%d bytes: copied %d, %v", size, n, err)
				}
			})
		}
		group.Wait()
		if got := len(out.String()); got != min(2*size, maxOutput) {
			t.Errorf("two times %d bytes: kept %d", size, got)
		}
	}
}
