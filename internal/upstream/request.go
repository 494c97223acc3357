package upstream

import (
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// dropRequest lists the client's header fields that are never passed on as they
// are: hop-by-hop fields (RFC 9110 section 7.6.1), those that Spillway sets
// itself, and where the client came from, which is nobody else's business.
var dropRequest = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Proxy-Authenticate": true,
	"Proxy-Authorization": true, "Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
	"Host": true, "Content-Length": true, "Expect": true, "Accept-Encoding": true, "Http2-Settings": true,
	"Forwarded": true, "X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Proto": true, "X-Real-Ip": true,
	"X-Retry-Ticket": true,
}

// credentials are passed on only to pools with forward_auth.
var credentials = map[string]bool{"Authorization": true, "X-Api-Key": true}

// internalPrefix marks the header fields and cookies that are Spillway's own.
const (
	internalPrefix = "X-Spillway-"
	cookiePrefix   = "spillway"
)

// copyLimit is the size up to which head and body are copied into one write;
// larger bodies are written with writev.
const copyLimit = 16 << 10

// writeBuffers holds the buffers in which requests are put together.
var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, copyLimit); return &b }}

// send writes the whole request in one system call.
func (c *conn) send(a *Answer) error {
	req, p := a.req, a.pool
	bp := writeBuffers.Get().(*[]byte)
	defer func() {
		*bp = (*bp)[:0]
		writeBuffers.Put(bp)
	}()
	segs := wire.Rewrite(make([][]byte, 0, 7), req, a.edits())
	length := 0
	for _, s := range segs {
		length += len(s)
	}
	head := p.appendHead((*bp)[:0], req, a.lease.Instance.URL.Path, a.lease.Instance.URL.Host, length)
	*bp = head
	if len(head)+length > copyLimit {
		// A small request fits into the socket's buffer; a large one may have to wait.
		if err := c.nc.SetWriteDeadline(req.Deadline); err != nil {
			return err
		}
		bufs := append(net.Buffers{head}, segs...)
		_, err := bufs.WriteTo(c.nc)
		return errors.Join(err, c.nc.SetWriteDeadline(time.Time{}))
	}
	for _, s := range segs {
		head = append(head, s...)
	}
	*bp = head
	_, err := c.nc.Write(head)
	return err
}

// appendHead writes the request line and the header fields.
func (p *pool) appendHead(b []byte, req *inference.Request, base, host string, length int) []byte {
	b = append(b, "POST "...)
	b = append(b, base...)
	b = append(b, req.Surface.Path()...)
	if req.RawQuery != "" {
		b = append(append(b, '?'), req.RawQuery...)
	}
	b = append(append(b, " HTTP/1.1\r\nHost: "...), host...)
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(length), 10)
	b = append(b, "\r\n"...)
	p.forward(req, func(name, value string) {
		b = append(append(b, name...), ": "...)
		b = append(append(b, value...), "\r\n"...)
	})
	return append(b, "\r\n"...)
}

// forward calls add for each header field that goes to the pool's instances:
// the client's own that may pass, then the pool's.
func (p *pool) forward(req *inference.Request, add func(name, value string)) {
	connection := req.Header["Connection"]
	for name, values := range req.Header {
		if dropRequest[name] || strings.HasPrefix(name, internalPrefix) || p.header[name] != "" || listed(connection, name) {
			continue
		}
		if credentials[name] && !p.cfg.ForwardAuth {
			continue
		}
		for _, v := range values {
			if name == "Cookie" {
				if v = foreignCookies(v); v == "" {
					continue
				}
			}
			add(name, v)
		}
	}
	for name, value := range p.header {
		add(name, value)
	}
	if len(req.Header["Content-Type"]) == 0 {
		add("Content-Type", "application/json")
	}
	if len(req.Header["Accept"]) == 0 {
		add("Accept", "*/*")
	}
}

// listed says whether a Connection field names the header field (RFC 9110
// section 7.6.1).
func listed(connection []string, name string) bool {
	for _, line := range connection {
		for token := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(token), name) {
				return true
			}
		}
	}
	return false
}

// foreignCookies returns a Cookie field without Spillway's own cookies.
func foreignCookies(line string) string {
	if !strings.Contains(line, cookiePrefix) {
		return line
	}
	var keep []string
	for part := range strings.SplitSeq(line, ";") {
		if part = strings.TrimSpace(part); part != "" && !strings.HasPrefix(part, cookiePrefix) {
			keep = append(keep, part)
		}
	}
	return strings.Join(keep, "; ")
}

// validName says whether s is a header field name (RFC 9110 token).
func validName(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if !tokenByte(s[i]) {
			return false
		}
	}
	return true
}

// tokenByte says whether c may stand in a token (RFC 9110 section 5.6.2).
func tokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// poolHeader collects the header fields that a pool adds to each request.
func poolHeader(cfg *Config, key string) map[string]string {
	h := make(map[string]string)
	for name, value := range cfg.Headers {
		h[http.CanonicalHeaderKey(name)] = value
	}
	switch {
	case key == "":
	case cfg.APIKeyHeader == "x-api-key":
		h["X-Api-Key"] = key
	default:
		h["Authorization"] = "Bearer " + key
	}
	return h
}
