package app_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/testkit"
)

// charged waits until a tenant has been charged for so many requests, and judges the
// tokens.
func (r *rig) charged(tenant string, requests, prompt, output int64) {
	r.t.Helper()
	testkit.Eventually(r.t, fmt.Sprintf("%s pays for %d requests", tenant, requests), func() bool { n, _, _ := r.spending(tenant); return n == requests })
	if _, p, o := r.spending(tenant); p != prompt || o != output {
		r.t.Errorf("%s pays for %d and %d tokens, want %d and %d", tenant, p, o, prompt, output)
	}
}

// ledgered is a gateway that writes what is spent at once.
func ledgered(t *testing.T, pools string, sections ...string) *rig {
	t.Helper()
	return newRig(t, spenders(t, pools, "", append(sections, "usage: {ledger: {flush: 100ms}}", "store: {directory: "+t.TempDir()+"}")...))
}

// TestEverySurfaceIsCharged for what its server reports, streamed or not: the prompt
// may be told in another event than the answer.
func TestEverySurfaceIsCharged(t *testing.T) {
	o := newOracle(t, nil)
	r := ledgered(t, strings.Replace(pool("gpu", o.Instance), "models: [m]", "models: [m]\n          surfaces: [chat, completions, messages, responses, embeddings]", 1), "cache: {enabled: false}")
	var requests, output int64
	for name, s := range surfaces {
		for _, more := range []string{"", withUsage} {
			if s.events == nil && more != "" {
				continue
			}
			if more != "" && name != "chat" && name != "completions" {
				more = streamed
			}
			got, err := r.send(s.path, s.body("q", more), bearer("acme-1"))
			if err != nil || got.status != 200 {
				t.Fatalf("%s: %d %s, %v", name, got.status, got.text, err)
			}
			requests++
			if s.events != nil {
				output += 13
			}
			r.charged("acme", requests, 5*requests, output)
		}
	}
}

// TestStaleAnswersCostNothing, whatever was tried before one was taken.
func TestStaleAnswersCostNothing(t *testing.T) {
	o := newOracle(t, nil)
	r := ledgered(t, pool("gpu", o.Instance), "cache: {sql: {enabled: false}, ttl: 1s, max_ttl: 1s, jitter: 0, stale: {while_revalidate: 0s, if_error: 1h}}")
	r.wants("q", "", bearer("acme-1"))
	r.charged("acme", 1, 5, 13)
	o.broken.Store(true)
	testkit.Eventually(t, "a stale answer is given", func() bool { return r.wants("q", "", bearer("acme-1")).cache() == "stale" })
	o.broken.Store(false)
	r.wants("another", "", bearer("acme-1"))
	r.charged("acme", 2, 10, 26)
}

// TestWhoLeavesPays for what was generated or passed on until then.
func TestWhoLeavesPays(t *testing.T) {
	const piece = 64 << 10
	large := testkit.NewInstance(t, func(x *testkit.Exchange) bool { // beyond what is held for a retry
		const tail = `],"usage":{"prompt_tokens":5000,"total_tokens":5000}}`
		head := `{"object":"list","data":[`
		fmt.Fprintf(x, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(head)+64*piece+len(tail), head)
		for range 64 {
			if _, err := io.WriteString(x, strings.Repeat("0,", piece/2)); err != nil {
				return false
			}
		}
		_, _ = io.WriteString(x, tail)
		return true
	})
	r := ledgered(t, strings.Replace(pool("gpu", large), "models: [m]", "models: [m]\n          surfaces: [embeddings]", 1), "cache: {enabled: false}")
	body := `{"model":"m","input":"` + strings.Repeat("word ", 200) + `"}`
	got, err := r.send("/v1/embeddings", body, bearer("acme-1"))
	if err != nil || got.status != 200 || len(got.text) < 64*piece {
		t.Fatalf("%d, %d bytes, %v", got.status, len(got.text), err)
	}
	r.charged("acme", 1, 5000, 0)

	conn, err := net.Dial("tcp", strings.TrimPrefix(r.api, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s", bearer("umbra-1"), len(body), body)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != 200 {
		t.Fatal(err)
	}
	conn.Close() // most of it is not read
	testkit.Eventually(t, "its prompt is paid for, by estimate", func() bool { n, prompt, _ := r.spending("umbra"); return n == 1 && prompt > 100 })
}
