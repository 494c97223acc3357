package api_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
)

func TestHeaderBombs(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.ReadHeaderTimeout, c.IdleTimeout = 2*time.Second, 3*time.Second }, nil)
	var many strings.Builder
	for i := range 300 {
		fmt.Fprintf(&many, "X-%d: 1\r\n", i)
	}
	for name, fields := range map[string]string{
		"many fields":         many.String(),
		"one huge field":      "X-Huge: " + strings.Repeat("a", 200<<10) + "\r\n",
		"one huge name":       strings.Repeat("a", 200<<10) + ": 1\r\n",
		"a field without end": "X-Huge: " + strings.Repeat("a", 2<<20),
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			go c.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + fields + "Content-Length: 2\r\n\r\n{}")
			a := c.receive("POST")
			a.refused(t, 431, inference.CodeHeadTooLarge)
			c.closed()
			c.Close()
			r.idle()
		})
	}
	c := r.dial()
	go c.send("POST /" + strings.Repeat("a", 200<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n")
	c.receive("POST").refused(t, 431, inference.CodeHeadTooLarge)
	c.closed()
	c.Close()
	r.idle()
	r.untouched()
}

// malformed are heads that are refused with 400, and never reach the gateway:
// those that two readers can understand differently above all.
func malformed() map[string]string {
	const good = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
	length := fmt.Sprintf("Content-Length: %d\r\n", len(chat))
	whole := good + length + "\r\n" + chat
	request := func(fields string) string { return good + fields + length + "\r\n" + chat }
	return map[string]string{
		"no version":               "POST /v1/chat/completions\r\nHost: x\r\n\r\n",
		"bad version":              "POST /v1/chat/completions HTTP/x\r\nHost: x\r\n\r\n",
		"TLS hello":                "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"bad method":               strings.Replace(whole, "POST", "PO ST", 1),
		"control in the path":      strings.Replace(whole, "/v1/", "/v1\x01/", 1),
		"bad escape":               strings.Replace(whole, "/v1/", "/v1%zz/", 1),
		"no host":                  strings.Replace(whole, "Host: x\r\n", "", 1),
		"two hosts":                request("Host: y\r\n"),
		"no colon":                 request("X-Broken\r\n"),
		"empty name":               request(": 1\r\n"),
		"space before colon":       request("X-Space : 1\r\n"),
		"space in CL's name":       strings.Replace(whole, "Content-Length:", "Content-Length :", 1),
		"space in TE's name":       request("Transfer-Encoding : chunked\r\n"),
		"control in a name":        request("X\x01Y: 1\r\n"),
		"control in a value":       request("X-V: a\x00b\r\n"),
		"lone CR":                  request("X-V: a\rb\r\n"),
		"two different CLs":        request("Content-Length: 5\r\n"),
		"two CLs in one":           strings.Replace(whole, length, "Content-Length: 5, 6\r\n", 1),
		"CL with plus":             strings.Replace(whole, length, "Content-Length: +5\r\n", 1),
		"CL minus":                 strings.Replace(whole, length, "Content-Length: -5\r\n", 1),
		"CL hex":                   strings.Replace(whole, length, "Content-Length: 0x5\r\n", 1),
		"CL overflow":              strings.Replace(whole, length, "Content-Length: 99999999999999999999\r\n", 1),
		"CL empty":                 strings.Replace(whole, length, "Content-Length:\r\n", 1),
		"first line begins folded": " " + whole,
		"first field is folded":    strings.Replace(whole, "Host: x", " Host: x", 1),
		"TE unknown":               strings.Replace(whole, length, "Transfer-Encoding: gzip\r\n", 1),
		"TE twice":                 strings.Replace(whole, length, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 1),
		"TE list":                  strings.Replace(whole, length, "Transfer-Encoding: gzip, chunked\r\n", 1),
		"TE quoted":                strings.Replace(whole, length, "Transfer-Encoding: \"chunked\"\r\n", 1),
		"TE with VT":               strings.Replace(whole, length, "Transfer-Encoding: \vchunked\r\n", 1),
	}
}

func TestMalformedHeads(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.ReadHeaderTimeout, c.IdleTimeout = 2*time.Second, 3*time.Second }, nil)
	for name, request := range malformed() {
		t.Run(name, func(t *testing.T) { r.refusesHead(t, request) })
	}
	r.untouched()
}

// refusesHead asserts that a head is refused and that nothing is left of it.
func (r *rig) refusesHead(t *testing.T, request string) {
	t.Helper()
	before := r.serves.Load()
	c := r.dial()
	c.t = t
	c.send(request)
	a := c.receive("POST")
	if a.StatusCode != 501 { // an unknown transfer coding has a status of its own
		a.refused(t, 400, inference.CodeInvalidRequest)
	}
	c.closed()
	c.Close()
	if r.serves.Load() != before {
		t.Error("the request reached the gateway")
	}
	r.idle()
}

// Whatever a head looks like, what is behind a refused or unusual request is
// never taken for a second one that the client did not send.
func TestNothingIsSmuggled(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.ReadHeaderTimeout, c.IdleTimeout = 2*time.Second, 3*time.Second }, nil)
	inner := post("/v1/chat/completions", `{"model":"smuggled","messages":[{}]}`)
	for name, request := range map[string]string{
		"two CLs":     "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
		"TE spaced":   "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + inner,
		"TE unknown":  "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: x\r\n\r\n" + inner,
		"too large":   "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n" + inner,
		"wrong media": "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/html\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
	} {
		t.Run(name, func(t *testing.T) {
			r.smuggles(t, request)
		})
	}
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.IdleTimeout = 150 * time.Millisecond }, nil)
	c := r.dial()
	for range 2 {
		c.send(post("/v1/chat/completions", chat))
		if a := c.receive("POST"); a.StatusCode != 200 {
			t.Fatalf("got %d", a.StatusCode)
		}
	}
	c.closed()
	c.Close()
	r.idle()
}

// smuggles fails the test if what is behind a request is served, too.
func (r *rig) smuggles(t *testing.T, request string) {
	t.Helper()
	c := r.dial()
	c.send(request)
	c.receive("POST")
	c.Close()
	r.idle()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.last != nil && r.mu.last.Model == "smuggled" {
		t.Error("the inner request was served")
		r.mu.last = nil
	}
}
