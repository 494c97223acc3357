package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// Limits of an answer's head.
const (
	maxHead    = 64 << 10 // bytes of status line and header fields
	maxInterim = 8        // 1xx answers before the final one
)

// framing says where an answer's body ends (RFC 9112 section 6.3).
type framing uint8

const (
	byLength framing = iota
	byChunks
	byClose
)

// parsedHead is an answer's head with the facts that stay on this side.
type parsedHead struct {
	inference.Head
	framing    framing
	keepAlive  bool
	retryAfter time.Duration // what the header fields ask for; 0 is nothing
	quota      *quota        // of a hosted account; nil is nothing
}

// errHead marks every complaint about a malformed head.
var errHead = errors.New("malformed response head")

// readHead waits for the final head and parses it in place. Interim answers
// (1xx) are passed over. The call may be repeated after inference.ErrNotYet.
func (c *conn) readHead(until time.Time, a *Answer) (*parsedHead, error) {
	for {
		raw := (*c.buf)[c.r:c.w]
		if n := headEnd(raw); n >= 0 {
			h, err := parseHead(raw[:n])
			if err != nil {
				return nil, err
			}
			c.r += n
			if h.Status >= 200 {
				return h, nil
			}
			if a.interim++; a.interim > maxInterim || h.Status == 101 {
				return nil, fmt.Errorf("%w: interim status %d", errHead, h.Status)
			}
			continue
		}
		switch err := c.fill(until); {
		case errors.Is(err, errBufferFull):
			if len(*c.buf) >= maxHead {
				return nil, fmt.Errorf("%w: larger than %d bytes", errHead, maxHead)
			}
			next := make([]byte, 2*len(*c.buf))
			c.w = copy(next, (*c.buf)[c.r:c.w])
			c.r = 0
			if len(*c.buf) == bufferSize {
				buffers.Put(c.buf)
			}
			c.buf = &next
		case err != nil:
			if errors.Is(err, io.EOF) && c.w > c.r {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// headEnd is the length of a complete head in raw, with the empty line, or -1.
func headEnd(raw []byte) int {
	for i := 0; ; {
		nl := bytes.IndexByte(raw[i:], '\n')
		if nl < 0 {
			return -1
		}
		i += nl + 1
		switch {
		case i < len(raw) && raw[i] == '\n':
			return i + 1
		case i+1 < len(raw) && raw[i] == '\r' && raw[i+1] == '\n':
			return i + 2
		}
	}
}

// parseHead reads a status line and header fields. It refuses everything that
// two readers could understand differently: folded lines, space before the
// colon, both or several lengths, other transfer codings than chunked.
func parseHead(raw []byte) (*parsedHead, error) {
	line, rest := cutLine(raw)
	h := &parsedHead{framing: byClose}
	h.Length = -1
	minor, err := parseStatusLine(line, h)
	if err != nil {
		return nil, err
	}
	h.keepAlive = minor == 1
	chunked := false
	var hints retryHints
	for {
		line, rest = cutLine(rest)
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || !validNameBytes(name) {
			return nil, fmt.Errorf("%w: bad field line", errHead)
		}
		value = bytes.Trim(value, " \t")
		if bytes.IndexByte(value, 0) >= 0 || bytes.IndexByte(value, '\r') >= 0 {
			return nil, fmt.Errorf("%w: control byte in field %s", errHead, name)
		}
		switch key := canonical(name); key {
		case "Content-Length":
			n, err := strconv.ParseUint(string(value), 10, 62)
			if err != nil || h.Length >= 0 && h.Length != int64(n) {
				return nil, fmt.Errorf("%w: content-length %q", errHead, value)
			}
			h.Length = int64(n)
		case "Transfer-Encoding":
			if chunked || minor == 0 || !bytes.EqualFold(value, []byte("chunked")) {
				return nil, fmt.Errorf("%w: transfer-encoding %q", errHead, value)
			}
			chunked = true
		case "Connection":
			h.readConnection(value)
		default:
			h.keep(key, value)
			hints.read(key, value)
			h.readLimit(key, value)
		}
	}
	h.retryAfter = hints.wait()
	switch {
	case chunked && h.Length >= 0:
		return nil, fmt.Errorf("%w: both transfer-encoding and content-length", errHead)
	case chunked:
		h.framing = byChunks
	case h.Status < 200 || h.Status == 204 || h.Status == 304:
		h.framing, h.Length = byLength, 0
	case h.Length >= 0:
		h.framing = byLength
	default:
		h.keepAlive = false
	}
	return h, nil
}

// cutLine splits off the first line, without its line end.
func cutLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte{'\n'})
	return bytes.TrimSuffix(line, []byte{'\r'}), rest
}

// parseStatusLine reads "HTTP/1.x NNN reason" and returns x.
func parseStatusLine(line []byte, h *parsedHead) (minor int, err error) {
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' ||
		len(line) > 12 && line[12] != ' ' {
		return 0, fmt.Errorf("%w: status line %q", errHead, line[:min(len(line), 40)])
	}
	for _, d := range line[9:12] {
		if d < '0' || d > '9' {
			return 0, fmt.Errorf("%w: status line %q", errHead, line[:min(len(line), 40)])
		}
		h.Status = h.Status*10 + int(d-'0')
	}
	if h.Status < 100 {
		return 0, fmt.Errorf("%w: status %d", errHead, h.Status)
	}
	return int(line[7] - '0'), nil
}

// readConnection notes whether the connection may be used again.
func (h *parsedHead) readConnection(value []byte) {
	for _, token := range strings.Split(strings.ToLower(string(value)), ",") {
		switch strings.TrimSpace(token) {
		case "close":
			h.keepAlive = false
		case "keep-alive":
			h.keepAlive = true
		}
	}
}

// dropAnswer lists the upstream's header fields that are not passed on:
// hop-by-hop fields, what the server in front of the client writes itself, and
// what binds a client to a host that is not ours.
var dropAnswer = map[string]bool{
	"Keep-Alive": true, "Proxy-Connection": true, "Proxy-Authenticate": true, "Proxy-Authentication-Info": true,
	"Trailer": true, "Upgrade": true, "Te": true, "Date": true, "Server": true, "Set-Cookie": true, "Alt-Svc": true,
	"Strict-Transport-Security": true, "Retry-After": true, "Retry-After-Ms": true, "X-Should-Retry": true,
	"X-Retry-Ticket": true,
}

// keep adds a field to those that go to the client.
func (h *parsedHead) keep(name string, value []byte) {
	if dropAnswer[name] || strings.HasPrefix(name, internalPrefix) || isLimit(name) {
		return
	}
	v := intern(value)
	if name == "Content-Type" {
		h.Stream = strings.HasPrefix(strings.ToLower(v), "text/event-stream")
	}
	h.Fields = append(h.Fields, inference.HeaderField{Name: name, Value: v})
}

// commonNames are header names in the form in which servers write them, mapped
// to their canonical form, so that the common ones cost no allocation.
var commonNames = func() map[string]string {
	m := make(map[string]string)
	for _, name := range []string{
		"Content-Type", "Content-Length", "Transfer-Encoding", "Connection", "Date", "Server", "Cache-Control",
		"X-Request-Id", "Keep-Alive", "Vary", "X-Accel-Buffering", "Openai-Processing-Ms", "Retry-After",
	} {
		m[name], m[strings.ToLower(name)] = name, name
	}
	return m
}()

// canonical returns a field name in its canonical form.
func canonical(name []byte) string {
	if s, ok := commonNames[string(name)]; ok {
		return s
	}
	return textproto.CanonicalMIMEHeaderKey(string(name))
}

// commonValues are values that cost no allocation.
var commonValues = map[string]string{
	"application/json": "application/json", "application/json; charset=utf-8": "application/json; charset=utf-8",
	"text/event-stream": "text/event-stream", "text/event-stream; charset=utf-8": "text/event-stream; charset=utf-8",
	"no-cache": "no-cache", "no": "no",
}

// intern returns a field value as a string.
func intern(v []byte) string {
	if s, ok := commonValues[string(v)]; ok {
		return s
	}
	return string(v)
}

// validNameBytes says whether b is a header field name.
func validNameBytes(b []byte) bool {
	for _, c := range b {
		if !tokenByte(c) {
			return false
		}
	}
	return len(b) > 0
}
