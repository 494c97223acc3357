package route_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/spillway/spillway/internal/route"
)

// decode reads YAML over the defaults, as the configuration file is read.
func decode(text string) (route.Config, error) {
	cfg := route.Default()
	d := yaml.NewDecoder(strings.NewReader(text))
	d.KnownFields(true)
	err := d.Decode(&cfg)
	return cfg, err
}

func TestConfigFromYAML(t *testing.T) {
	got, err := decode(`
policy: prefix_affinity
prefix_affinity: {match: 0.7, release_tokens: 20000}
affinity: {by: cookie, ttl: 1h}
fallbacks:
  big: [small, tiny]
cookie: {secure: true}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := route.Default()
	want.Policy = "prefix_affinity"
	want.PrefixAffinity = route.PrefixConfig{Match: 0.7, ReleaseTokens: 20000}
	want.Affinity = route.AffinityConfig{By: "cookie", TTL: time.Hour}
	want.Fallbacks = map[string][]string{"big": {"small", "tiny"}}
	want.Cookie.Secure = true
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if _, err := decode("policy_options: {match: 1}"); err == nil {
		t.Error("an unknown key was accepted")
	}
}

func TestDefaultsAreValid(t *testing.T) {
	if err := route.Default().Validate(); err != nil {
		t.Error(err)
	}
	if err := route.DefaultTier().Validate(); err != nil {
		t.Error(err)
	}
	if err := (route.TierConfig{}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestValidateNamesEveryMistake(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		yaml string
		want []string // the messages' beginnings, in order
	}{
		"policy":          {"policy: fastest", []string{`policy: unknown policy "fastest"; known are consistent_hash, ip_hash,`}},
		"inert options":   {"prefix_affinity: {match: 0.5}\nconsistent_hash: {bound: 2}", []string{"consistent_hash: has no effect with policy: latency", "prefix_affinity: has no effect with policy: latency"}},
		"prefix":          {"policy: prefix_affinity\nprefix_affinity: {match: 1.5, release_tokens: -1, release_requests: -1, release_ratio: 0.5, blocks: -4}", []string{"prefix_affinity.match: ", "prefix_affinity.release_tokens: ", "prefix_affinity.release_requests: ", "prefix_affinity.release_ratio: ", "prefix_affinity.blocks: "}},
		"not a number":    {"policy: prefix_affinity\nprefix_affinity: {match: .nan, release_ratio: .nan}", []string{"prefix_affinity.match: ", "prefix_affinity.release_ratio: "}},
		"huge index":      {"policy: prefix_affinity\nprefix_affinity: {blocks: 1000000000}", []string{"prefix_affinity.blocks: "}},
		"hash":            {"policy: consistent_hash\nconsistent_hash: {by: fate, bound: 1, prompt_bytes: -1}", []string{"consistent_hash.by: ", "consistent_hash.prompt_bytes: ", "consistent_hash.bound: "}},
		"hash name":       {"policy: consistent_hash\nconsistent_hash: {by: header}", []string{"consistent_hash.name: needed"}},
		"hash inert name": {"policy: consistent_hash\nconsistent_hash: {name: X}", []string{"consistent_hash.name: has no meaning"}},
		"latency":         {"latency: {slack: -1s}", []string{"latency.slack: "}},
		"affinity":        {"affinity: {by: fate, header: X, ttl: -1ms}", []string{"affinity.by: ", "affinity.header: has a meaning only", "affinity.ttl: has a meaning only", "affinity.ttl: must be whole"}},
		"affinity header": {"affinity: {by: header}", []string{"affinity.header: needed"}},
		"fallbacks":       {"fallbacks: {b: [b, c, c, ''], a: [a]}", []string{"fallbacks.a[0]: ", "fallbacks.b[0]: ", "fallbacks.b[2]: ", "fallbacks.b[3]: "}},
		"cookie":          {"cookie: {name: sid}", []string{"cookie.name: "}},
		"cookie name":     {"cookie: {name: 'spillway;x'}", []string{"cookie.name: "}},
		"two secrets":     {"cookie: {secret_env: A, secret_file: b}", []string{"cookie.secret_file: give either"}},
		"no such env":     {"cookie: {secret_env: NOT_SET_ANYWHERE}", []string{"cookie.secret_env: "}},
		"no such file":    {"cookie: {secret_file: /nowhere/at/all}", []string{"cookie.secret_file: "}},
		"short secret":    {"cookie: {secret_file: " + short + "}", []string{"cookie.secret_file: the secret must have at least 16 bytes, got 5"}},
		"at once":         {"policy: ip_hash\naffinity: {by: x}\ncookie: {name: y}", []string{"affinity.by: ", "cookie.name: "}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg, err := decode(tt.yaml)
			if err != nil {
				t.Fatal(err)
			}
			err = cfg.Validate()
			if err == nil {
				t.Fatal("accepted")
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("got %d mistakes, want %d:\n%v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("got %q, want %q...", lines[i], want)
				}
			}
		})
	}
}
