package limit_test

import (
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/spillway/spillway/internal/limit"
)

func TestDefaultIsValid(t *testing.T) {
	c := limit.Default()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if c.Address.Rate.String() != "10/s" || c.Address.Burst != 5 {
		t.Errorf("addresses: %v, %d at once, want 10/s, 5", c.Address.Rate, c.Address.Burst)
	}
}

func TestValidate(t *testing.T) {
	for name, tc := range map[string]struct {
		yaml string
		want []string // the begin of each mistake
	}{
		"everything": {yaml: `{rules: [{name: a, by: [ip, key, tenant, model, surface, class], only: {tenants: ["a*"], models: ["meta/*"], keys: ["k?"], classes: [vip, batch], surfaces: [chat]},
			requests: {rate: 100/m, burst: 20}, tokens: {rate: 100000/m}, concurrent: 10}, {name: b, by: [tenant], only: {tenants: [x]}, budget: {day: 1, month: 5}}],
			address: {rate: 5/s, exempt: [10.0.0.0/8], emergency_rate: 1/s, emergency_burst: 2}, store: {kind: redis, mode: lease, lease: 2s, timeout: 3ms}}`},
		"no address limit": {yaml: `address: {rate: 0, burst: 0}`},
		"no limit":         {yaml: `rules: [{name: a}]`, want: []string{"rules[0]: has no limit"}},
		"names":            {yaml: `rules: [{name: A b, concurrent: 1}, {name: key, concurrent: 1}, {name: x, concurrent: 1}, {name: x, concurrent: 1}]`, want: []string{"rules[0].name: ", "rules[1].name: ", "rules[3].name: "}},
		"unknown by":       {yaml: `rules: [{name: a, by: [user, ip, ip], concurrent: 1}]`, want: []string{"rules[0].by[0]: want one of ip, key,", "rules[0].by[2]: "}},
		"never matches":    {yaml: `rules: [{name: a, only: {tenants: [""], models: ["[a]"], keys: ["\\"], classes: [idle, x], surfaces: [audio]}, concurrent: 1}]`, want: []string{"rules[0].only.tenants[0]: can never match", "rules[0].only.models[0]: ", "rules[0].only.keys[0]: ", "rules[0].only.classes[0]: ", "rules[0].only.classes[1]: ", "rules[0].only.surfaces[0]: "}},
		"numbers":          {yaml: `rules: [{name: a, concurrent: -1, budget: {day: -1, month: -2}, requests: {burst: 5}, tokens: {rate: 1/d, burst: 400}}]`, want: []string{"rules[0].concurrent: ", "rules[0].budget.day: ", "rules[0].budget.month: ", "rules[0].requests.burst: needs a rate", "rules[0].tokens.burst: must come back within a year"}},
		"budgets":          {yaml: `rules: [{name: a, by: [ip], budget: {day: 5}}, {name: b, by: [tenant], only: {models: [m]}, budget: {day: 6, month: 5}}]`, want: []string{"rules[0].budget: ", "rules[1].budget.day: can never be reached", "rules[1].budget: "}},
		"entries":          {yaml: `max_entries: 10`, want: []string{"max_entries: "}},
		"expected":         {yaml: `expected: {quantile: 1, default: 10, cap: 5}`, want: []string{"expected.quantile: ", "expected.default: "}},
		"no cap":           {yaml: `expected: {quantile: .nan, default: 0, cap: 0}`, want: []string{"expected.quantile: ", "expected.cap: "}},
		"store":            {yaml: `store: {kind: etcd, mode: fast, lease: 1m, timeout: 1us}`, want: []string{"store.kind: ", "store.mode: ", "store.lease: ", "store.timeout: "}},
		"address":          {yaml: `address: {rate: 0, burst: 5, exempt: ["::ffff:10.0.0.0/104"]}`, want: []string{"address.burst: needs a rate", "address.exempt[0]: can never match"}},
		"emergency":        {yaml: `address: {emergency_burst: -1}`, want: []string{"address.emergency_burst: "}},
		"too many": {yaml: "rules: [" + strings.Repeat(`{name: a, requests: {rate: 1/s}, tokens: {rate: 1/s}, concurrent: 1},`, 33) + "]",
			want: append([]string{"rules: must be at most", "rules: must have at most"}, repeat("rules[", 32)...)},
	} {
		t.Run(name, func(t *testing.T) {
			c := limit.Default()
			if err := yaml.Unmarshal([]byte(tc.yaml), &c); err != nil {
				t.Fatal(err)
			}
			var got []string
			if err := c.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			for _, want := range tc.want {
				found := false
				for _, g := range got {
					found = found || strings.HasPrefix(g, want)
				}
				if !found {
					t.Errorf("no mistake %q in %q", want, got)
				}
			}
			if len(got) != len(tc.want) {
				t.Errorf("%d mistakes, want %d: %q", len(got), len(tc.want), got)
			}
			if _, err := limit.New(c, limit.Parts{Store: limit.NewMemory(0)}); (err != nil) != (len(tc.want) > 0) {
				t.Errorf("New = %v", err)
			}
		})
	}
}

// repeat is a list of one word.
func repeat(s string, n int) (all []string) {
	for range n {
		all = append(all, s)
	}
	return all
}

func TestRedisNeedsAStore(t *testing.T) {
	c := limit.Default()
	c.Store.Kind = limit.KindRedis
	if _, err := limit.New(c, limit.Parts{}); err == nil || !strings.HasPrefix(err.Error(), "store.kind: ") {
		t.Errorf("New = %v, want a mistake of store.kind", err)
	}
}

func TestRate(t *testing.T) {
	for text, want := range map[string]limit.Rate{
		"10/s": {N: 10, Per: time.Second}, "600/m": {N: 600, Per: time.Minute}, " 1000 / h ": {N: 1000, Per: time.Hour},
		"5/d": {N: 5, Per: 24 * time.Hour}, "0": {}, "": {}, "1000000000000/s": {N: 1e12, Per: time.Second},
	} {
		got, err := limit.ParseRate(text)
		if err != nil || got != want {
			t.Errorf("ParseRate(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"10", "/s", "10/", "0/s", "-1/s", "+1/s", "1.5/s", "1e3/s", "10/sec", "10/s/s", "1000000000001/s", "99999999999999999999/s", "ten/s", "10 s"} {
		if got, err := limit.ParseRate(text); err == nil {
			t.Errorf("ParseRate(%q) = %v, want a mistake", text, got)
		}
	}
	var r limit.Rate
	if err := yaml.Unmarshal([]byte("600/m"), &r); err != nil || r.N != 600 {
		t.Errorf("YAML: %v, %v", r, err)
	}
	if b, err := yaml.Marshal(r); err != nil || strings.TrimSpace(string(b)) != "600/m" {
		t.Errorf("YAML: %s, %v", b, err)
	}
}

func FuzzParseRate(f *testing.F) {
	for _, s := range []string{"10/s", "600/m", "0", "", "1/d", "x", "9999999999999/h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := limit.ParseRate(s)
		if err != nil {
			return
		}
		again, err := limit.ParseRate(r.String())
		if err != nil || again != r {
			t.Errorf("%q is %v, which is %v, %v", s, r, again, err)
		}
		if !r.Zero() && (r.N < 1 || r.Per < time.Second) {
			t.Errorf("%q is %d in %v", s, r.N, r.Per)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add(`rules: [{name: a, by: [ip], requests: {rate: 1/s, burst: 5}}]`)
	f.Add(`{address: {rate: 1/s, burst: 1000000000000000}, max_entries: 8192}`)
	f.Add(`rules: [{name: a, tokens: {rate: 1000000000000/s, burst: 1}, concurrent: 1, budget: {day: 1}}]`)
	f.Fuzz(func(t *testing.T, text string) {
		c := limit.Default()
		if yaml.Unmarshal([]byte(text), &c) != nil || c.Validate() != nil {
			return
		}
		c.Store.Kind = limit.KindLocal
		l, err := limit.New(c, limit.Parts{})
		if err != nil {
			t.Fatalf("valid, and New = %v", err)
		}
		for range 3 {
			r, err := l.Reserve(t.Context(), noon, request("a", 10))
			if err != nil {
				continue
			}
			r.Fields(noon)
			r.Spend(noon, 1<<40)
			r.Settle(noon, record(request("a", 10), 1<<40))
		}
	})
}

func TestPatterns(t *testing.T) {
	for _, tc := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true}, {"a", "b", false}, {"a", "", false}, {"*", "", true}, {"*", "meta/llama", true},
		{"gpt-?", "gpt-4", true}, {"gpt-?", "gpt-", false}, {"*-7b*", "x-7b-7b-chat", true}, {"a*b*c", "aXbYc", true},
		{"a*b*c", "aXbY", false}, {"*a", "ba", true}, {"*a", "ab", false}, {"**", "x", true}, {"a*", "a", true}, {"?*", "", false},
	} {
		if got := limit.Matches(tc.pattern, tc.name); got != tc.want {
			t.Errorf("%q on %q = %v, want %v", tc.pattern, tc.name, got, tc.want)
		}
	}
}
