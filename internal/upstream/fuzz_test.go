package upstream_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"

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
