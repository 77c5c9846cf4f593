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
	"time"

	"imds-oidc-proxy/internal/azure"
)

// forwardLimits bounds forwarded requests. A zero field is its default.
type forwardLimits struct {
	timeout       time.Duration // from waiting for a free place to the last byte of the answer
	maxBytes      int64         // of an answer's body
	maxConcurrent int           // requests forwarded at the same time
}

const (
	// forwardTimeout: IMDS is on the same host and answers within milliseconds,
	// and within a second when it is throttling.
	forwardTimeout = 5 * time.Second

	// forwardDialTimeout is short: outside Azure packets to the address vanish,
	// and programs wait for us in order to find out that they are not on Azure.
	forwardDialTimeout = time.Second

	// forwardMaxBytes is ten times the largest answer known: user data of 64 KiB
	// in base64, within the document of an instance.
	forwardMaxBytes = 1 << 20

	// forwardMaxHeaderBytes bounds what IMDS, or what stands in its place, can
	// make us hold beside the body.
	forwardMaxHeaderBytes = 16 << 10

	// forwardMaxConcurrent is above what IMDS serves (5 requests a second, 5 at a
	// time). It also bounds the memory for answers, and a loop that the Via header
	// does not show.
	forwardMaxConcurrent = 16

	// forwardMaxWaiting is how many more may wait for one of those, each with a
	// connection that others may need.
	forwardMaxWaiting = 16

	// forwardIdleTimeout lets go of the connection between a program's polls.
	forwardIdleTimeout = 30 * time.Second
)

// forwarder asks the real IMDS what the proxy has no answer to.
type forwarder struct {
	base      string // scheme and host
	transport *http.Transport
	timeout   time.Duration
	maxBytes  int64
	places    chan struct{} // as many as may be in use at once
	entered   chan struct{} // as many as may have a place or wait for one
}

// newForwarder returns nil where forwarding is off.
func newForwarder(imds azure.MetadataURL, limits forwardLimits) *forwarder {
	if imds == "" {
		return nil
	}
	places := cmp.Or(limits.maxConcurrent, forwardMaxConcurrent)
	return &forwarder{
		base: string(imds),
		transport: &http.Transport{
			Proxy:                  nil, // a proxy must never see what is meant for IMDS
			DialContext:            (&net.Dialer{Timeout: forwardDialTimeout}).DialContext,
			DisableCompression:     true,
			IdleConnTimeout:        forwardIdleTimeout,
			MaxResponseHeaderBytes: forwardMaxHeaderBytes,
		},
		timeout:  cmp.Or(limits.timeout, forwardTimeout),
		maxBytes: cmp.Or(limits.maxBytes, forwardMaxBytes),
		places:   make(chan struct{}, places),
		entered:  make(chan struct{}, places+forwardMaxWaiting),
	}
}

// forward answers with what the real IMDS says.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, o *outcome) error {
	if h.forwarder == nil {
		return errForwardingOff
	}
	if err := requireGet(r); err != nil {
		return err
	}
	if err := requireMetadata(r); err != nil {
		return err
	}
	// Before X-Forwarded-For, which a mesh may have added on the way round.
	if cameFromUs(r.Header) {
		return refused(errForwardingLoop, "exempt the proxy's UID and GID from the redirect (proxy-init), or turn forwarding off (--imds-passthrough=off)")
	}
	if err := refuseForeign(r); err != nil {
		return err
	}
	params, err := appendParams(nil, r.URL.RawQuery)
	if err != nil {
		return err
	}
	// To net/http a client that has closed its half of the connection, as nc -N does, is
	// gone. It waits for no place, and for its answer like all others.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.forwarder.timeout)
	defer cancel()
	if !h.forwarder.takePlace(ctx, r.Context().Done()) {
		return errForwardingBusy
	}
	defer h.forwarder.leavePlace() // once the answer is written: until then it takes memory
	reply, err := h.forwarder.get(ctx, o.path, params, r.Header)
	if err != nil {
		return err
	}
	o.status = reply.status
	return reply.writeTo(w)
}

// reply is an answer of the real IMDS, whole and within bounds.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// get asks the real IMDS. The request is made anew from the canonical path, the
// decoded query and a few headers: nothing of the caller's bytes is copied that
// was not understood here.
func (f *forwarder) get(ctx context.Context, path string, params []param, header http.Header) (*reply, error) {
	target := f.base + path
	if len(params) > 0 {
		target += "?" + encodeParams(params)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, refused(errIMDSUnavailable, "the request cannot be made")
	}
	req.Header = forwardedHeader(header)
	// RoundTrip, unlike a Client, follows no redirects and keeps no cookies.
	resp, err := f.transport.RoundTrip(req)
	if err != nil {
		return nil, refused(errIMDSUnavailable, err.Error())
	}
	defer resp.Body.Close()
	return f.read(resp)
}

// takePlace waits for a place among those that ask IMDS at the same time, until the
// client is done. It does not wait behind too many others.
func (f *forwarder) takePlace(ctx context.Context, client <-chan struct{}) bool {
	select {
	case f.entered <- struct{}{}:
	default:
		return false
	}
	select {
	case f.places <- struct{}{}:
		return true
	default:
	}
	select {
	case f.places <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-client:
	}
	<-f.entered
	return false
}

func (f *forwarder) leavePlace() {
	<-f.places
	<-f.entered
}

func (f *forwarder) read(resp *http.Response) (*reply, error) {
	// A redirect would send the caller to wherever it points.
	if resp.StatusCode < 200 || resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, refused(errIMDSUnavailable, "status "+strconv.Itoa(resp.StatusCode)+" is not one that IMDS gives")
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
	return &reply{status: resp.StatusCode, header: header, body: body}, nil
}

func (p *reply) writeTo(w http.ResponseWriter) error {
	header := w.Header()
	for name, values := range p.header {
		header[name] = values // Server too: it tells that IMDS itself has answered
	}
	header.Add("Via", via)
	header.Set("Content-Length", strconv.Itoa(len(p.body)))
	w.WriteHeader(p.status)
	if _, err := w.Write(p.body); err != nil {
		return refused(errClientLeft, "the answer could not be written")
	}
	return nil
}

// via marks what has passed through the proxy, as RFC 9110, section 7.6.3 asks of
// intermediaries. Of all headers it is the one that other intermediaries keep.
const via = "1.1 " + ServerName

// cameFromUs reports whether a request was forwarded by this proxy before: its
// own traffic is being redirected to itself, and would be for ever.
func cameFromUs(header http.Header) bool {
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

// forwardedHeader makes the header of a forwarded request. X-Forwarded-For is not
// in it, since IMDS refuses requests that have it.
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

// removeHopByHop removes what is about the connection to IMDS and not about the
// answer (RFC 9110, section 7.6.1), and what must not come from there. Where Connection
// says close, net/http has taken it away, and what else it named stays: IMDS names nothing.
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
