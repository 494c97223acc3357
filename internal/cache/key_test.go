package cache_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// ask is a request as the tables write it.
type ask struct {
	surface inference.Surface
	body    string
	tenant  string // "" is Anonymous
	model   string // upstream; "" is m
	query   string
	header  http.Header
	shared  bool
	keyed   string // the name of the tenant's key
	arm     inference.Arm
}

// request parses it.
func (a ask) request(t testing.TB) *inference.Request {
	t.Helper()
	f, err := wire.ScanRequest(a.surface, []byte(a.body))
	if err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
	req := &inference.Request{Surface: a.surface, Tenant: a.tenant, Key: a.keyed, Body: []byte(a.body), Fields: f, RawQuery: a.query, Header: a.header}
	if req.Tenant == "" {
		req.Tenant = inference.Anonymous
	}
	return req
}

// key is its key.
func (a ask) key(t testing.TB) (cache.Key, error) {
	t.Helper()
	model := a.model
	if model == "" {
		model = "m"
	}
	req := a.request(t)
	return cache.KeyOf(req, cache.ScopeOf(req, a.shared), a.arm, model, []string{"X-Persona"})
}

// base is the request that the tables change.
const base = `{"model":"m","temperature":0,"messages":[{"role":"user","content":"hi é"}]}`

// with is base with one more member in front.
func with(member string) string { return "{" + member + "," + base[1:] }

func TestRequestsThatShareAnAnswer(t *testing.T) {
	for name, c := range map[string]struct{ a, b ask }{
		"order and spaces": {ask{body: base}, ask{body: " {\n\"messages\" : [ {\"content\":\"hi é\",\"role\":\"user\"} ], \"temperature\":0,\t\"model\":\"m\" } "}},
		"escapes":          {ask{body: base}, ask{body: strings.ReplaceAll(strings.ReplaceAll(base, "é", `\u00e9`), "hi", `\u0068i`)}},
		"escaped names":    {ask{body: base}, ask{body: strings.Replace(base, `"role"`, `"r\u006fle"`, 1)}},
		"a stream":         {ask{body: base}, ask{body: with(`"stream":true`)}},
		"no stream":        {ask{body: base}, ask{body: with(`"stream":false`)}},
		"with usage":       {ask{body: base}, ask{body: with(`"stream":true,"stream_options":{"include_usage":true}`)}},
		"null options":     {ask{body: base}, ask{body: with(`"stream":true,"stream_options":null`)}},
		"empty options":    {ask{body: with(`"stream":true`)}, ask{body: with(`"stream":true,"stream_options":{}`)}},
		"user":             {ask{body: base}, ask{body: with(`"user":"u","safety_identifier":"s","prompt_cache_key":"k","metadata":{"a":1},"store":true`)}},
		"aliases":          {ask{body: base}, ask{body: strings.Replace(base, `"m"`, `"best"`, 1)}},
		"other fields":     {ask{body: base}, ask{body: base, header: http.Header{"User-Agent": {"x"}, "X-Request-Id": {"1"}}}},
		"sessions":         {ask{body: base, header: http.Header{"X-Session": {"1"}}}, ask{body: base, header: http.Header{"X-Session-Id": {"2"}}}},
		"names of a try":   {ask{body: base, header: http.Header{"Idempotency-Key": {"1"}}}, ask{body: base, header: http.Header{"Idempotency-Key": {"2"}}}},
		"two, in no order": {ask{body: base, header: http.Header{"X-A-Token": {"1"}, "X-B-Token": {"2"}, "X-C-Key": {"3"}}}, ask{body: base, header: http.Header{"X-C-Key": {"3"}, "X-B-Token": {"2"}, "X-A-Token": {"1"}}}},
		"own cookies":      {ask{body: base}, ask{body: base, header: http.Header{"Cookie": {"spillway-eu=1; spillway=2"}}}},
		"shared":           {ask{body: base, tenant: "a", shared: true}, ask{body: base, tenant: "b", shared: true}},
		"a tenant's keys":  {ask{body: base, tenant: "a", keyed: "k1", header: http.Header{"Authorization": {"1"}}}, ask{body: base, tenant: "a", keyed: "k2", header: http.Header{"Authorization": {"2"}}}},
		"embeddings, user": {ask{surface: inference.Embeddings, body: `{"model":"m","input":"x"}`}, ask{surface: inference.Embeddings, body: `{"model":"m","input":"x","user":"u"}`}},
		"messages, metadata": {ask{surface: inference.Messages, body: `{"model":"m","max_tokens":1,"messages":[]}`},
			ask{surface: inference.Messages, body: `{"model":"m","max_tokens":1,"messages":[],"metadata":{"user_id":"u"},"stream":true}`}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := c.a.key(t)
			b, err2 := c.b.key(t)
			if err != nil || err2 != nil || a != b {
				t.Errorf("got %v, %v and %v, %v", a, err, b, err2)
			}
		})
	}
}

func TestRequestsThatDoNot(t *testing.T) {
	for name, c := range map[string]struct{ a, b ask }{
		"a word":                               {ask{body: base}, ask{body: strings.Replace(base, "hi", "ho", 1)}},
		"numbers":                              {ask{body: with(`"seed":9007199254740992`)}, ask{body: with(`"seed":9007199254740993`)}},
		"as written":                           {ask{body: base}, ask{body: strings.Replace(base, ":0", ":0.0", 1)}},
		"a parameter":                          {ask{body: base}, ask{body: with(`"max_tokens":5`)}},
		"one not known":                        {ask{body: base}, ask{body: with(`"vendor":null`)}},
		"null":                                 {ask{body: with(`"stop":null`)}, ask{body: with(`"stop":"null"`)}},
		"further options":                      {ask{body: with(`"stream":true`)}, ask{body: with(`"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}`)}},
		"the order of a list":                  {ask{body: with(`"stop":["a","b"]`)}, ask{body: with(`"stop":["b","a"]`)}},
		"the model":                            {ask{body: base}, ask{body: base, model: "n"}},
		"the query":                            {ask{body: base}, ask{body: base, query: "api-version=2"}},
		"a beta":                               {ask{body: base}, ask{body: base, header: http.Header{"Anthropic-Beta": {"x"}}}},
		"an organisation":                      {ask{body: base, header: http.Header{"Openai-Organization": {"x"}}}, ask{body: base, header: http.Header{"Openai-Organization": {"y"}}}},
		"two values":                           {ask{body: base, header: http.Header{"Anthropic-Beta": {"a", "b"}}}, ask{body: base, header: http.Header{"Anthropic-Beta": {"ab"}}}},
		"a field that the configuration names": {ask{body: base}, ask{body: base, header: http.Header{"X-Persona": {"x"}}}},
		"tenants":                              {ask{body: base, tenant: "a"}, ask{body: base, tenant: "b"}},
		"shared and not":                       {ask{body: base, tenant: "a"}, ask{body: base, tenant: "a", shared: true}},
		"a tenant called shared":               {ask{body: base, tenant: "shared"}, ask{body: base, tenant: "a", shared: true}},
		"credentials":                          {ask{body: base, header: http.Header{"Authorization": {"1"}}}, ask{body: base, header: http.Header{"Authorization": {"2"}}}},
		"other credentials":                    {ask{body: base, header: http.Header{"Api-Key": {"1"}}}, ask{body: base, header: http.Header{"Api-Key": {"2"}}}},
		"arms":                                 {ask{body: base, arm: inference.Arm{Experiment: "e", Arm: "a"}}, ask{body: base, arm: inference.Arm{Experiment: "e", Arm: "b"}}},
		"an arm and none":                      {ask{body: base, arm: inference.Arm{Experiment: "e", Arm: "a"}}, ask{body: base}},
		"experiments":                          {ask{body: base, arm: inference.Arm{Experiment: "e", Arm: "a"}}, ask{body: base, arm: inference.Arm{Experiment: "ea", Arm: ""}}},
		"a key and none":                       {ask{body: base}, ask{body: base, header: http.Header{"X-Api-Key": {"1"}}}},
		"tokens in other fields":               {ask{body: base, header: http.Header{"X-Auth-Token": {"1"}}}, ask{body: base, header: http.Header{"X-Auth-Token": {"2"}}}},
		"a subscription and none":              {ask{body: base, header: http.Header{"Ocp-Apim-Subscription-Key": {"1"}}}, ask{body: base}},
		"a session's token":                    {ask{body: base, header: http.Header{"X-Session-Token": {"1"}}}, ask{body: base, header: http.Header{"X-Session-Token": {"2"}}}},
		"a token by its value":                 {ask{body: base, header: http.Header{"X-Client": {"Bearer 1"}}}, ask{body: base, header: http.Header{"X-Client": {"Bearer 2"}}}},
		"the same value in another field":      {ask{body: base, header: http.Header{"X-Auth-Token": {"1"}}}, ask{body: base, header: http.Header{"X-Token": {"1"}}}},
		"cookies":                              {ask{body: base, header: http.Header{"Cookie": {"session=1"}}}, ask{body: base, header: http.Header{"Cookie": {"session=2"}}}},
		"surfaces":                             {ask{surface: inference.Chat, body: base}, ask{surface: inference.Messages, body: base}},
		"one piece alone":                      {ask{body: with(`"n":2`)}, ask{body: with(`"n":2,"stream":true`)}},
		"responses repeat what they were asked": {ask{surface: inference.Responses, body: `{"model":"m","input":"x"}`},
			ask{surface: inference.Responses, body: `{"model":"m","input":"x","user":"u"}`}},
		"prompts": {ask{surface: inference.Completions, body: `{"model":"m","prompt":"a"}`}, ask{surface: inference.Completions, body: `{"model":"m","prompt":["a"]}`}},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := c.a.key(t)
			b, err2 := c.b.key(t)
			if err != nil || err2 != nil || a == b {
				t.Errorf("got %v, %v and %v, %v", a, err, b, err2)
			}
		})
	}
}

func TestBodiesWithoutAKey(t *testing.T) {
	for _, body := range []string{
		with(`"str\u0065am":true`), with(`"stream":true,"stream\u005foptions":{"include_usage":true}`),
		with(`"stream":true,"stream_options":{"include\u005fusage":true}`),
	} {
		if k, err := (ask{body: body}).key(t); err == nil {
			t.Errorf("%s has the key %v", body, k)
		}
	}
}

func TestKeysAsText(t *testing.T) {
	k, err := (ask{body: base}).key(t)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := cache.ParseKey(k.String()); err != nil || again != k || len(k.String()) != 64 {
		t.Errorf("got %v, %v", again, err)
	}
	for _, s := range []string{"", "5f", k.String()[1:], k.String() + "0", strings.Repeat("x", 64), strings.Repeat("é", 32)} {
		if _, err := cache.ParseKey(s); err == nil {
			t.Errorf("%q is a key", s)
		}
	}
}

// neutral are the members that the table of fields names, written down here
// again: the oracle knows nothing of the code.
var neutral = map[inference.Surface][]string{
	inference.Chat:        {"stream", "user", "user_id", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "store", "metadata", "request_id", "priority"},
	inference.Completions: {"stream", "user", "user_id", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "store", "metadata", "request_id", "priority"},
	inference.Embeddings:  {"user", "request_id", "priority"},
	inference.Messages:    {"stream", "metadata"},
	inference.Responses:   {"stream"},
}

// meaning is what a body asks for, as another reader of JSON understands it, numbers
// as they are written.
func meaning(t testing.TB, surface inference.Surface, body string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(body))
	d.UseNumber()
	var v map[string]any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("encoding/json does not read %q: %v", body, err)
	}
	delete(v, "model")
	for _, name := range neutral[surface] {
		delete(v, name)
	}
	if o, ok := v["stream_options"].(map[string]any); ok {
		if delete(o, "include_usage"); len(o) == 0 {
			delete(v, "stream_options")
		}
	} else {
		delete(v, "stream_options")
	}
	return v
}

// FuzzKey proves that two requests that may differ in their answer never share a
// key: of those that do, another reader of JSON finds nothing but neutral members
// different.
func FuzzKey(f *testing.F) {
	f.Add(byte(0), byte(0), base, with(`"stream":true`), "", "")
	f.Add(byte(0), byte(0), with(`"seed":1e2`), with(`"seed":100`), "a", "b")
	f.Add(byte(1), byte(1), `{"model":"m","prompt":"\ud83d\ude00"}`, `{"model":"m","prompt":"😀"}`, "x\x00", "x")
	f.Add(byte(0), byte(3), base, base, "", "")
	f.Add(byte(4), byte(4), `{"model":"m","input":"a","user":"u"}`, `{"model":"m","input":"a"}`, "a=1", "a=1")
	f.Add(byte(0), byte(0), with(`"stream":true,"stream_options":{"include_usage":true}`), base, "", "")
	f.Fuzz(func(t *testing.T, s1, s2 byte, one, two, beta1, beta2 string) {
		all := inference.Surfaces()
		parse := func(s byte, body, beta string) (*inference.Request, cache.Key, bool) {
			surface := all[int(s)%len(all)]
			fields, err := wire.ScanRequest(surface, []byte(body))
			if err != nil {
				return nil, cache.Key{}, false
			}
			req := &inference.Request{
				Surface: surface, Tenant: "t", Body: []byte(body), Fields: fields, RawQuery: beta,
				Header: http.Header{"Anthropic-Beta": strings.Split(beta, "|"), "X-Persona": {beta}},
			}
			key, err := cache.KeyOf(req, "tenant:t", inference.Arm{}, "m", []string{"X-Persona"})
			again, err2 := cache.KeyOf(req, "tenant:t", inference.Arm{}, "m", []string{"X-Persona"})
			if (err == nil) != (err2 == nil) || key != again {
				t.Fatalf("%q has the keys %v and %v", body, key, again)
			}
			return req, key, err == nil
		}
		a, k1, ok1 := parse(s1, one, beta1)
		b, k2, ok2 := parse(s2, two, beta2)
		if !ok1 || !ok2 {
			return
		}
		m1, m2 := meaning(t, a.Surface, one), meaning(t, b.Surface, two)
		same := a.Surface == b.Surface && beta1 == beta2 && reflect.DeepEqual(m1, m2)
		switch {
		case k1 == k2 && !same:
			t.Fatalf("two requests share the key %v:\n%v %q %q\n%v %q %q", k1, a.Surface, one, beta1, b.Surface, two, beta2)
		case k1 != k2 && same && a.Assemble == b.Assemble && a.Stream == b.Stream:
			t.Fatalf("requests that mean the same have two keys:\n%q\n%q", one, two)
		}
	})
}

// value makes a JSON value.
func value(r *rand.Rand, depth int) any {
	switch n := r.IntN(8); {
	case n == 0 && depth > 0:
		o := map[string]any{}
		for range r.IntN(4) {
			o[fmt.Sprintf("k%d", r.IntN(6))] = value(r, depth-1)
		}
		return o
	case n == 1 && depth > 0:
		l := []any{}
		for range r.IntN(4) {
			l = append(l, value(r, depth-1))
		}
		return l
	case n == 2:
		return r.IntN(2) == 0
	case n == 3:
		return nil
	case n == 4:
		return json.Number(fmt.Sprint(r.Uint64()))
	case n == 5:
		return json.Number(fmt.Sprintf("%g", r.NormFloat64()))
	}
	return fmt.Sprintf("text %d \"é\n", r.IntN(50))
}

// parameters are members that a request may have.
var parameters = []string{"temperature_", "top_p", "stop", "tools_", "response_format", "logit_bias", "vendor", "x", "é", "reasoning_effort"}

// bodyOf is a body with its members in a random order.
func bodyOf(t *testing.T, r *rand.Rand, o map[string]any) string {
	t.Helper()
	names := slices.Sorted(maps.Keys(o))
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	var b bytes.Buffer
	b.WriteByte('{')
	for i, n := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		k, _ := json.Marshal(n)
		v, err := json.Marshal(o[n])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s%*s:%s", k, r.IntN(3), "", v)
	}
	return b.String() + "}"
}

// TestEachParameterIsPartOfTheKey: of random requests one parameter is changed,
// added or left out at a time.
func TestEachParameterIsPartOfTheKey(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 3000 {
		o := map[string]any{"model": "m", "messages": []any{map[string]any{"role": "user", "content": fmt.Sprint(r.IntN(100))}}}
		for range r.IntN(5) {
			o[parameters[r.IntN(len(parameters))]] = value(r, 3)
		}
		key, err := ask{body: bodyOf(t, r, o)}.key(t)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := (ask{body: bodyOf(t, r, o)}).key(t); err != nil || again != key {
			t.Fatalf("round %d: the order of members changes the key: %v", round, err)
		}
		name := parameters[r.IntN(len(parameters))]
		old, there := o[name]
		v := value(r, 3)
		if there && r.IntN(2) == 0 {
			delete(o, name)
		} else if o[name] = v; there && reflect.DeepEqual(old, v) {
			continue
		}
		body := bodyOf(t, r, o)
		if other, err := (ask{body: body}).key(t); err != nil || other == key {
			t.Fatalf("round %d: %s was %v, is %v, and the key stays: %s %v", round, name, old, o[name], body, err)
		}
	}
}

func BenchmarkKeyOf(b *testing.B) {
	for name, size := range map[string]int{"200B": 200, "4KiB": 4 << 10, "128KiB": 128 << 10} {
		b.Run(name, func(b *testing.B) {
			var body strings.Builder
			body.WriteString(`{"model":"m","temperature":0,"messages":[`)
			for i := 0; body.Len() < size-100; i++ {
				if i > 0 {
					body.WriteByte(',')
				}
				fmt.Fprintf(&body, `{"role":"user","content":"%s"}`, strings.Repeat("some words of a prompt. ", min(20, max(1, (size-body.Len()-100)/24))))
			}
			body.WriteString(`]}`)
			req := ask{body: body.String(), tenant: "t"}.request(b)
			req.Header = http.Header{"Authorization": {"Bearer x"}, "Content-Type": {"application/json"}, "User-Agent": {"x"}}
			b.SetBytes(int64(len(req.Body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := cache.KeyOf(req, "tenant:t", inference.Arm{}, "m", nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestClientsWithoutTenantsShareAScope(t *testing.T) {
	req := &inference.Request{Tenant: inference.Anonymous, Header: http.Header{"Authorization": {"Bearer a"}}}
	if got := cache.ScopeOf(req, false); got != cache.TenantScope(inference.Anonymous) {
		t.Errorf("got %q: an operator could not purge it", got)
	}
}
