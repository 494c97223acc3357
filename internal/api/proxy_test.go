package api_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/api"
)

// v2 is a PROXY protocol header of version 2.
func v2(command, family byte, rest []byte) string {
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x20|command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(rest)))
	return string(append(b, rest...))
}

// pair is two addresses with ports as version 2 writes them.
func pair(src, dst string, extra ...byte) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	b := append(s.Addr().AsSlice(), d.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, s.Port())
	b = binary.BigEndian.AppendUint16(b, d.Port())
	return append(b, extra...)
}

func TestProxyProtocol(t *testing.T) {
	r := newRigBehindProxy(t)
	for name, c := range map[string]struct{ header, want string }{
		"v1 TCP4":       {"PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n", "192.0.2.7"},
		"v1 TCP6":       {"PROXY TCP6 2001:db8::7 2001:db8::1 1234 443\r\n", "2001:db8::7"},
		"v1 UNKNOWN":    {"PROXY UNKNOWN\r\n", "127.0.0.1"},
		"v1 UNKNOWN +":  {"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "127.0.0.1"},
		"v2 TCP4":       {v2(1, 0x11, pair("192.0.2.8:5", "10.0.0.1:6")), "192.0.2.8"},
		"v2 TCP6":       {v2(1, 0x21, pair("[2001:db8::8]:5", "[2001:db8::1]:6")), "2001:db8::8"},
		"v2 mapped":     {v2(1, 0x21, pair("[::ffff:192.0.2.9]:5", "[2001:db8::1]:6")), "192.0.2.9"},
		"v2 extensions": {v2(1, 0x11, pair("192.0.2.8:5", "10.0.0.1:6", 4, 0, 3, 1, 2, 3)), "192.0.2.8"},
		"v2 LOCAL":      {v2(0, 0, nil), "127.0.0.1"},
		"v2 UNSPEC":     {v2(1, 0, nil), "127.0.0.1"},
		"v2 UNIX":       {v2(1, 0x31, make([]byte, 216)), "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := r.dial()
			conn.send(c.header + post("/v1/chat/completions", chat))
			if a := conn.receive("POST"); a.StatusCode != 200 {
				t.Fatalf("got %d %s", a.StatusCode, a.body)
			}
			if got := r.last().ClientIP.String(); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			conn.send(post("/v1/chat/completions", chat)) // one header a connection
			if a := conn.receive("POST"); a.StatusCode != 200 || r.last().ClientIP.String() != c.want {
				t.Errorf("the second request: got %d from %v", a.StatusCode, r.last().ClientIP)
			}
			conn.Close()
		})
	}
	t.Run("byte by byte", func(t *testing.T) {
		conn := r.dial()
		for _, b := range []byte(v2(1, 0x11, pair("192.0.2.8:5", "10.0.0.1:6")) + post("/v1/chat/completions", chat)) {
			_, _ = conn.Write([]byte{b})
		}
		if a := conn.receive("POST"); a.StatusCode != 200 || r.last().ClientIP.String() != "192.0.2.8" {
			t.Errorf("got %d from %v", a.StatusCode, r.last().ClientIP)
		}
		conn.Close()
	})
	r.idle()
}

// newRigBehindProxy is a server that expects a PROXY header from loopback.
func newRigBehindProxy(t *testing.T) *rig {
	t.Helper()
	return newRig(t, func(c *api.Config) {
		c.ProxyProtocol, c.TrustedProxies, c.ReadHeaderTimeout = true, []string{"127.0.0.0/8"}, 300*time.Millisecond
	}, nil)
}

func TestMalformedProxyHeaders(t *testing.T) {
	r := newRigBehindProxy(t)
	request := post("/v1/chat/completions", chat)
	for name, header := range map[string]string{
		"none":              "",
		"v1 lower case":     "proxy TCP4 192.0.2.7 198.51.100.1 1234 443\r\n",
		"v1 bare LF":        "PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\n",
		"v1 UDP":            "PROXY UDP4 192.0.2.7 198.51.100.1 1234 443\r\n",
		"v1 too few":        "PROXY TCP4 192.0.2.7 198.51.100.1\r\n",
		"v1 too many":       "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n",
		"v1 name":           "PROXY TCP4 localhost 198.51.100.1 1 2\r\n",
		"v1 port":           "PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n",
		"v1 without an end": "PROXY TCP4 " + strings.Repeat("1", 200),
		"v2 version":        strings.Replace(v2(1, 0x11, pair("192.0.2.8:5", "10.0.0.1:6")), "QUIT\n\x21", "QUIT\n\x31", 1),
		"v2 short":          v2(1, 0x11, []byte{1, 2, 3}),
		"v2 long":           v2(1, 0x11, make([]byte, 5000)),
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			c.send(header + request)
			if rest, err := readSome(c); bytes.Contains(rest, []byte("200 OK")) || err {
				t.Errorf("got %q, open %v", rest, err)
			}
			c.Close()
			r.idle()
		})
	}
	r.untouched()
}

// readSome reads to the end and says whether the connection stayed open.
func readSome(c *conn) (b []byte, open bool) {
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	var all bytes.Buffer
	_, err := all.ReadFrom(c.br)
	return all.Bytes(), errors.Is(err, os.ErrDeadlineExceeded)
}

func TestAPeerThatIsNotTrustedWritesNoProxyHeader(t *testing.T) {
	r := newRig(t, func(c *api.Config) { c.ProxyProtocol, c.TrustedProxies = true, []string{"192.0.2.1"} }, nil)
	if a := r.ask(post("/v1/chat/completions", chat, "X-Forwarded-For: 203.0.113.9")); a.StatusCode != 200 || r.last().ClientIP.String() != "127.0.0.1" {
		t.Errorf("got %d from %v", a.StatusCode, r.last().ClientIP)
	}
	n := r.serves.Load()
	c := r.dial()
	c.send("PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n" + post("/v1/chat/completions", chat))
	if a := c.receive("POST"); a.StatusCode != 400 || r.serves.Load() != n {
		t.Errorf("got %d", a.StatusCode)
	}
	c.Close()
	r.idle()
}

func TestClientAddresses(t *testing.T) {
	trusted := []string{"127.0.0.1", "10.0.0.0/8", "2001:db8:1::/48"}
	r := newRig(t, func(c *api.Config) { c.TrustedProxies = trusted }, nil)
	for name, c := range map[string]struct {
		fields []string
		want   string
	}{
		"none":                        {nil, "127.0.0.1"},
		"one":                         {[]string{"X-Forwarded-For: 203.0.113.9"}, "203.0.113.9"},
		"port":                        {[]string{"X-Forwarded-For: 203.0.113.9:1234"}, "203.0.113.9"},
		"IPv6":                        {[]string{"X-Forwarded-For: 2001:db8::9"}, "2001:db8::9"},
		"IPv6 in brackets":            {[]string{"X-Forwarded-For: [2001:db8::9]"}, "2001:db8::9"},
		"IPv6 with port":              {[]string{"X-Forwarded-For: [2001:db8::9]:80"}, "2001:db8::9"},
		"mapped":                      {[]string{"X-Forwarded-For: ::ffff:203.0.113.9"}, "203.0.113.9"},
		"through trusted hops":        {[]string{"X-Forwarded-For: 203.0.113.9, 10.1.2.3, 10.4.5.6"}, "203.0.113.9"},
		"spoofed before the client":   {[]string{"X-Forwarded-For: 198.51.100.66, 203.0.113.9, 10.1.2.3"}, "203.0.113.9"},
		"spoofed trusted before it":   {[]string{"X-Forwarded-For: 10.9.9.9, 203.0.113.9"}, "203.0.113.9"},
		"only trusted hops":           {[]string{"X-Forwarded-For: 10.1.1.1, 10.2.2.2"}, "10.1.1.1"},
		"garbage before the client":   {[]string{"X-Forwarded-For: <script>, 203.0.113.9"}, "203.0.113.9"},
		"garbage last":                {[]string{"X-Forwarded-For: 203.0.113.9, unknown"}, "127.0.0.1"},
		"garbage behind a hop":        {[]string{"X-Forwarded-For: 203.0.113.9, garbage, 10.1.2.3"}, "10.1.2.3"},
		"empty":                       {[]string{"X-Forwarded-For:"}, "127.0.0.1"},
		"empty element":               {[]string{"X-Forwarded-For: 203.0.113.9,"}, "127.0.0.1"},
		"two fields":                  {[]string{"X-Forwarded-For: 198.51.100.66", "X-Forwarded-For: 203.0.113.9"}, "203.0.113.9"},
		"two fields with a hop":       {[]string{"X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 10.1.2.3"}, "203.0.113.9"},
		"Forwarded":                   {[]string{"Forwarded: for=203.0.113.9;proto=https;by=10.0.0.1"}, "203.0.113.9"},
		"Forwarded, other order":      {[]string{"Forwarded: proto=https; For=203.0.113.9"}, "203.0.113.9"},
		"Forwarded, quoted IPv6":      {[]string{`Forwarded: for="[2001:db8::9]:4711"`}, "2001:db8::9"},
		"Forwarded through hops":      {[]string{`Forwarded: for=198.51.100.66, for=203.0.113.9, for="[2001:db8:1::2]"`}, "203.0.113.9"},
		"Forwarded, obfuscated":       {[]string{"Forwarded: for=_hidden"}, "127.0.0.1"},
		"Forwarded without for":       {[]string{"Forwarded: proto=https"}, "127.0.0.1"},
		"X-Forwarded-For comes first": {[]string{"Forwarded: for=198.51.100.66", "X-Forwarded-For: 203.0.113.9"}, "203.0.113.9"},
	} {
		t.Run(name, func(t *testing.T) {
			if a := r.ask(post("/v1/chat/completions", chat, c.fields...)); a.StatusCode != 200 {
				t.Fatalf("got %d", a.StatusCode)
			}
			if got := r.last().ClientIP.String(); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
	r = newRig(t, nil, nil) // trusts nobody
	for _, field := range []string{"X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9", "X-Real-IP: 203.0.113.9"} {
		if r.ask(post("/v1/chat/completions", chat, field)); r.last().ClientIP.String() != "127.0.0.1" {
			t.Errorf("%s was believed", field)
		}
	}
}

func TestAReloadChangesTheTrustedProxies(t *testing.T) {
	r := newRig(t, nil, nil)
	cfg := api.Default()
	cfg.TrustedProxies, cfg.MaxBody = []string{"127.0.0.1"}, 100
	r.server.Apply(cfg)
	if a := r.ask(post("/v1/chat/completions", chat, "X-Forwarded-For: 203.0.113.9")); a.StatusCode != 200 || r.last().ClientIP.String() != "203.0.113.9" {
		t.Errorf("got %d from %v", a.StatusCode, r.last().ClientIP)
	}
	if a := r.ask(post("/v1/chat/completions", padded(101))); a.StatusCode != 413 {
		t.Errorf("got %d, want 413", a.StatusCode)
	}
}

func FuzzProxyHeader(f *testing.F) {
	for _, s := range []string{"PROXY TCP4 192.0.2.7 198.51.100.1 1234 443\r\n", "PROXY UNKNOWN\r\n", v2(1, 0x11, pair("192.0.2.8:5", "10.0.0.1:6")), v2(1, 0x21, pair("[2001:db8::8]:5", "[::1]:6", 1, 2)), v2(0, 0, nil), ""} {
		f.Add([]byte(s + "GET"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), 4096)
		ap, err := api.ReadProxyHeader(r)
		if err != nil {
			if ap.IsValid() {
				t.Errorf("got %v with %v", ap, err)
			}
			return
		}
		v2 := bytes.HasPrefix(data, []byte("\r\n\r\n\x00\r\nQUIT\n"))
		rest := r.Buffered()
		used := data[:len(data)-rest]
		if len(data) > 4096 {
			return // not all of it is in the buffer
		}
		if v2 && len(used) != 16+int(binary.BigEndian.Uint16(data[14:])) {
			t.Errorf("%d bytes were used", len(used))
		}
		if !v2 && (!bytes.HasPrefix(used, []byte("PROXY ")) || !bytes.HasSuffix(used, []byte("\r\n")) || len(used) > 107) {
			t.Errorf("took %q for a header", used)
		}
	})
}

func FuzzClientIP(f *testing.F) {
	for _, s := range []string{"203.0.113.9", "10.0.0.1, 203.0.113.9:80", "[2001:db8::9]:1", "for=1.2.3.4", `for="[::1]:80";by=x, for=_x`, ",,,", "unknown", "fe80::1%eth0"} {
		f.Add(s, s)
	}
	peer := netip.MustParseAddr("10.0.0.1")
	f.Fuzz(func(t *testing.T, xff, forwarded string) {
		for _, h := range []http.Header{{"X-Forwarded-For": {xff}}, {"Forwarded": {forwarded}}, {"X-Forwarded-For": {xff, forwarded}}, {"X-Forwarded-For": {xff}, "Forwarded": {forwarded}}} {
			got := api.ClientIP([]string{"10.0.0.0/8"}, peer, h)
			if !got.IsValid() || got.Is4In6() {
				t.Errorf("got %v for %q", got, h)
			}
			// What a client wrote itself stands before what the proxy appended.
			h2 := http.Header{"X-Forwarded-For": {xff + ", 203.0.113.9"}}
			if got := api.ClientIP([]string{"10.0.0.0/8"}, peer, h2); got.String() != "203.0.113.9" {
				t.Errorf("got %v for %q", got, h2)
			}
			if got := api.ClientIP(nil, peer, h); got != peer {
				t.Errorf("got %v for %q without trusted proxies", got, h)
			}
		}
	})
}
