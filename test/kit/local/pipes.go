package local

import (
	"net"
	"sync"
)

// Pipes is a listener in memory. Its connections have no buffer: a write waits for the
// read. In a testing/synctest bubble it gives a test its own network and clock.
type Pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// NewPipes returns a listener without connections.
func NewPipes() *Pipes { return &Pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

// Dial connects, and returns when the connection is accepted. The connection is closed at
// the end of the test.
func (p *Pipes) Dial(t interface{ Cleanup(func()) }) net.Conn {
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close() })
	p.conns <- server
	return client
}

// Accept implements [net.Listener].
func (p *Pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (p *Pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// Addr implements [net.Listener].
func (p *Pipes) Addr() net.Addr { return &net.TCPAddr{} }
