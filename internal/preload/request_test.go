package preload_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/preload"
)

func TestStripLeavesNoCredential(t *testing.T) {
	secrets := http.Header{
		"Authorization": {"Bearer x"}, "Proxy-Authorization": {"Basic x"}, "X-Api-Key": {"x"}, "Api-Key": {"x"},
		"Cookie": {"s=x"}, "X-Goog-Api-Key": {"x"}, "X-Amz-Security-Token": {"x"}, "X-Auth-Request-Email": {"x"},
		"X-Session-Id": {"x"}, "X-Csrf": {"x"}, "Idempotency-Key": {"x"}, "X-Ssl-Client-Cert": {"x"}, "X-Custom": {"bearer abc"},
		"X-Other": {"ok", "sk-abc"}, "authorization": {"not canonical"}, "Traceparent": {"00-1-1-00"}, "Cache-Control": {"no-store"},
	}
	want := http.Header{"Accept-Language": {"de"}, "Content-Type": {"application/json"}, "X-Region": {"eu", "us"}}
	req := &inference.Request{Header: http.Header{}}
	for _, from := range []http.Header{secrets, want} {
		for name, values := range from {
			req.Header[name] = values
		}
	}
	if diff := cmp.Diff(want, preload.Strip(req).Header); diff != "" {
		t.Errorf("header (-want +got):\n%s", diff)
	}
}

func TestStripQuery(t *testing.T) {
	tests := map[string]struct{ query, want string }{
		"none":        {"", ""},
		"harmless":    {"api-version=2026-01-01&b=%20", "api-version=2026-01-01&b=%20"},
		"a key":       {"api-version=1&key=abc", "api-version=1"},
		"all secret":  {"access_token=abc&sig=1", ""},
		"not a query": {"a=%zz;key", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := preload.Strip(&inference.Request{RawQuery: tt.query}).RawQuery; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestStripKeepsWhatDecidesTheAnswer(t *testing.T) {
	req := request("q")
	req.Ticket, req.Retry, req.Wait, req.Patience, req.DegradeOK = "t", 2, time.Second, time.Second, true
	req.Deadline = monday
	got := preload.Strip(req)
	if got.Tenant != req.Tenant || got.Model != req.Model || string(got.Body) != string(req.Body) || got.Surface != req.Surface || got.PromptBytes != req.PromptBytes {
		t.Errorf("got %+v, want what was asked", got)
	}
	if got.Class != inference.Idle || got.Ticket != "" || got.Retry != 0 || got.Wait != 0 || got.Patience != 0 || got.DegradeOK || got.ID != "" {
		t.Errorf("got %+v, want nothing of the client's exchange", got)
	}
}

func FuzzStrip(f *testing.F) {
	f.Add("Authorization", "Bearer x", "key=1&a=2")
	f.Add("x-api-key", "y", "%")
	f.Fuzz(func(t *testing.T, name, value, query string) {
		got := preload.Strip(&inference.Request{Header: http.Header{name: {value}}, RawQuery: query})
		for kept, values := range got.Header {
			if low := strings.ToLower(kept); strings.Contains(low, "auth") || strings.Contains(low, "key") || strings.Contains(low, "cookie") {
				t.Errorf("kept %q", kept)
			}
			if slices.ContainsFunc(values, func(v string) bool { return strings.HasPrefix(strings.ToLower(v), "bearer ") }) {
				t.Errorf("kept %q", values)
			}
		}
		if again := preload.Strip(got); again.RawQuery != got.RawQuery {
			t.Errorf("query %q becomes %q", got.RawQuery, again.RawQuery)
		}
	})
}
