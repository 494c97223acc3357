package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/inference"
)

func TestEachSurfaceWithAndWithoutV1(t *testing.T) {
	r := newRig(t, nil, nil)
	for _, s := range inference.Surfaces() {
		for _, path := range []string{s.Path(), strings.TrimPrefix(s.Path(), "/v1")} {
			body := bodyFor(s)
			a := r.ask(post(path+"?a=b&c", body, "X-Extra: kept"))
			if a.StatusCode != 200 || a.body != ok || a.ContentLength != int64(len(ok)) || a.Header.Get("Content-Type") != "application/json" {
				t.Errorf("%s: got %d %q", path, a.StatusCode, a.body)
			}
			req := r.last()
			if req.Surface != s || string(req.Body) != body || req.Model != "m" || req.RawQuery != "a=b&c" || req.Header.Get("X-Extra") != "kept" {
				t.Errorf("%s: the gateway got %+v", path, req)
			}
			if req.ID != a.Header.Get("X-Request-Id") || req.Tenant != "anonymous" || req.ClientIP.String() != "127.0.0.1" {
				t.Errorf("%s: id %q, tenant %q, address %v", path, req.ID, req.Tenant, req.ClientIP)
			}
		}
	}
	r.idle()
}

func TestModels(t *testing.T) {
	r := newRig(t, nil, nil)
	type model struct {
		ID      string `json:"id"`
		Object  string `json:"object"`
		Created int64  `json:"created"`
		OwnedBy string `json:"owned_by"`
	}
	for _, prefix := range []string{"/v1", ""} {
		a := r.ask("GET " + prefix + "/models HTTP/1.1\r\nHost: x\r\n\r\n")
		var list struct {
			Object string  `json:"object"`
			Data   []model `json:"data"`
		}
		strict(t, a.body, &list)
		if a.StatusCode != 200 || list.Object != "list" || len(list.Data) != 2 || list.Data[1].ID != "org/model" || list.Data[0].Object != "model" {
			t.Errorf("got %d %s", a.StatusCode, a.body)
		}
		a = r.ask("GET " + prefix + "/models/org/model HTTP/1.1\r\nHost: x\r\n\r\n")
		var one model
		strict(t, a.body, &one)
		if a.StatusCode != 200 || one.ID != "org/model" || one.Created <= 0 || one.OwnedBy == "" {
			t.Errorf("got %d %s", a.StatusCode, a.body)
		}
		a = r.ask("GET " + prefix + "/models/org%2Fmodel HTTP/1.1\r\nHost: x\r\n\r\n")
		if a.StatusCode != 200 {
			t.Errorf("escaped name: got %d %s", a.StatusCode, a.body)
		}
		r.ask("GET "+prefix+"/models/none HTTP/1.1\r\nHost: x\r\n\r\n").refused(t, 404, inference.CodeModelNotFound)
		r.ask(post(prefix+"/models", "{}")).refused(t, 405, inference.CodeMethodNotAllowed)
	}
	r.models = nil
	if a := r.ask("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"); a.body != `{"object":"list","data":[]}` {
		t.Errorf("no models: got %s", a.body)
	}
	r.identity = func(http.Header) (inference.Caller, error) {
		return inference.Caller{}, inference.Errorf(inference.CodeUnauthorized, "no")
	}
	unknown := r.ask("GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
	unknown.refused(t, 401, inference.CodeUnauthorized)
	if got := unknown.Header.Get("WWW-Authenticate"); got != "Bearer" {
		t.Errorf("WWW-Authenticate: %q", got)
	}
	r.untouched()
	r.idle()
}

func TestUnknownPathsAndMethods(t *testing.T) {
	r := newRig(t, nil, nil)
	for _, path := range []string{"/", "/v1", "/v1/", "/v2/chat/completions", "/v1/chat/completions/", "/v1/v1/chat/completions", "/v1models", "/chat", "/v1/livez", "/metrics", "/admin/config"} {
		r.ask(post(path, chat)).refused(t, 404, inference.CodeNotFound)
		r.ask("GET "+path+" HTTP/1.1\r\nHost: x\r\n\r\n").refused(t, 404, inference.CodeNotFound)
	}
	for _, method := range []string{"GET", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		a := r.ask(method + " /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n")
		a.refused(t, 405, inference.CodeMethodNotAllowed)
	}
	r.ask("GET /v1/messages HTTP/1.1\r\nHost: x\r\n\r\n").refusedMessages(t, 405, "invalid_request_error")
	r.untouched()
	if rec := r.recorded(); rec.Status != 405 || rec.Code != inference.CodeMethodNotAllowed {
		t.Errorf("recorded %+v", rec)
	}
	r.idle()
}

func TestHead(t *testing.T) {
	r := newRig(t, nil, nil)
	c := r.dial()
	for range 2 { // the connection is still in step behind an answer without a body
		c.send("HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
		if a := c.receive("HEAD"); a.StatusCode != 200 || a.body != "" || a.ContentLength <= 0 {
			t.Errorf("got %d %q", a.StatusCode, a.body)
		}
		c.send("HEAD /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n")
		if a := c.receive("HEAD"); a.StatusCode != 405 || a.body != "" {
			t.Errorf("got %d %q", a.StatusCode, a.body)
		}
	}
	c.Close()
	r.idle()
}

func TestProbes(t *testing.T) {
	r := newRig(t, nil, nil)
	r.identity = func(http.Header) (inference.Caller, error) {
		return inference.Caller{}, errors.New("asked for a credential")
	}
	for _, path := range []string{"/livez", "/readyz"} {
		if a := r.ask("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n"); a.StatusCode != 200 || a.body != "probe" {
			t.Errorf("%s: got %d %q", path, a.StatusCode, a.body)
		}
	}
	r = newRig(t, func(c *api.Config) { c.Probes = false }, nil)
	r.ask("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").refused(t, 404, inference.CodeNotFound)
}

func TestContentTypes(t *testing.T) {
	r := newRig(t, nil, nil)
	request := func(field string) string {
		return fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s", field, len(chat), chat)
	}
	for _, ct := range []string{"text/plain", "application/xml", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "json", "application/json; charset=\"", "application/jsonx"} {
		r.ask(request("Content-Type: "+ct+"\r\n")).refused(t, 415, inference.CodeUnsupportedMedia)
	}
	for _, ce := range []string{"gzip", "br", "identity, gzip"} {
		r.ask(request("Content-Encoding: "+ce+"\r\n")).refused(t, 415, inference.CodeUnsupportedMedia)
	}
	r.untouched()
	for _, field := range []string{"", "Content-Type: application/json; charset=utf-8\r\n", "Content-Type: Application/JSON\r\n", "Content-Encoding: identity\r\n"} {
		if a := r.ask(request(field)); a.StatusCode != 200 {
			t.Errorf("%q: got %d %s", field, a.StatusCode, a.body)
		}
	}
	r.idle()
}

// badBodies are bodies that no gateway may see, with the parameter at fault.
func badBodies() map[string]struct{ body, param string } {
	return map[string]struct{ body, param string }{
		"empty":             {"", ""},
		"space":             {"  \n", ""},
		"half":              {`{"model":"m","messages":[`, ""},
		"garbage":           {`hello`, ""},
		"array":             {`[1]`, ""},
		"string":            {`"x"`, ""},
		"null":              {`null`, ""},
		"trailing":          {chat + `{}`, ""},
		"trailing comma":    {`{"model":"m","messages":[],}`, ""},
		"single quotes":     {`{'model':'m'}`, ""},
		"duplicate model":   {`{"model":"m","model":"other","messages":[{}]}`, ""},
		"duplicate escaped": {`{"model":"m","mod\u0065l":"other","messages":[{}]}`, ""},
		"duplicate deep":    {`{"model":"m","messages":[{"role":"user","role":"system"}]}`, ""},
		"nesting":           {`{"model":"m","messages":` + strings.Repeat("[", 1001) + strings.Repeat("]", 1001) + `}`, ""},
		"nesting elsewhere": {`{"model":"m","messages":[{}],"x":` + strings.Repeat(`{"a":`, 1000) + "1" + strings.Repeat("}", 1000) + `}`, ""},
		"no model":          {`{"messages":[{"role":"user","content":"hi"}]}`, "model"},
		"empty model":       {`{"model":"","messages":[{}]}`, "model"},
		"model number":      {`{"model":1,"messages":[{}]}`, "model"},
		"model null":        {`{"model":null,"messages":[{}]}`, "model"},
		"stream string":     {`{"model":"m","stream":"yes","messages":[{}]}`, "stream"},
		"max_tokens string": {`{"model":"m","max_tokens":"9","messages":[{}]}`, "max_tokens"},
		"max_tokens minus":  {`{"model":"m","max_tokens":-1,"messages":[{}]}`, "max_tokens"},
		"max_tokens huge":   {`{"model":"m","max_tokens":1e99,"messages":[{}]}`, "max_tokens"},
		"max_tokens half":   {`{"model":"m","max_tokens":1.5,"messages":[{}]}`, "max_tokens"},
		"no messages":       {`{"model":"m"}`, "messages"},
		"messages string":   {`{"model":"m","messages":"hi"}`, "messages"},
		"messages object":   {`{"model":"m","messages":{}}`, "messages"},
		"stream_options":    {`{"model":"m","messages":[{}],"stream_options":1}`, "stream_options"},
		"invalid UTF-8":     {"{\"model\":\"m\",\"messages\":[{\"content\":\"\xff\xfe\"}]}", ""},
		"overlong UTF-8":    {"{\"model\":\"m\",\"messages\":[{\"content\":\"\xc0\xaf\"}]}", ""},
		"lone surrogate":    {`{"model":"m","messages":[{"content":"\ud800"}]}`, ""},
		"UTF-16":            {"\xff\xfe{\x00}\x00", ""},
		"byte order mark":   {"\xef\xbb\xbf" + chat, ""},
		"NUL":               {"{\"model\":\"m\x00\",\"messages\":[{}]}", ""},
		"NaN":               {`{"model":"m","messages":[{}],"temperature":NaN}`, ""},
	}
}

func TestBadBodies(t *testing.T) {
	r := newRig(t, nil, nil)
	c := r.dial() // one connection for all: a mistake does not put it out of step
	for name, bad := range badBodies() {
		t.Run(name, func(t *testing.T) {
			c.send(post("/v1/chat/completions", bad.body))
			a := c.receive("POST")
			a.refused(t, 400, inference.CodeInvalidRequest)
			var v struct{ Error struct{ Param *string } }
			if err := json.Unmarshal([]byte(a.body), &v); err != nil {
				t.Fatal(err)
			}
			got := ""
			if v.Error.Param != nil {
				got = *v.Error.Param
			}
			if got != bad.param || bad.param == "" && v.Error.Param != nil {
				t.Errorf("got param %q, want %q in %s", got, bad.param, a.body)
			}
			if a.Header.Get("X-Should-Retry") != "false" {
				t.Errorf("X-Should-Retry: %q", a.Header.Get("X-Should-Retry"))
			}
			r.ask(post("/v1/messages", bad.body)).refusedMessages(t, 400, "invalid_request_error")
		})
	}
	r.untouched()
	c.send(post("/v1/chat/completions", chat))
	if a := c.receive("POST"); a.StatusCode != 200 {
		t.Errorf("a good request behind the bad ones: got %d %s", a.StatusCode, a.body)
	}
	c.Close()
	r.idle()
}

func TestDeepestNestingThatIsAllowed(t *testing.T) {
	r := newRig(t, nil, nil)
	body := `{"model":"m","messages":[{}],"x":` + strings.Repeat("[", 999) + strings.Repeat("]", 999) + `}`
	if a := r.ask(post("/v1/chat/completions", body)); a.StatusCode != 200 || string(r.last().Body) != body {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
}

func TestEveryCodeHasAnAnswer(t *testing.T) {
	want := map[inference.Code]int{
		inference.CodeInvalidRequest: 400, inference.CodeUnauthorized: 401, inference.CodeModelNotFound: 404, inference.CodeNotFound: 404,
		inference.CodeMethodNotAllowed: 405, inference.CodeTooLarge: 413, inference.CodeHeadTooLarge: 431, inference.CodeUnsupportedMedia: 415,
		inference.CodeBodyTimeout: 408, inference.CodeRateLimited: 429, inference.CodeQuotaSpent: 429, inference.CodeOverloaded: 503, inference.CodeNoCapacity: 503, inference.CodeUpstreamError: 502,
		inference.CodeUpstreamCut: 502, inference.CodeTimeout: 504, inference.CodeCanceled: 499, inference.CodeDraining: 503, inference.CodeNotCached: 504, inference.CodeInternal: 500,
	}
	for _, code := range inference.Codes() {
		t.Run(string(code), func(t *testing.T) {
			if want[code] == 0 || api.Status(code) != want[code] {
				t.Fatalf("status %d, want %d", api.Status(code), want[code])
			}
			e := inference.Errorf(code, "because")
			e.Param, e.Reason = "p", "why"
			r := newRig(t, nil, failing(e))
			if code == inference.CodeCanceled { // nobody is left to read an answer
				c := r.dial()
				c.send(post("/v1/chat/completions", chat))
				c.closed()
				return
			}
			a := r.ask(post("/v1/chat/completions", chat))
			a.refused(t, want[code], code)
			if !strings.Contains(a.body, `"message":"because"`) || !strings.Contains(a.body, `"param":"p"`) || a.Header.Get("X-Spillway-Reason") != "why" {
				t.Errorf("got %s, %v", a.body, a.Header)
			}
			a = r.ask(post("/v1/messages", chat))
			a.common(t, want[code])
			if !strings.HasPrefix(a.body, `{"type":"error","error":{"type":"`) || strings.Contains(a.body, `"type":""`) {
				t.Errorf("on messages: %s", a.body)
			}
			r.idle()
		})
	}
	if got := api.Status("unheard of"); got != 500 {
		t.Errorf("an unknown code: got %d, want 500", got)
	}
}

func TestRetryAdvice(t *testing.T) {
	for name, c := range map[string]struct {
		after           time.Duration
		noRetry         bool
		seconds, millis string
		should          string
	}{
		"unknown":      {0, false, "", "", ""},
		"a nanosecond": {1, false, "1", "1", ""},
		"half":         {500 * time.Millisecond, false, "1", "500", ""},
		"rounds up":    {1100 * time.Millisecond, false, "2", "1100", ""},
		"both round":   {1500*time.Millisecond + 1, false, "2", "1501", ""},
		"a minute":     {time.Minute, false, "60", "60000", ""},
		"too long":     {61 * time.Second, false, "61", "61000", "false"},
		"never":        {0, true, "", "", "false"},
	} {
		t.Run(name, func(t *testing.T) {
			e := inference.Errorf(inference.CodeOverloaded, "busy")
			e.RetryAfter, e.NoRetry = c.after, c.noRetry
			r := newRig(t, nil, failing(e))
			h := r.ask(post("/v1/chat/completions", chat)).Header
			if h.Get("Retry-After") != c.seconds || h.Get("Retry-After-Ms") != c.millis || h.Get("X-Should-Retry") != c.should {
				t.Errorf("got %q %q %q", h.Get("Retry-After"), h.Get("Retry-After-Ms"), h.Get("X-Should-Retry"))
			}
		})
	}
}

func TestARefusalSaysWhatIsKnown(t *testing.T) {
	e := inference.Errorf(inference.CodeOverloaded, "busy")
	e.RetryAfter, e.Ticket, e.Position, e.Predicted = 2*time.Second, "v1.abc", 17, 1234567*time.Microsecond
	for name, c := range map[string]struct {
		e    *inference.Error
		want map[string]string
	}{
		"all":  {e, map[string]string{"X-Retry-Ticket": "v1.abc", "X-Spillway-Queue-Position": "17", "X-Spillway-Predicted-Wait-Ms": "1235", "Retry-After-Ms": "2000"}},
		"none": {inference.Errorf(inference.CodeNoCapacity, "down"), map[string]string{"X-Retry-Ticket": "", "X-Spillway-Queue-Position": "", "X-Spillway-Predicted-Wait-Ms": "", "Retry-After": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil, failing(c.e))
			for request, body := range map[string]string{"common form": post("/v1/chat/completions", chat), "chunked body": chunked(chat, 10)} {
				a := r.ask(body)
				a.refused(t, 503, c.e.Code)
				for k, want := range c.want {
					if got := a.Header.Get(k); got != want {
						t.Errorf("%s: %s: got %q, want %q", request, k, got, want)
					}
				}
			}
		})
	}
}

func TestServerTimeOfARefusal(t *testing.T) {
	const busy = 30 * time.Millisecond
	r := newRig(t, nil, func(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
		timer := time.NewTimer(busy)
		defer timer.Stop()
		<-timer.C
		out.Fail(inference.Errorf(inference.CodeOverloaded, "busy"))
		return &inference.Record{Request: req}
	})
	for name, c := range map[string]struct {
		request string
		least   time.Duration
	}{
		"refused by the gateway": {post("/v1/chat/completions", chat), busy},
		"chunked body":           {chunked(chat, 10), busy},
		"refused by its body":    {post("/v1/chat/completions", "{"), 0},
		"refused by its head":    {post("/v1/unknown", "{}"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			a := r.ask(c.request)
			text := a.Header.Get("X-Spillway-Server-Ms")
			_, decimals, _ := strings.Cut(text, ".")
			ms, err := strconv.ParseFloat(text, 64)
			if err != nil || len(decimals) != 3 || ms < float64(c.least)/float64(time.Millisecond) || ms > 10_000 {
				t.Errorf("got %q, want milliseconds with three decimals, at least %v", text, c.least)
			}
		})
	}
	if h := newRig(t, nil, nil).ask(post("/v1/chat/completions", chat)).Header; h.Get("X-Spillway-Server-Ms") != "" {
		t.Error("an answer that is no refusal has it too")
	}
}

func TestHints(t *testing.T) {
	type hints struct {
		DegradeOK      bool
		Retry          int
		Ticket         string
		Wait, Patience time.Duration
	}
	r := newRig(t, nil, nil)
	for _, c := range []struct {
		fields []string
		body   string
		want   hints
	}{
		{nil, chat, hints{}},
		{[]string{"X-Spillway-Degrade: ok"}, chat, hints{DegradeOK: true}},
		{[]string{"X-Spillway-Degrade: yes"}, chat, hints{}},
		{[]string{"X-Stainless-Retry-Count: 2"}, chat, hints{Retry: 2}},
		{[]string{"x-stainless-retry-count: 100000"}, chat, hints{Retry: 100}},
		{[]string{"X-Stainless-Retry-Count: -1"}, chat, hints{}},
		{[]string{"X-Stainless-Retry-Count: 1", "X-Stainless-Retry-Count: 2"}, chat, hints{}},
		{[]string{"X-Retry-Ticket: v1.abc~"}, chat, hints{Ticket: "v1.abc~"}},
		{[]string{"X-Retry-Ticket: " + strings.Repeat("a", 256)}, chat, hints{Ticket: strings.Repeat("a", 256)}},
		{[]string{"X-Retry-Ticket: " + strings.Repeat("a", 257)}, chat, hints{}},
		{[]string{"X-Retry-Ticket: a b"}, chat, hints{}},
		{[]string{"X-Retry-Ticket: \u00e9"}, chat, hints{}},
		{[]string{"X-Request-Timeout: 5"}, chat, hints{Wait: 5 * time.Second}},
		{[]string{"X-Request-Timeout: 5"}, stream, hints{Wait: 5 * time.Second}},
		{[]string{"X-Request-Timeout: 500"}, stream, hints{Wait: time.Minute}},
		{[]string{"X-Stainless-Timeout: 600"}, chat, hints{Patience: 10 * time.Minute}},
		{[]string{"X-Stainless-Read-Timeout: 2.5", "X-Stainless-Timeout: 3"}, stream, hints{Patience: 2500 * time.Millisecond}},
		{[]string{"X-Stainless-Read-Timeout: NOT_GIVEN"}, chat, hints{}},
		{[]string{"X-Stainless-Timeout: 1e-30"}, chat, hints{}},
	} {
		if a := r.ask(post("/v1/chat/completions", c.body, c.fields...)); a.StatusCode != 200 {
			t.Errorf("%q: got %d", c.fields, a.StatusCode)
		}
		req := r.last()
		if got := (hints{req.DegradeOK, req.Retry, req.Ticket, req.Wait, req.Patience}); got != c.want {
			t.Errorf("%q: got %+v, want %+v", c.fields, got, c.want)
		}
	}
}

func TestTimeoutsOfSDKsOnlyShortenAnswersInOnePiece(t *testing.T) {
	r := newRig(t, nil, nil)
	for _, c := range []struct {
		fields []string
		body   string
		want   time.Duration
	}{
		{[]string{"X-Stainless-Timeout: 600"}, chat, time.Minute},
		{[]string{"X-Stainless-Timeout: 6"}, chat, 6 * time.Second},
		{[]string{"X-Stainless-Read-Timeout: 6"}, chat, 6 * time.Second},
		{[]string{"X-Stainless-Read-Timeout: 6", "X-Stainless-Timeout: 5", "X-Request-Timeout: 7"}, chat, 5 * time.Second},
		{[]string{"X-Stainless-Read-Timeout: 60", "X-Request-Timeout: 7"}, chat, 7 * time.Second},
		{[]string{"X-Stainless-Read-Timeout: 6"}, stream, time.Minute}, // it is the longest silence of a stream, not its end
	} {
		if a := r.ask(post("/v1/chat/completions", c.body, c.fields...)); a.StatusCode != 200 {
			t.Errorf("%q: got %d", c.fields, a.StatusCode)
		}
		if got := r.last().Deadline.Sub(r.last().Received); got != c.want {
			t.Errorf("%q: got %v, want %v", c.fields, got, c.want)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	r := newRig(t, nil, nil)
	seen := make(map[string]bool)
	for name, c := range map[string]struct {
		fields []string
		echo   bool
	}{
		"good":      {[]string{"X-Request-Id: abc-123_/:~"}, true},
		"longest":   {[]string{"X-Request-Id: " + strings.Repeat("a", 128)}, true},
		"too long":  {[]string{"X-Request-Id: " + strings.Repeat("a", 129)}, false},
		"space":     {[]string{"X-Request-Id: a b"}, false},
		"not ASCII": {[]string{"X-Request-Id: \u00e9"}, false},
		"two":       {[]string{"X-Request-Id: a", "X-Request-Id: b"}, false},
		"empty":     {[]string{"X-Request-Id:"}, false},
		"none":      {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, body := range []string{chat, "{"} {
				a := r.ask(post("/v1/chat/completions", body, c.fields...))
				got := a.Header.Values("X-Request-Id")
				if len(got) != 1 {
					t.Fatalf("got ids %q", got)
				}
				if c.echo != (len(c.fields) > 0 && "X-Request-Id: "+got[0] == c.fields[0]) {
					t.Errorf("got id %q", got[0])
				}
				if !c.echo && (len(got[0]) < 16 || seen[got[0]]) {
					t.Errorf("id %q is short or not unique", got[0])
				}
				seen[got[0]] = true
			}
		})
	}
}

func TestDeadlines(t *testing.T) {
	r := newRig(t, nil, nil)
	for field, want := range map[string]time.Duration{
		"X-Other: 1":                     time.Minute,
		"X-Spillway-Deadline-Ms: 1500":   1500 * time.Millisecond,
		"X-Request-Timeout: 2.5":         2500 * time.Millisecond,
		"X-Spillway-Deadline-Ms: 900000": time.Minute, // more than the gateway allows
		"X-Spillway-Deadline-Ms: -1":     time.Minute,
		"X-Spillway-Deadline-Ms: 0":      time.Minute,
		"X-Request-Timeout: NaN":         time.Minute,
		"X-Request-Timeout: 1e300":       time.Minute,
		"X-Request-Timeout: soon":        time.Minute,
	} {
		if a := r.ask(post("/v1/chat/completions", chat, field)); a.StatusCode != 200 {
			t.Errorf("%s: got %d", field, a.StatusCode)
		}
		if got := r.last().Deadline.Sub(r.last().Received); got != want {
			t.Errorf("%s: got %v, want %v", field, got, want)
		}
	}
}

func TestIdentityIsAskedBeforeTheBodyIsRead(t *testing.T) {
	r := newRig(t, nil, nil)
	r.identity = func(h http.Header) (inference.Caller, error) {
		if h.Get("Authorization") != "Bearer good" {
			e := inference.Errorf(inference.CodeUnauthorized, "who are you?")
			e.NoRetry = true
			return inference.Caller{}, e
		}
		return inference.Caller{Tenant: "acme", Class: inference.VIP}, nil
	}
	c := r.dial()
	c.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n") // and no body
	c.receive("POST").refused(t, 401, inference.CodeUnauthorized)
	c.Close()
	r.untouched()
	if a := r.ask(post("/v1/chat/completions", chat, "Authorization: Bearer good")); a.StatusCode != 200 {
		t.Errorf("got %d", a.StatusCode)
	}
	if req := r.last(); req.Tenant != "acme" || req.Class != inference.VIP {
		t.Errorf("got %q %v", req.Tenant, req.Class)
	}
	r.identity = func(http.Header) (inference.Caller, error) {
		return inference.Caller{}, errors.New("secret of the inside")
	}
	a := r.ask(post("/v1/chat/completions", chat))
	a.refused(t, 500, inference.CodeInternal)
	if strings.Contains(a.body, "secret") {
		t.Errorf("the cause was shown: %s", a.body)
	}
	r.idle()
}

func TestAnswersOfTheUpstreamPassThrough(t *testing.T) {
	body := "plain <text>"
	r := newRig(t, nil, func(_ context.Context, req *inference.Request, out api.Answer) *inference.Record {
		head := inference.Head{Status: 422, Length: int64(len(body)), Fields: []inference.HeaderField{
			{Name: "Content-Type", Value: "text/plain; charset=utf-8"}, {Name: "X-Ratelimit-Remaining", Value: "7"}, {Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"},
		}}
		_ = out.Head(&head)
		_ = out.Write([]byte(body), true)
		return &inference.Record{Request: req}
	})
	for _, field := range []string{"X-B: 1", "Connection: close"} {
		a := r.ask(post("/v1/chat/completions", chat, field))
		if a.StatusCode != 422 || a.body != body || a.Header.Get("X-Ratelimit-Remaining") != "7" || len(a.Header.Values("X-A")) != 2 ||
			a.Header.Get("Content-Length") != strconv.Itoa(len(body)) || a.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("got %d %q %v", a.StatusCode, a.body, a.Header)
		}
	}
}
