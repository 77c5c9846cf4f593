package imds

import "testing"

// A proxy environment is for the world outside, and IMDS is not there. (That the
// environment goes unread cannot be shown from outside the package: net/http does
// not use it for loopback addresses, and reads it once in the life of a process.)
func TestForwarderHasNoProxy(t *testing.T) {
	f := newForwarder("http://192.0.2.1", forwardLimits{})
	if f.transport.Proxy != nil {
		t.Error("the transport asks for a proxy")
	}
}
