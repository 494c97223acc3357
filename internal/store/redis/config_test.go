package redis_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/spillway/spillway/internal/store/redis"
)

func TestDefaultIsValid(t *testing.T) {
	c := redis.Default()
	if err := c.Validate(); err != nil || c.Enabled() {
		t.Errorf("Validate = %v, Enabled = %v, want valid and off", err, c.Enabled())
	}
}

func TestValidate(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hush\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		yaml string
		want []string // the begin of each mistake
	}{
		"single":              {yaml: `addresses: ["localhost:6379"]`},
		"socket":              {yaml: `addresses: [/run/redis.sock]`},
		"cluster":             {yaml: `{addresses: ["a:1", "b:2"], cluster: true}`},
		"sentinel":            {yaml: `{addresses: ["a:1", "[::1]:2"], sentinel: {master: m, password_file: ` + secret + `}, db: 3}`},
		"everything":          {yaml: `{addresses: ["a:1"], username: u, password_file: ` + secret + `, tls: {enabled: true, server_name: x}, prefix: "a:b", connections: 8, queue: 10, timeout: 2s}`},
		"no port":             {yaml: `addresses: [localhost]`, want: []string{"addresses[0]: "}},
		"a URL":               {yaml: `addresses: ["redis://:hush@a:6379"]`, want: []string{"addresses[0]: "}},
		"no host":             {yaml: `addresses: ["a:1", ":6379"]`, want: []string{"addresses[1]: ", "addresses: more than one"}},
		"cluster of sockets":  {yaml: `{addresses: [/a, /b], cluster: true}`, want: []string{"addresses[0]: ", "addresses[1]: "}},
		"cluster, sentinel":   {yaml: `{addresses: ["a:1"], cluster: true, sentinel: {master: m}}`, want: []string{"cluster: "}},
		"cluster with db":     {yaml: `{addresses: ["a:1"], cluster: true, db: 1}`, want: []string{"db: "}},
		"two secrets":         {yaml: `{password_env: HOME, password_file: ` + secret + `}`, want: []string{"password_file: "}},
		"secrets not there":   {yaml: `{password_env: NOBODY_SETS_THIS, sentinel: {password_file: /nowhere}}`, want: []string{"password_env: ", "sentinel.password_file: "}},
		"tls off":             {yaml: `tls: {ca_file: /nowhere}`, want: []string{"tls.enabled: "}},
		"tls files not there": {yaml: `tls: {enabled: true, ca_file: /nowhere}`, want: []string{"tls.ca_file: "}},
		"tls file of no cert": {yaml: `tls: {enabled: true, ca_file: ` + secret + `}`, want: []string{"tls.ca_file: "}},
		"tls half a pair":     {yaml: `tls: {enabled: true, cert_file: ` + secret + `}`, want: []string{"tls.cert_file: "}},
		"tls pair of no cert": {yaml: `tls: {enabled: true, cert_file: ` + secret + `, key_file: ` + secret + `}`, want: []string{"tls.cert_file: "}},
		"numbers":             {yaml: `{db: -1, connections: 3, blocking_connections: 0, queue: 0, connect_timeout: 0s, timeout: 2h}`, want: []string{"db: ", "connections: ", "blocking_connections: ", "queue: ", "connect_timeout: ", "timeout: "}},
		"prefix":              {yaml: `prefix: "a{b}*"`, want: []string{"prefix: "}},
		"no prefix":           {yaml: `prefix: ""`, want: []string{"prefix: "}},
	} {
		t.Run(name, func(t *testing.T) {
			c := redis.Default()
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
			for _, g := range got {
				if strings.Contains(g, "hush") {
					t.Errorf("a secret is shown: %s", g)
				}
			}
		})
	}
}

func TestNewReadsWhatValidateReads(t *testing.T) {
	for name, change := range map[string]func(*redis.Config){
		"no address":        func(c *redis.Config) { c.Addresses = nil },
		"password":          func(c *redis.Config) { c.PasswordFile = "/nowhere" },
		"sentinel password": func(c *redis.Config) { c.Sentinel.PasswordEnv = "NOBODY_SETS_THIS" },
		"tls":               func(c *redis.Config) { c.TLS.CertFile = "/nowhere" },
	} {
		c := redis.Default()
		c.Addresses, c.Timeout = []string{"localhost:1"}, time.Second
		change(&c)
		if _, err := redis.New(c, quiet()); err == nil {
			t.Errorf("%s: New takes it", name)
		}
	}
}
