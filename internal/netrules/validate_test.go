package netrules

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

// TestDialTimedOut: only a connection that is neither accepted nor refused is tried again. One that
// another server accepts shows at once that there is no redirect.
func TestDialTimedOut(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"nothing":      {nil, false},
		"dialing":      {&missed{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}}, true},
		"wrapped":      {fmt.Errorf("in the pod: %w", &missed{&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}}), true},
		"reading":      {&missed{&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}}, false},
		"refused":      {&missed{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}}, false},
		"other server": {&missed{errOtherServer}, false},
		"no guard":     {notGuarded(Config{}), false},
	} {
		if got := dialTimedOut(tt.err); got != tt.want {
			t.Errorf("%s: got %t, want %t", name, got, tt.want)
		}
	}
}
