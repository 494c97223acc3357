package upstream_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/upstream"
)

// FuzzAnswer checks that an answer means the same however its bytes arrive, and
// that what we accept net/http understands alike: two readers that disagree are
// what response smuggling lives on.
func FuzzAnswer(f *testing.F) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX-A: b\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 204 No Content\r\nRetry-After: 1\r\nX-RateLimit-Reset-Tokens: 1m\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
	} {
		f.Add([]byte(raw), uint8(3))
	}
	f.Fuzz(func(t *testing.T, raw []byte, step uint8) {
		head, body, err := upstream.ReadAnswer(raw, 1<<20)
		head2, body2, err2 := upstream.ReadAnswer(raw, int(step)%9+1)
		if (err == nil) != (err2 == nil) || err == nil && (!bytes.Equal(body, body2) || !cmp.Equal(head, head2)) {
			t.Fatalf("whole: %v %q %v\nin pieces: %v %q %v", head, body, err, head2, body2, err2)
		}
		if err != nil {
			return
		}
		req := &http.Request{Method: http.MethodPost}
		br := bufio.NewReader(bytes.NewReader(raw))
		res, err := http.ReadResponse(br, req)
		for n := 0; err == nil && res.StatusCode < 200 && n < 8; n++ {
			res, err = http.ReadResponse(br, req)
		}
		if err != nil {
			return // net/http is stricter here
		}
		want, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		if err == nil && (res.StatusCode != head.Status || !bytes.Equal(body, want)) {
			t.Fatalf("we read %d %q, net/http reads %d %q", head.Status, body, res.StatusCode, want)
		}
	})
}

// FuzzLimits checks that whatever a hosted API says of its limits, a reset is
// never in the past and a cool-down is never longer than its bound.
func FuzzLimits(f *testing.F) {
	for _, v := range []string{"1s", "6m0s", "60", "0.5", "1e300", "NaN", "-3", "2030-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999+14:00", "2562047h47m16.854775807s"} {
		f.Add("X-Ratelimit-Reset-Tokens", v, "0")
		f.Add("Anthropic-Ratelimit-Tokens-Reset", v, "0")
	}
	f.Fuzz(func(t *testing.T, name, reset, left string) {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		d, ok := upstream.ParseReset(reset, now)
		if d < 0 || !ok && d != 0 {
			t.Fatalf("%q: got %v, %v", reset, d, ok)
		}
		fields := [][2]string{{name, reset}, {strings.Replace(name, "Reset", "Remaining", 1), left}}
		if c := upstream.Cooled(fields, now); c < 0 || c > 10*time.Minute {
			t.Fatalf("%q: cooled for %v", fields, c)
		}
	})
}
