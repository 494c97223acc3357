package load

import (
	"bytes"
	"net/http"
	"strconv"
	"time"
)

// head is what the generator needs of a response head.
type head struct {
	status   int
	length   int64 // of the body; -1 without Content-Length
	chunked  bool
	close    bool
	sse      bool
	hints    retryHints
	ticket   string        // X-Retry-Ticket
	server   time.Duration // X-Spillway-Server-Ms
	instance []byte        // X-Spillway-Instance, valid until the next read; nil when absent
}

// readHead reads the next response head that is not informational.
func (c *conn) readHead() (head, error) {
	for {
		end := 0
		for scanned := 0; ; {
			if i := bytes.Index(c.buf[c.r+scanned:c.w], []byte("\r\n\r\n")); i >= 0 {
				end = c.r + scanned + i + 2
				break
			}
			scanned = max(0, c.w-c.r-3)
			if err := c.fill(maxHead); err != nil {
				return head{}, err
			}
		}
		h, err := parseHead(c.buf[c.r:end])
		c.r = end + 2
		if err != nil || h.status >= 200 {
			return h, err
		}
	}
}

// parseHead parses a status line and header lines, each ending in CR LF.
func parseHead(b []byte) (head, error) {
	h := head{length: -1}
	line, b := cutLine(b)
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) || line[8] != ' ' {
		return h, errHead
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil || status < 100 {
		return h, errHead
	}
	h.status = status
	h.close = line[7] == '0'
	for len(b) > 0 {
		line, b = cutLine(b)
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			return h, errHead
		}
		if err := h.field(name, bytes.TrimSpace(value)); err != nil {
			return h, err
		}
	}
	if status == http.StatusNoContent || status == http.StatusNotModified {
		h.length, h.chunked = 0, false
	}
	return h, nil
}

// cutLine returns the first line without its CR LF and the rest.
func cutLine(b []byte) (line, rest []byte) {
	i := bytes.Index(b, []byte("\r\n"))
	return b[:i], b[i+2:]
}

// field takes one header field. Only names of the lengths below matter.
func (h *head) field(name, value []byte) error {
	switch len(name) {
	case len("connection"):
		if is(name, "connection") && bytes.EqualFold(value, []byte("close")) {
			h.close = true
		}
	case len("retry-after"):
		if is(name, "retry-after") {
			h.hints.after = string(value)
		}
	case len("content-type"):
		if is(name, "content-type") {
			h.sse = bytes.HasPrefix(value, []byte("text/event-stream"))
		}
	case len("content-length"):
		switch {
		case is(name, "content-length"):
			n, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil || n < 0 {
				return errHead
			}
			h.length = n
		case is(name, "retry-after-ms"):
			h.hints.afterMS = string(value)
		case is(name, "x-should-retry"):
			h.hints.should = string(value)
		case is(name, "x-retry-ticket"):
			h.ticket = string(value)
		}
	case len("transfer-encoding"):
		if is(name, "transfer-encoding") {
			if !bytes.EqualFold(value, []byte("chunked")) {
				return errHead
			}
			h.chunked = true
		}
	case len("x-spillway-instance"):
		if is(name, "x-spillway-instance") {
			h.instance = value
		}
	case len("x-spillway-server-ms"):
		if is(name, "x-spillway-server-ms") {
			h.server = serverTime(value)
		}
	}
	return nil
}

// serverTime reads a number of milliseconds, 0 of what is none.
func serverTime(value []byte) time.Duration {
	ms, err := strconv.ParseFloat(string(value), 64)
	if err != nil {
		return 0
	}
	d, err := seconds(ms / 1000)
	if err != nil {
		return 0
	}
	return d
}

func is(name []byte, want string) bool { return bytes.EqualFold(name, []byte(want)) }
