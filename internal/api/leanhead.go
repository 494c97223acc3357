package api

import (
	"bytes"
	"net/http"
	"net/textproto"
	"strings"

	"github.com/spillway/spillway/internal/inference"
)

// leanHead is what the lean front needs to know of a request's head.
type leanHead struct {
	surface inference.Surface
	query   string
	length  int64
	size    int  // of the head in bytes, with the empty line
	close   bool // the client asked to close the connection
}

// leanState says what became of parsing a head.
type leanState uint8

const (
	leanPartial leanState = iota // more bytes are needed
	leanWhole
	leanOther // not in the common form: net/http's
)

// leanFields bounds the header fields of a head in the common form.
const leanFields = 64

// parseLean reads a head in the common form: POST to a surface in HTTP/1.1, lines
// that end in CR LF, one Host, one Content-Length of digits, fields of visible
// bytes, no transfer coding, no upgrade, nothing expected. What is only nearly so
// is leanOther, whether it is malformed or not. The fields go into h.
func parseLean(raw []byte, h http.Header) (leanHead, leanState) {
	const post = "POST "
	if len(raw) < len(post) {
		return leanHead{}, partialIf(strings.HasPrefix(post, string(raw)))
	}
	if string(raw[:len(post)]) != post {
		return leanHead{}, leanOther
	}
	end := headBytes(raw)
	if end < 0 {
		return leanHead{}, partialIf(!bareLine(raw))
	}
	// One string for the whole head: the fields are parts of it.
	text := string(raw[:end])
	line, rest, ok := strings.Cut(text, "\r\n")
	target, found := strings.CutSuffix(line[len(post):], " HTTP/1.1")
	if !ok || !found || strings.ContainsAny(target, " %#\\") {
		return leanHead{}, leanOther
	}
	head := leanHead{size: end, length: -1}
	path, query, _ := strings.Cut(target, "?")
	head.query = query
	if head.surface, ok = routes[strings.TrimPrefix(path, "/v1")]; !ok || !visible(target) {
		return leanHead{}, leanOther
	}
	if !head.fields(rest, h) || len(h["Host"]) != 1 || h["Host"][0] == "" || !visible(h["Host"][0]) || head.length < 0 {
		return leanHead{}, leanOther
	}
	delete(h, "Host")
	return head, leanWhole
}

// partialIf is leanPartial when more bytes may still make a common head.
func partialIf(may bool) leanState {
	if may {
		return leanPartial
	}
	return leanOther
}

// headBytes is the length of the head with its empty line, or -1.
func headBytes(raw []byte) int {
	if i := bytes.Index(raw, []byte("\r\n\r\n")); i >= 0 {
		return i + 4
	}
	return -1
}

// bareLine says whether a line of raw ends in a line feed alone.
func bareLine(raw []byte) bool {
	for i := bytes.IndexByte(raw, '\n'); i >= 0; {
		if i == 0 || raw[i-1] != '\r' {
			return true
		}
		next := bytes.IndexByte(raw[i+1:], '\n')
		if next < 0 {
			return false
		}
		i += 1 + next
	}
	return false
}

// fields reads the header fields into h. It returns false for anything unusual.
func (head *leanHead) fields(rest string, h http.Header) bool {
	values := make([]string, 0, 16)
	for n := 0; rest != "\r\n"; n++ {
		line, after, ok := strings.Cut(rest, "\r\n")
		name, value, colon := strings.Cut(line, ":")
		if !ok || !colon || n >= leanFields || !token(name) {
			return false
		}
		rest = after
		value = strings.Trim(value, " \t")
		if !fieldValue(value) {
			return false
		}
		key, known := leanNames[name]
		if !known {
			key = textproto.CanonicalMIMEHeaderKey(name)
		}
		if _, twice := h[key]; twice && once[key] || !head.note(key, value) {
			return false
		}
		if old, twice := h[key]; twice {
			h[key] = append(old, value)
			continue
		}
		values = append(values, value)
		h[key] = values[len(values)-1 : len(values) : len(values)]
	}
	return true
}

// once lists fields that change what a request is, and so must not come twice.
var once = map[string]bool{"Host": true, "Content-Length": true, "Connection": true, "Content-Type": true, "Content-Encoding": true}

// note takes what a field says about the connection and the body.
func (head *leanHead) note(key, value string) bool {
	switch key {
	case "Content-Length":
		head.length = digits(value)
		return head.length >= 0
	case "Connection":
		head.close = strings.EqualFold(value, "close")
		return head.close || strings.EqualFold(value, "keep-alive")
	case "Transfer-Encoding", "Expect", "Upgrade", "Trailer", "Te", "Keep-Alive", "Proxy-Connection":
		return false
	}
	return true
}

// digits reads a length of at most twelve digits; -1 is anything else.
func digits(s string) int64 {
	if len(s) == 0 || len(s) > 12 {
		return -1
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return -1
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n
}

// leanNames maps field names as clients write them to their canonical form.
var leanNames = func() map[string]string {
	m := make(map[string]string)
	for _, name := range []string{
		"Host", "Content-Length", "Content-Type", "Content-Encoding", "Accept", "Accept-Encoding", "Accept-Language", "Authorization",
		"Connection", "User-Agent", "X-Api-Key", "X-Request-Id", "Traceparent", "Tracestate", "X-Stainless-Lang",
		"X-Stainless-Package-Version", "X-Stainless-Os", "X-Stainless-Arch", "X-Stainless-Runtime", "X-Stainless-Runtime-Version",
		"X-Stainless-Async", "X-Stainless-Retry-Count", "X-Stainless-Read-Timeout", "X-Stainless-Timeout", "X-Spillway-Class",
		"X-Spillway-Degrade", "X-Spillway-Deadline-Ms", "X-Request-Timeout", "X-Retry-Ticket",
		"X-Engine-Output-Tokens", "X-Forwarded-For", "Cookie", "Openai-Organization", "Openai-Project", "Transfer-Encoding", "Expect",
	} {
		m[name], m[strings.ToLower(name)] = name, name
	}
	return m
}()

// token says whether s is a header field name (RFC 9110 section 5.6.2).
func token(s string) bool {
	for i := range len(s) {
		if !tokenBytes[s[i]] {
			return false
		}
	}
	return s != ""
}

// tokenBytes are the bytes of a token.
var tokenBytes = func() (t [256]bool) {
	for c := range t {
		b := byte(c)
		t[c] = 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
	}
	return t
}()

// fieldValue says whether s has no control bytes but tabs.
func fieldValue(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// visible says whether s is visible ASCII.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// badHead says why a whole head must not be answered by anybody, or "" when
// net/http may have it. It refuses what net/http accepts but another server on
// the way may read differently: bare line ends, folded lines, a length beside a
// transfer coding. What is not whole yet is net/http's.
func badHead(raw []byte) string {
	end := bytes.Index(raw, []byte("\n\r\n"))
	if lf := bytes.Index(raw, []byte("\n\n")); lf >= 0 && (end < 0 || lf < end) {
		return "a line ends in a bare line feed"
	}
	if end < 0 || bytes.HasPrefix(raw, []byte("PRI * HTTP/2")) {
		return ""
	}
	first, rest, _ := strings.Cut(string(raw[:end+1]), "\n")
	if !strings.HasSuffix(first, "\r") {
		return "a line ends in a bare line feed"
	}
	var f framingFields
	for rest != "" {
		line, after, _ := strings.Cut(rest, "\n")
		rest = after
		if reason := f.read(line); reason != "" {
			return reason
		}
	}
	return f.judge(strings.HasSuffix(first, " HTTP/1.1\r"))
}

// framingFields counts the fields that say where a request ends and for whom it
// is.
type framingFields struct{ lengths, codings, hosts int }

// read notes one line of a head, or says what is wrong with it.
func (f *framingFields) read(line string) string {
	line, ok := strings.CutSuffix(line, "\r")
	name, value, colon := strings.Cut(line, ":")
	switch {
	case !ok:
		return "a line ends in a bare line feed"
	case line != "" && (line[0] == ' ' || line[0] == '\t'):
		return "a header field is folded"
	case !colon || !token(name):
		return "a header field has no proper name"
	case !fieldValue(value):
		return "a header field holds a control byte"
	}
	switch textproto.CanonicalMIMEHeaderKey(name) {
	case "Content-Length":
		f.lengths++
	case "Transfer-Encoding":
		f.codings++
	case "Host":
		f.hosts++
		if !visible(strings.Trim(value, " \t")) {
			return "the Host field is malformed"
		}
	}
	return ""
}

// judge says what is wrong with the fields together.
func (f *framingFields) judge(http11 bool) string {
	switch {
	case f.lengths > 1:
		return "there is more than one Content-Length"
	case f.lengths > 0 && f.codings > 0:
		return "there is both a Content-Length and a Transfer-Encoding"
	case f.codings > 0 && !http11:
		return "Transfer-Encoding needs HTTP/1.1"
	case f.hosts != 1 && http11:
		return "there must be one Host field"
	}
	return ""
}
