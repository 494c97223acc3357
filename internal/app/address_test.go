package app_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAddressesOfThePROXYProtocol: the address that a load balancer tells of a
// connection is the one that is limited, over all of its connections.
func TestAddressesOfThePROXYProtocol(t *testing.T) {
	for _, front := range []string{"lean", "net_http"} {
		t.Run(front, func(t *testing.T) {
			r := newRig(t, fronted(text(pool("gpu", named(t, "one")), memoryOnly, "limit: {address: {rate: 1/h, burst: 3}}"), `trusted_proxies: ["127.0.0.2"], proxy_protocol: true, front: `+front))
			ask := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(chat), chat)
			from := func(ip string, n int) string {
				return fmt.Sprint(r.rawFrom("127.0.0.2", fmt.Sprintf("PROXY TCP4 %s 127.0.0.1 1234 80\r\n", ip)+strings.Repeat(ask, n), n))
			}
			for _, c := range []struct {
				ip   string
				n    int
				want string
			}{
				{"8.8.8.1", 2, "[200 200]"},
				{"8.8.8.1", 2, "[200 429]"}, // a refusal does not read the body and ends the connection
				{"8.8.8.2", 4, "[200 200 200 429]"},
				{"10.0.0.1", 5, "[200 200 200 200 200]"}, // private addresses are exempt
			} {
				if got := from(c.ip, c.n); got != c.want {
					t.Errorf("%d requests of %s: got %s, want %s", c.n, c.ip, got, c.want)
				}
			}
		})
	}
}

// TestAddressesOfHTTP2: each stream of a connection is a request of its client's.
func TestAddressesOfHTTP2(t *testing.T) {
	r := newRig(t, fronted(text(pool("gpu", named(t, "one")), memoryOnly, "limit: {address: {rate: 1/h, burst: 3}}"), behind))
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	client := &http.Client{Transport: tr, Timeout: 15 * time.Second}
	ask := func(ip, body string) (status int, fields http.Header) {
		t.Helper()
		req, err := http.NewRequest(http.MethodPost, r.api+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-For", ip)
		req.Header.Set("Content-Type", "application/json")
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil || res.ProtoMajor != 2 {
			t.Fatalf("%s: %v", res.Proto, err)
		}
		return res.StatusCode, res.Header
	}
	stream := strings.Replace(chat, "{", `{"stream":true,`, 1)
	for i, body := range []string{chat, stream, chat} {
		if status, _ := ask("8.8.8.1", body); status != 200 {
			t.Errorf("request %d: got %d", i, status)
		}
	}
	if status, fields := ask("8.8.8.1", stream); status != 429 || fields.Get("X-Spillway-Reason") != "address" || fields.Get("Retry-After") == "" {
		t.Errorf("the fourth: got %d with %v", status, fields)
	}
	if status, _ := ask("8.8.8.2", chat); status != 200 {
		t.Errorf("another client on the same connection: got %d", status)
	}
}
