package local

import (
	"net"
	"sync"
)

// Pipes is a listener in memory, whose connections hold no byte that is not read:
// with synctest, a network and a clock of the test's own.
type Pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// NewPipes returns a listener to whom nobody has connected.
func NewPipes() *Pipes { return &Pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

// Dial connects, once the connection is accepted, until the test ends.
func (p *Pipes) Dial(t interface{ Cleanup(func()) }) net.Conn {
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close() })
	p.conns <- server
	return client
}

func (p *Pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *Pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *Pipes) Addr() net.Addr { return &net.TCPAddr{} }
