package rule_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/rule"
)

// friday is a Friday, a quarter past three in the afternoon.
var friday = time.Date(2026, 11, 20, 15, 15, 0, 0, time.UTC)

// map1 is a locator of one address.
type map1 map[netip.Addr]route.Place

// Locate implements route.Locator.
func (m map1) Locate(ip netip.Addr) route.Place { return m[ip] }

// munich is the one address.
var munich = netip.MustParseAddr("192.0.2.1")

// places knows it.
var places = map1{munich: {Continent: "EU", Country: "DE", Region: "BY", City: "Munich", ASN: 3320, Organization: "DTAG"}}

// request is what the tables ask about.
func request() *inference.Request {
	return &inference.Request{
		Surface: inference.Chat, Tenant: "acme", Key: "k1", Class: inference.VIP, ClientIP: munich, Retry: 1, Body: make([]byte, 500),
		Header: http.Header{"X-Team": {"search"}},
		Fields: inference.Fields{Model: "llama", Stream: true, MaxTokens: 100, Images: 2, Messages: 3, PromptBytes: 400, User: "u7"},
	}
}

// past is a tenant with a past.
func past() *rule.Behaviour {
	b := rule.NewBehaviour(10)
	for i := range 4 {
		rec := &inference.Record{Request: request(), Duration: time.Second, Complete: true, TTFT: 1, Attempts: make([]inference.Attempt, 1), Usage: inference.Usage{PromptTokens: 100, CompletionTokens: 50}}
		rec.Request.Received = friday.Add(-time.Second)
		if i == 0 {
			rec.Code, rec.Usage, rec.TTFT, rec.Complete = inference.CodeUpstreamError, inference.Usage{}, 0, false
		}
		b.Observe(rec)
	}
	return b
}

// set compiles rules.
func set(t testing.TB, parts rule.Parts, rules ...rule.Rule) *rule.Set {
	t.Helper()
	s, err := rule.New(rules, parts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// there is an action that can be told from others.
func there(region string) route.Action { return route.Action{Region: region} }

func TestExpressions(t *testing.T) {
	parts := rule.Parts{Places: places, Behaviour: past()}
	for _, when := range []string{
		``, `true`, `model == "llama"`, `path == "/v1/chat/completions" and surface == "chat"`, `stream`, `prompt_tokens == 2100 and max_tokens == 100`,
		`images > 0 && messages == 3`, `body_bytes == 500`, `user == "u7"`, `tenant in ["acme", "beta"]`, `key == "k1"`, `class == "vip"`, `ip == "192.0.2.1"`,
		`retry > 0`, `hour >= 9 and hour < 17 and minute == 15`, `weekday not in ["sat", "sun"]`, `geo.country == "DE" and geo.region == "BY"`,
		`geo.city == "Munich" && geo.continent == "EU"`, `geo.asn == 3320 or geo.organization == ""`, `header("x-team") == "search"`, `header("X-None") == ""`,
		`hasPrefix(model, "ll")`, `model matches "^l+ama$"`, `lower(header("X-Team")) == "search"`, `len(user) == 2`,
		`past.requests > 3.9 and past.requests < 4.1`, `past.output_tokens == 50`, `past.error_share == 0.25`, `past.spend > 449 and past.spend <= 450`,
		`not (class == "batch")`, `prompt_tokens + max_tokens > 2000`, `model contains "lam"`, `model startsWith "l" ? true : false`,
	} {
		s := set(t, parts, rule.Rule{Name: "r", When: when, Then: there("eu")})
		d := s.Steer(friday, request())
		if d.Rule != "r" || d.Action == nil || d.Action.Region != "eu" {
			t.Errorf("%s: got %+v", when, d)
		}
		if s.Failed() != 0 {
			t.Errorf("%s failed", when)
		}
		empty := s.Steer(friday, &inference.Request{Body: []byte(" "), Fields: inference.Fields{PromptBytes: 1}})
		if empty.Action != nil && when != `` && when != `true` && !strings.Contains(when, "not") && !strings.Contains(when, `""`) && !strings.Contains(when, "hour") && !strings.Contains(when, "chat") {
			t.Errorf("%s: an empty request got %+v", when, empty)
		}
	}
}

func TestMistakes(t *testing.T) {
	ok := there("eu")
	for name, c := range map[string]struct {
		rules []rule.Rule
		want  []string
	}{
		"unknown name":      {[]rule.Rule{{Name: "a", When: `modell == "x"`, Then: ok}}, []string{"rules[0].when: unknown name modell", "known are model, path"}},
		"unknown field":     {[]rule.Rule{{Name: "a", When: `geo.land == "x"`, Then: ok}}, []string{"rules[0].when: type route.Place has no field land", "geo.country"}},
		"type":              {[]rule.Rule{{Name: "a", When: `model > 5`, Then: ok}}, []string{"rules[0].when: invalid operation: >"}},
		"no truth":          {[]rule.Rule{{Name: "a", When: `prompt_tokens`, Then: ok}}, []string{"rules[0].when: expected bool, but got int"}},
		"syntax":            {[]rule.Rule{{Name: "a", When: `model ==`, Then: ok}}, []string{"rules[0].when: unexpected token EOF"}},
		"false":             {[]rule.Rule{{Name: "a", When: `1 > 2`, Then: ok}}, []string{"rules[0].when: is never true"}},
		"false by a call":   {[]rule.Rule{{Name: "a", When: `len("a") == 2 or ["a"][0] == "b"`, Then: ok}}, []string{"rules[0].when: is never true"}},
		"behind a call":     {[]rule.Rule{{Name: "a", When: `min(1, 2) == 1`, Then: ok}, {Name: "b", When: `stream`, Then: there("us")}}, []string{`rules[1].when: never decides`}},
		"a client's regexp": {[]rule.Rule{{Name: "a", When: `user matches header("X-Pattern")`, Then: ok}}, []string{"rules[0].when: the pattern of matches must be a text"}},
		"the whole at once": {[]rule.Rule{{Name: "a", When: `$env.geo.country == "DE"`, Then: ok}}, []string{"rules[0].when: $env is not known: write the name alone"}},
		"false in an and":   {[]rule.Rule{{Name: "a", When: `stream and not true`, Then: ok}}, []string{"rules[0].when: is never true"}},
		"two values":        {[]rule.Rule{{Name: "a", When: `tenant == "a" and "b" == tenant`, Then: ok}}, []string{"rules[0].when: is never true"}},
		"no such class":     {[]rule.Rule{{Name: "a", When: `class == "premium"`, Then: ok}}, []string{`rules[0].when: class is never "premium"; it is one of vip, normal, batch, idle`}},
		"no such surface":   {[]rule.Rule{{Name: "a", When: `surface in ["chat", "smell"]`, Then: ok}}, []string{`surface is never "smell"`}},
		"a loop":            {[]rule.Rule{{Name: "a", When: `all([1], # > 0)`, Then: ok}}, []string{"rules[0].when: "}},
		"a range":           {[]rule.Rule{{Name: "a", When: `prompt_tokens in 1..1000000000`, Then: ok}}, []string{"rules[0].when: ranges are not allowed"}},
		"a variable":        {[]rule.Rule{{Name: "a", When: `let a = model + model; let b = a + a; len(b) > 0`, Then: ok}}, []string{"rules[0].when: let is not allowed"}},
		"two expressions":   {[]rule.Rule{{Name: "a", When: `stream; false`, Then: ok}}, []string{"rules[0].when: a second expression after ; is not allowed"}},
		"a function":        {[]rule.Rule{{Name: "a", When: `repeat("x", 9) == ""`, Then: ok}}, []string{"rules[0].when: unknown name repeat"}},
		"too long":          {[]rule.Rule{{Name: "a", When: strings.Repeat("stream or ", 500) + "stream", Then: ok}}, []string{"rules[0].when: longer than"}},
		"too many nodes":    {[]rule.Rule{{Name: "a", When: strings.Repeat("stream or ", 200) + "stream", Then: ok}}, []string{"rules[0].when: "}},
		"no name":           {[]rule.Rule{{When: `stream`, Then: ok}}, []string{"rules[0].name: is missing"}},
		"a comma":           {[]rule.Rule{{Name: "a,b", When: `stream`, Then: ok}}, []string{`rules[0].name: "a,b" has a comma`}},
		"two of one name":   {[]rule.Rule{{Name: "a", When: `stream`, Then: ok}, {Name: "a", When: `not stream`, Then: ok}}, []string{`rules[1].name: "a" is the name of rules[0] already`}},
		"nothing to do":     {[]rule.Rule{{Name: "a", When: `stream`}}, []string{"rules[0].then: does nothing"}},
		"a class raised":    {[]rule.Rule{{Name: "a", Then: route.Action{Class: "vip"}}}, []string{`rules[0].then.class: want normal or batch, got "vip"`}},
		"a field":           {[]rule.Rule{{Name: "a", Then: route.Action{Headers: map[string]string{"authorization": "x", "a b": "x", "X-Ok": "x\n"}}}}, []string{"headers.authorization: this field cannot be changed", "headers.a b: not a name", "headers.X-Ok: the value has control characters"}},
		"a field twice":     {[]rule.Rule{{Name: "a", Then: route.Action{Headers: map[string]string{"x-tier": "one", "X-Tier": "two"}}}}, []string{"rules[0].then.headers.x-tier: this is the field X-Tier again"}},
		"shadowed":          {[]rule.Rule{{Name: "a", When: `model == "x"`, Then: ok}, {Name: "b", When: ` model=="x" `, Then: there("us")}}, []string{`rules[1].when: never decides: rule "a" (rules[0]) is true for every request that this one is for`}},
		"behind all":        {[]rule.Rule{{Name: "a", Then: ok}, {Name: "b", When: `stream`, Then: there("us")}}, []string{`rules[1].when: never decides: rule "a" (rules[0])`}},
		"behind the truth":  {[]rule.Rule{{Name: "a", When: `1 < 2 or stream`, Then: ok}, {Name: "b", When: `stream`, Then: there("us")}}, []string{`rules[1].when: never decides`}},
		"strict about what": {[]rule.Rule{{Name: "a", Then: route.Action{Strict: true}}}, []string{"rules[0].then.strict: needs region or pools"}},
		"a weight":          {[]rule.Rule{{Name: "a", Then: route.Action{Pools: map[string]int{"gpu": 0}}}}, []string{"rules[0].then.pools.gpu: a pool needs a name and a weight of 1 to 1000000, got 0"}},
		"a sum of weights":  {[]rule.Rule{{Name: "a", Then: route.Action{Pools: map[string]int{"gpu": math.MaxInt, "us/cpu": math.MaxInt}}}}, []string{"rules[0].then.pools.gpu: a pool needs", "rules[0].then.pools.us/cpu: a pool needs a name and a weight of 1 to 1000000, got 9223372036854775807"}},
		"all at once":       {[]rule.Rule{{When: `x`}, {Name: "b", When: `1 > 2`, Then: ok}}, []string{"rules[0].name", "rules[0].then", "rules[0].when", "rules[1].when"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rule.New(c.rules, rule.Parts{})
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
		})
	}
}

// TestRulesThatNeverDecide are refused, each with a word on why.
func TestRulesThatNeverDecide(t *testing.T) {
	for when, want := range map[string]string{
		`geo.country == "Germany"`:       `geo.country is never "Germany"; it is two capital letters, as DE`,
		`geo["country"] in ["DE", "fr"]`: `geo.country is never "fr"`,
		`geo.continent != "Europe"`:      `geo.continent is never "Europe"; it is one of AF, `,
		`path == "/v1/chat"`:             `path is never "/v1/chat"; it is one of /v1/chat/completions, `,
		`"premium" == class`:             `class is never "premium"`,
		`ip == "10.0.0.0/8"`:             `ip is never "10.0.0.0/8"; it is one address`,
		`ip == "2001:DB8::1"`:            `ip is never "2001:DB8::1"`,
		`hour == 24`:                     `hour is never 24; it is 0 to 23`,
		`minute in [0, 60]`:              `minute is never 60; it is 0 to 59`,
		`images == -1`:                   `images is never -1; it is 0 or more`,
		`model == nil`:                   `nothing is nil`,
		`header("host") == "a"`:          `the host that a client names is not known`,
		`hour >= 22 and hour < 6`:        `is never true`,
		`hour > 5 and 6 > hour`:          `is never true`,
		`hour > 23`:                      `is never true`,
		`images < 0`:                     `is never true`,
		`prompt_tokens > 5000 and stream and prompt_tokens < 10`: `is never true`,
		`past.requests > 5 and past.requests < 5`:                `is never true`,
		`stream && not stream`:                                   `is never true`,
		`model != "a" and !stream and model == "a"`:              `is never true`,
		`class == "vip" and stream and class == "batch"`:         `is never true`,
		`class == "vip" and (stream and class == "batch")`:       `is never true`,
		`model in ["a", "b"] and model in ["c"]`:                 `is never true`,
		`model in []`:                                            `is never true`,
		`images > 1 ? false : hour > 23`:                         `is never true`,
	} {
		if c, err := rule.Compile(when); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, %v, want %s", when, c, err, want)
		}
	}
	for first, again := range map[string]string{
		`stream && images > 0`: `stream and images > 0`, `!stream`: `not stream`, `"batch" == class`: `class == "batch"`,
		`stream || images > 0`: `stream or 0 < images`, `model != "a"`: `not (model == "a")`, `100 >= max_tokens`: `max_tokens <= 100`,
	} {
		_, err := rule.New([]rule.Rule{{Name: "a", When: first, Then: there("eu")}, {Name: "b", When: again, Then: there("us")}}, rule.Parts{})
		if err == nil || !strings.Contains(err.Error(), "rules[1].when: never decides") {
			t.Errorf("%s behind %s: got %v", again, first, err)
		}
	}
}

// TestRulesThatCanDecide look like some that never do.
func TestRulesThatCanDecide(t *testing.T) {
	for _, when := range []string{
		`hour >= 22 or hour < 6`, `1 < hour < 5`, `hour > 4 and hour < 6`, `past.requests > 5 and past.requests < 6`, `geo.country == "" or geo.continent == ""`,
		`ip == "" or ip == "2001:db8::1"`, `class == "vip" or class == "batch"`, `not (stream and images > 0) and stream`, `model in ["a", "b"] and model in ["b", "c"]`,
		`model == "a" and user == "b"`, `model in ["a", user] and model == "c"`, `stream ? images > 0 : hour > 5`, `header("X-Host") == "a"`, `minute in [0, 59] and minute > 5`,
	} {
		if c, err := rule.Compile(when); err != nil || c == nil {
			t.Errorf("%s: got %v, %v", when, c, err)
		}
	}
}

// TestWhatIsKnownWithoutARequest agrees with what requests find: an expression that is
// refused is true of none, and one that is taken for always true is true of all.
func TestWhatIsKnownWithoutARequest(t *testing.T) {
	parts := []string{`stream`, `images > 1`, `images <= 1`, `1 == images`, `images != 2`, `images in [0, 2]`, `hour < 6`, `22 <= hour`, `hour > 23`, `class == "vip"`, `class in ["vip", "batch"]`, `class != "batch"`, `true`}
	dice := rand.New(rand.NewPCG(1, 2))
	var random func(depth int) string
	random = func(depth int) string {
		if depth == 0 {
			return parts[dice.IntN(len(parts))]
		}
		a, b := random(depth-1), random(depth-1)
		return []string{"not (" + a + ")", "(" + a + ") and (" + b + ")", "(" + a + ") && " + b, "(" + a + ") or (" + b + ")", "stream ? (" + a + ") : (" + b + ")"}[dice.IntN(5)]
	}
	var requests []*inference.Request
	for i := range 24 {
		requests = append(requests, &inference.Request{Class: []inference.Class{inference.VIP, inference.Normal, inference.Batch}[i%3], Body: []byte("{}"), Fields: inference.Fields{Stream: i%2 == 0, Images: i / 6}})
	}
	s := set(t, rule.Parts{})
	known := 0
	for range 2000 {
		when := random(dice.IntN(4))
		c, err := rule.Compile(when)
		if c != nil {
			continue
		}
		known++
		more, want := ` or user == "none"`, false // lets it compile, and changes nothing
		if err == nil {
			more, want = ` and user == ""`, true
		}
		asked, err := rule.Compile("(" + when + ")" + more)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		for _, hour := range []int{0, 5, 6, 22, 23} {
			for _, req := range requests {
				if got := s.Match(asked, friday.Add(time.Duration(hour-15)*time.Hour), req); got != want {
					t.Fatalf("%s is taken for always %t, and is %t at %d of %+v", when, want, got, hour, req)
				}
			}
		}
	}
	if known < 100 {
		t.Errorf("something is known of %d expressions alone", known)
	}
}

func TestTheFirstRuleDecides(t *testing.T) {
	s := set(t, rule.Parts{},
		rule.Rule{Name: "none", When: `model == "x"`, Then: there("none")},
		rule.Rule{Name: "mark", When: `stream`, Then: route.Action{Headers: map[string]string{"A": "1", "B": "1"}, Class: "normal"}, Continue: true},
		rule.Rule{Name: "mark again", When: `stream`, Then: route.Action{Headers: map[string]string{"B": "2", "C": "2"}, Class: "batch", Model: "small"}, Continue: true},
		rule.Rule{Name: "go", When: `tenant == "acme"`, Then: route.Action{Pools: map[string]int{"gpu": 1}, Strict: true, Model: "large"}},
		rule.Rule{Name: "late", When: `class == "vip"`, Then: there("late")},
	)
	d := s.Steer(friday, request())
	want := route.Decision{
		Rule: "mark,mark again,go", Action: &route.Action{Headers: map[string]string{"A": "1", "B": "1"}, Class: "normal"},
		More: []*route.Action{
			{Headers: map[string]string{"B": "2", "C": "2"}, Class: "batch", Model: "small"},
			{Pools: map[string]int{"gpu": 1}, Strict: true, Model: "large"},
		},
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	again := s.Steer(friday, request())
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("the second time (-want +got):\n%s", diff)
	}
	if d := set(t, rule.Parts{}).Steer(friday, request()); d.Action != nil || d.Rule != "" {
		t.Errorf("no rules: got %+v", d)
	}
}

func TestDecisionsAreCounted(t *testing.T) {
	counts := make(map[string]*atomic.Int64)
	parts := rule.Parts{Count: func(name string) *atomic.Int64 {
		counts[name] = new(atomic.Int64)
		return counts[name]
	}}
	s := set(t, parts, rule.Rule{Name: "none", When: `model == "x"`, Then: there("eu")},
		rule.Rule{Name: "mark", When: `stream`, Then: there("eu"), Continue: true}, rule.Rule{Name: "go", Then: there("us")})
	s.Steer(friday, request())
	s.Steer(friday, &inference.Request{Body: []byte("{}")})
	if d := s.Preview(friday, request()); d.Rule != "mark,go" {
		t.Errorf("a preview: got %+v", d)
	}
	for name, want := range map[string]int64{"none": 0, "mark": 1, "go": 2} {
		if got := counts[name].Load(); got != want {
			t.Errorf("%s has decided %d times, want %d", name, got, want)
		}
	}
}

func TestTheDefaultRegion(t *testing.T) {
	s := set(t, rule.Parts{Places: places, DefaultRegion: "us"}, rule.Rule{Name: "r", When: `tenant == "beta"`, Then: there("eu")})
	lost := request()
	lost.ClientIP = netip.MustParseAddr("198.51.100.1")
	if d := s.Steer(friday, lost); d.Rule != "geo.default_region" || d.Action.Region != "us" {
		t.Errorf("without a place: got %+v", d)
	}
	if d := s.Steer(friday, request()); d.Action != nil {
		t.Errorf("with a place: got %+v", d)
	}
	lost.Tenant = "beta"
	if d := s.Steer(friday, lost); d.Rule != "r" {
		t.Errorf("a rule comes first: got %+v", d)
	}
}

// TestTheDefaultRegionBehindRules: only rules that say where keep it away, and it counts
// less than those that do not.
func TestTheDefaultRegionBehindRules(t *testing.T) {
	marks := route.Action{Headers: map[string]string{"X-A": "b"}}
	for name, c := range map[string]struct {
		then route.Action
		more bool // continue
		from route.Place
		want string
	}{
		"a mark":               {marks, true, route.Place{}, "r,geo.default_region"},
		"a class that decides": {route.Action{Class: "batch"}, false, route.Place{}, "r,geo.default_region"},
		"a region":             {there("eu"), true, route.Place{}, "r"},
		"pools":                {route.Action{Pools: map[string]int{"gpu": 1}}, true, route.Place{}, "r"},
		"a country":            {marks, true, route.Place{Continent: "EU", Country: "DE"}, "r"},
		"a continent alone":    {marks, true, route.Place{Continent: "EU"}, "r"},
		"a network alone":      {marks, true, route.Place{ASN: 3320, Organization: "DTAG"}, "r,geo.default_region"},
	} {
		s := set(t, rule.Parts{Places: map1{munich: c.from}, DefaultRegion: "us"}, rule.Rule{Name: "r", Then: c.then, Continue: c.more})
		d := s.Steer(friday, request())
		if d.Rule != c.want || !cmp.Equal(*d.Action, c.then) {
			t.Errorf("%s: got %+v, want %s", name, d, c.want)
		}
		if len(d.More) > 0 && d.More[0].Region != "us" {
			t.Errorf("%s: got %+v behind it", name, d.More[0])
		}
	}
	if d := set(t, rule.Parts{Places: map1{munich: {Continent: "EU"}}, DefaultRegion: "us"}).Steer(friday, request()); d.Action != nil {
		t.Errorf("a continent is a place: got %+v", d)
	}
}

func TestAFailureAtRunTimeIsNotTrue(t *testing.T) {
	s := set(t, rule.Parts{}, rule.Rule{Name: "r", When: `int(user) > 5`, Then: there("eu")}, rule.Rule{Name: "else", When: `stream`, Then: there("us")})
	if d := s.Steer(friday, request()); d.Rule != "else" || s.Failed() != 1 {
		t.Errorf("got %+v, %d failed", d, s.Failed())
	}
	if d := s.Preview(friday, request()); d.Rule != "else" || s.Failed() != 1 {
		t.Errorf("a preview: got %+v, %d failed", d, s.Failed())
	}
	number := request()
	number.User = "6"
	if d := s.Steer(friday, number); d.Rule != "r" || s.Failed() != 1 {
		t.Errorf("got %+v, %d failed", d, s.Failed())
	}
}

func TestNothingOfARequestStays(t *testing.T) {
	s := set(t, rule.Parts{Places: places}, rule.Rule{Name: "r", When: `geo.country == "DE" or user == "u7" or header("X-Team") != "" or ip != ""`, Then: there("eu")})
	if d := s.Steer(friday, request()); d.Rule != "r" {
		t.Fatalf("got %+v", d)
	}
	if d := s.Steer(friday, &inference.Request{Body: []byte("{}")}); d.Action != nil {
		t.Errorf("the next request is taken for the one before: %+v", d)
	}
}

// TestLongTexts: what clients choose is seen up to a bound, which is what a pattern may
// cost.
func TestLongTexts(t *testing.T) {
	req, long := request(), strings.Repeat("x", 1<<20)
	req.Model, req.User = long, long
	req.Header.Set("X-Team", long)
	s := set(t, rule.Parts{}, rule.Rule{Name: "r", When: `len(model) == 4096 and len(user) == 4096 and len(header("X-Team")) == 4096`, Then: there("eu")})
	if d := s.Steer(friday, req); d.Rule != "r" {
		t.Errorf("got %+v", d)
	}
}

func TestConcurrentRequests(t *testing.T) {
	s := set(t, rule.Parts{Places: places, Behaviour: past()}, rule.Rule{Name: "r", When: `user == header("X-User") and past.requests > 0 and geo.country == "DE"`, Then: there("eu")})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				req := request()
				req.User = fmt.Sprint(g, i)
				req.Header = http.Header{"X-User": {req.User}}
				if d := s.Steer(friday, req); d.Rule != "r" {
					t.Errorf("got %+v", d)
				}
			}
		})
	}
	wg.Wait()
}

func TestConditions(t *testing.T) {
	s := set(t, rule.Parts{Places: places})
	c, err := rule.Compile(`geo.country == "DE"`)
	if err != nil || c.String() != `geo.country == "DE"` {
		t.Fatalf("got %v, %v", c, err)
	}
	if !s.Match(c, friday, request()) || s.Match(c, friday, &inference.Request{Body: []byte("{}")}) {
		t.Error("the condition does not tell requests apart")
	}
	if always, err := rule.Compile(" "); err != nil || always != nil || !s.Match(always, friday, request()) {
		t.Errorf("an empty one: got %v, %v", always, err)
	}
	if _, err := rule.Compile("nope"); err == nil {
		t.Error("an unknown name is no error")
	}
}

func TestThePastFades(t *testing.T) {
	b := past()
	now := b.Of(friday, "acme")
	later := b.Of(friday.Add(time.Hour), "acme")
	if r := later.Requests / now.Requests; r < 0.36 || r > 0.38 {
		t.Errorf("after an hour %.3f of the requests count, want 1/e", r)
	}
	if r := later.Spend / now.Spend; r < 0.95 || r > 0.97 {
		t.Errorf("after an hour %.3f of the spend counts, want exp(-1/24)", r)
	}
	if later.ErrorShare != now.ErrorShare || later.OutputTokens != now.OutputTokens {
		t.Errorf("shares change by fading alone: %+v, %+v", now, later)
	}
	if got := b.Of(friday, "nobody"); got != (rule.Past{}) {
		t.Errorf("a tenant without a past: got %+v", got)
	}
	background := &inference.Record{Request: &inference.Request{Class: inference.Idle, Tenant: "acme", Received: friday}}
	shadow := &inference.Record{Request: &inference.Request{Tenant: "acme", Received: friday}, Shadow: true}
	before := b.Of(friday.Add(time.Hour), "acme")
	b.Observe(background)
	b.Observe(shadow)
	if got := b.Of(friday.Add(time.Hour), "acme"); got != before {
		t.Errorf("what Spillway does by itself counts: %+v, %+v", before, got)
	}
}

func TestThePastOfFewTenantsIsKept(t *testing.T) {
	b := rule.NewBehaviour(3)
	for i := range 100 {
		for _, name := range []string{"often", fmt.Sprint("once", i)} {
			b.Observe(&inference.Record{Request: &inference.Request{Tenant: name, Received: friday}})
		}
	}
	if got := b.Of(friday, "often").Requests; got != 100 {
		t.Errorf("who comes often has %v requests, want 100", got)
	}
	if got := b.Of(friday, "once0"); got != (rule.Past{}) {
		t.Errorf("who came long ago is still there: %+v", got)
	}
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{`model == "x"`, `not (a`, `1..2`, `geo.country in ["a"]`, `header("x") matches "("`, `"a" == "a" and stream`} {
		f.Add(s)
	}
	s, err := rule.New(nil, rule.Parts{Places: places})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, source string) {
		c, err := rule.Compile(source)
		if err != nil || c == nil {
			return
		}
		s.Match(c, friday, request()) // neither panics nor hangs
	})
}

// twenty is a set of twenty rules of which none decides.
func twenty(t testing.TB) *rule.Set {
	var rules []rule.Rule
	for i := range 20 {
		when := []string{
			fmt.Sprintf(`model == "m%d" and prompt_tokens > 4000`, i),
			fmt.Sprintf(`geo.country in ["US", "CA", "X%c"] and stream`, 'A'+i),
			fmt.Sprintf(`tenant == "t%d" or past.error_share > 0.5`, i),
			fmt.Sprintf(`header("X-Team") == "t%d" and hour >= 9 and hour < 17`, i),
			fmt.Sprintf(`images > %d and (class == "batch" or max_tokens > 8000)`, i),
		}[i%5]
		rules = append(rules, rule.Rule{Name: fmt.Sprint("r", i), When: when, Then: there("eu")})
	}
	return set(t, rule.Parts{Places: places, Behaviour: past()}, rules...)
}

func BenchmarkSteer(b *testing.B) {
	s, req := twenty(b), request()
	b.ReportAllocs()
	for b.Loop() {
		if d := s.Steer(friday, req); d.Action != nil {
			b.Fatalf("got %+v", d)
		}
	}
}

func ExampleSet_Steer() {
	rules, err := rule.New([]rule.Rule{{
		Name: "long prompts", When: `prompt_tokens > 1000 or images > 0`, Then: route.Action{Pools: map[string]int{"gpu": 1}},
	}}, rule.Parts{})
	if err != nil {
		fmt.Println(err)
		return
	}
	d := rules.Steer(time.Now(), &inference.Request{Body: make([]byte, 8000)})
	fmt.Println(d.Rule, d.Action.Pools)
	// Output: long prompts map[gpu:1]
}
