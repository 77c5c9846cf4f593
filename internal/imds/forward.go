package imds

import (
	"cmp"
	"context"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"time"

	"imds-oidc-proxy/internal/azure"
)

// forwardLimits replaces the limits of forwarding in tests. A zero field means the default.
type forwardLimits struct {
	timeout  time.Duration
	maxBytes int64
	slots    int
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
}

const (
	// forwardTimeout bounds two times: the wait for a slot and for IMDS's answer together,
	// and then the time until the client has read the answer. IMDS is on the same host. It
	// answers within milliseconds, and within a second while it throttles.
	forwardTimeout = 5 * time.Second

	// forwardDialTimeout is short because outside Azure packets to the address get no reply,
	// and programs that check whether they run on Azure wait for the proxy's answer.
	forwardDialTimeout = time.Second

	// forwardMaxBytes bounds the body of an answer. It is five times the size of the largest
	// known answer: the document of an instance with user data of 64 KiB in base64.
	forwardMaxBytes = 512 << 10

	// forwardMaxHeaderBytes bounds the header of an answer. IMDS sends a few hundred bytes.
	forwardMaxHeaderBytes = 4 << 10

	// forwardMaxSlots bounds the number of slots, which is how many requests are forwarded at
	// the same time. IMDS serves fewer: 5 requests a second, 5 at a time. The slots also bound
	// a loop in which another intermediary removes the Via header.
	forwardMaxSlots = 16

	// forwardConnections is the number of client connections for each slot. As many
	// requests may wait for a slot as there are slots, so forwarded requests take at most a
	// quarter of all connections.
	forwardConnections = 8

	// forwardUnreadTime is how long a client may leave its answer unread while other
	// requests wait for its slot. The kernel's buffers take most answers at once, even if
	// the client does not read.
	forwardUnreadTime = 100 * time.Millisecond

	// forwardBuffer is the size of the buffer through which an answer is written.
	forwardBuffer = 1 << 10

	// forwardIdleTimeout is how long an idle connection to IMDS stays open. A program that
	// polls less often gets a new connection.
	forwardIdleTimeout = 30 * time.Second
)

// forwarder sends requests to the real IMDS.
//
// A request holds a slot from before it is sent until its answer is written, because the
// answer is in memory until then: 16 slots with 512 KiB each are 8 MiB of a container's
// 64 MiB. Clients that do not read cannot block forwarding: if another request waits for a
// slot, an unread answer is dropped (see [forwarder.watch]). The connection of its client
// then holds only forwardBuffer and the header, until package server closes it.
type forwarder struct {
	base      string // scheme and host
	transport *http.Transport
	timeout   time.Duration
	maxBytes  int64
	slots     chan struct{} // has an element for each request that holds a slot
	admitted  chan struct{} // has an element for each request that holds a slot or waits for one

	silence *silence // nil: each request tries to connect
}

// newForwarder returns nil if forwarding is off. connections is the connection limit of the
// server; zero means that there is none.
func newForwarder(imds azure.MetadataURL, connections int, limits forwardLimits) *forwarder {
	if imds == "" {
		return nil
	}
	slots := cmp.Or(limits.slots, forwardSlots(connections))
	dial := limits.dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: forwardDialTimeout}).DialContext
	}
	return &forwarder{
		base: string(imds),
		transport: &http.Transport{
			Proxy:                  nil, // an HTTP proxy must never see requests for IMDS
			DialContext:            dial,
			DisableCompression:     true,
			IdleConnTimeout:        forwardIdleTimeout,
			MaxResponseHeaderBytes: forwardMaxHeaderBytes,
		},
		timeout:  cmp.Or(limits.timeout, forwardTimeout),
		maxBytes: cmp.Or(limits.maxBytes, forwardMaxBytes),
		slots:    make(chan struct{}, slots),
		admitted: make(chan struct{}, 2*slots),
	}
}

func forwardSlots(connections int) int {
	if connections == 0 {
		return forwardMaxSlots
	}
	return min(max(connections/forwardConnections, 1), forwardMaxSlots)
}

// forward answers with the real IMDS's answer.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, o *outcome) error {
	params, err := h.readForwarded(r)
	if err != nil {
		return err
	}
	// net/http cancels the request's context when the client closes its sending side, even
	// if the client still reads, as nc -N does. So ctx does not inherit this cancellation.
	// Such a client does not wait for a slot, but if a slot is free, it gets its answer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.forwarder.timeout)
	defer cancel()
	if !h.forwarder.acquire(ctx, r.Context().Done()) {
		return errForwardingBusy
	}
	release := sync.OnceFunc(h.forwarder.release)
	defer release()
	reply, err := h.forwarder.get(ctx, o.path, params, r.Header)
	if err != nil {
		return err
	}
	o.status = reply.status
	written := make(chan struct{})
	defer close(written)
	defer h.forwarder.watch(reply, written, release).Stop()
	return reply.writeTo(w)
}

// readForwarded validates a request to be forwarded and returns its query.
func (h *Handler) readForwarded(r *http.Request) ([]param, error) {
	if h.forwarder == nil {
		return nil, errForwardingOff
	}
	if err := requireGet(r); err != nil {
		return nil, err
	}
	if err := requireMetadata(r); err != nil {
		return nil, err
	}
	// Loop detection comes before the check of X-Forwarded-For, because a service mesh in
	// the loop may have added this header.
	if isLoop(r.Header) {
		return nil, refused(errForwardingLoop, "exempt the proxy's UID and GID from the redirect (proxy-init), or turn forwarding off (--imds-passthrough=off)")
	}
	if err := refuseForeign(r); err != nil {
		return nil, err
	}
	return appendParams(nil, r.URL.RawQuery)
}

// acquire waits for a slot until ctx or client is done, and reports whether it got one. If too
// many other requests wait, it returns false at once.
func (f *forwarder) acquire(ctx context.Context, client <-chan struct{}) bool {
	select {
	case f.admitted <- struct{}{}:
	default:
		return false
	}
	select { // if a slot is free, it does not matter whether the client seems to be gone
	case f.slots <- struct{}{}:
		return true
	default:
	}
	select {
	case f.slots <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-client:
	}
	<-f.admitted
	return false
}

func (f *forwarder) release() {
	<-f.slots
	<-f.admitted
}

// watch drops an answer that its client does not read. The timer that it returns fires if the
// answer is not written after forwardUnreadTime. Then watch waits until another request waits
// for a slot, or for the forwarder's timeout at most, drops the rest of the answer and releases
// the slot. When the answer is written, the caller must stop the timer and close written. An
// answer that is written quickly costs only the timer.
func (f *forwarder) watch(p *reply, written <-chan struct{}, release func()) *time.Timer {
	return time.AfterFunc(forwardUnreadTime, func() {
		for end := time.Now().Add(f.timeout); len(f.admitted) <= cap(f.slots) && time.Now().Before(end); {
			select {
			case <-written:
				return
			case <-time.After(forwardUnreadTime):
			}
		}
		p.drop()
		release()
	})
}

// get sends a request to the real IMDS. It builds this request from the canonical path,
// the decoded query and a few headers, so that IMDS gets no bytes of the caller that
// this package has not parsed.
func (f *forwarder) get(ctx context.Context, path string, params []param, header http.Header) (*reply, error) {
	if f.silence.known() {
		return nil, refused(errIMDSUnavailable, "an earlier connection timed out, and none has succeeded since")
	}
	target := f.base + path
	if len(params) > 0 {
		target += "?" + encodeParams(params)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, refused(errIMDSUnavailable, "the request cannot be made")
	}
	req.Header = forwardedHeader(header)
	// Unlike a Client, RoundTrip follows no redirects and keeps no cookies.
	resp, err := f.transport.RoundTrip(req)
	f.silence.learn(err)
	if err != nil {
		return nil, refused(errIMDSUnavailable, err.Error())
	}
	defer resp.Body.Close()
	return f.read(resp)
}

func (f *forwarder) read(resp *http.Response) (*reply, error) {
	// A redirect would make the caller send its next request to any host.
	if resp.StatusCode < 200 || resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, refused(errIMDSUnavailable, "unexpected status "+strconv.Itoa(resp.StatusCode))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, f.maxBytes+1))
	if err != nil {
		return nil, refused(errIMDSUnavailable, err.Error())
	}
	if int64(len(body)) > f.maxBytes {
		return nil, refused(errIMDSUnavailable, "the answer is larger than "+strconv.FormatInt(f.maxBytes, 10)+" bytes")
	}
	header := resp.Header
	removeHopByHop(header)
	return &reply{status: resp.StatusCode, header: header, length: len(body), unsent: body}, nil
}

// reply is an answer of the real IMDS. Its whole body is in memory, and was not larger than
// forwarder.maxBytes.
type reply struct {
	status int
	header http.Header
	length int // of the body

	mu      sync.Mutex // guards the fields below
	unsent  []byte     // part of the body that is not written yet
	dropped bool
}

// Read implements [io.Reader]. Because it copies from the body, drop can free the body while
// the write of an earlier part blocks.
func (p *reply) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped {
		return 0, io.ErrUnexpectedEOF
	}
	if len(p.unsent) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.unsent)
	p.unsent = p.unsent[n:]
	return n, nil
}

// drop frees the part of the body that is not written yet.
func (p *reply) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped = len(p.unsent) > 0
	p.unsent = nil
}

func (p *reply) writeTo(w http.ResponseWriter) error {
	header := w.Header()
	for name, values := range p.header {
		header[name] = values // also Server, which shows that IMDS itself has answered
	}
	header.Add("Via", via)
	header.Set("Content-Length", strconv.Itoa(p.length))
	w.WriteHeader(p.status)
	onlyWriter := struct{ io.Writer }{w} // a ReadFrom of w would use a larger buffer
	if _, err := io.CopyBuffer(onlyWriter, p, make([]byte, forwardBuffer)); err != nil {
		return refused(errClientLeft, "the answer could not be written")
	}
	return nil
}

// via is the value of the Via header of forwarded requests and their answers, as RFC
// 9110, section 7.6.3 requires of intermediaries. It serves for loop detection, because
// other intermediaries keep this header.
const via = "1.1 " + ServerName

// isLoop reports whether this proxy has already forwarded a request. This happens if the
// redirect does not exempt the proxy: its own requests come back to it, and it would forward
// them again and again.
func isLoop(header http.Header) bool {
	for _, line := range header["Via"] {
		for hop := range strings.SplitSeq(line, ",") {
			fields := strings.Fields(hop)
			if len(fields) >= 2 && azure.EqualFoldASCII(fields[1], ServerName) {
				return true
			}
		}
	}
	return false
}

// forwardedHeader returns the header of a forwarded request. It has no X-Forwarded-For,
// because IMDS rejects requests with this header.
func forwardedHeader(from http.Header) http.Header {
	to := http.Header{
		"Metadata":   {"true"},
		"Via":        {via},
		"User-Agent": {ServerName},
	}
	for _, name := range [...]string{"Accept", "User-Agent", "X-Ms-Client-Request-Id"} {
		if value := from.Get(name); value != "" {
			to[name] = []string{value}
		}
	}
	return to
}

// removeHopByHop removes the hop-by-hop headers of an answer (RFC 9110, section 7.6.1)
// and X-Forwarded-For. If the Connection header has the option close, net/http has already
// removed it, so the headers that it listed remain. IMDS lists none.
func removeHopByHop(header http.Header) {
	for _, line := range header["Connection"] {
		for option := range strings.SplitSeq(line, ",") {
			header.Del(textproto.TrimString(option))
		}
	}
	for _, name := range [...]string{
		"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "X-Forwarded-For",
	} {
		header.Del(name)
	}
}
