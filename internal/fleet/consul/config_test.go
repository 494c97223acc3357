package consul_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/consul"
)

func TestParseTags(t *testing.T) {
	cases := map[string]struct {
		tags     []string
		want     consul.Tags
		mistakes []string // beginnings
	}{
		"none":         {},
		"others":       {tags: []string{"gpu", "weight", "zone=a", "", "=", "Backup"}},
		"all":          {tags: []string{"weight=3", "backup", "max_in_flight=9", "scheme=https", "path=/v1"}, want: consul.Tags{3, true, 9, "https", "/v1"}},
		"backup=true":  {tags: []string{"backup=true"}, want: consul.Tags{Backup: true}},
		"backup=false": {tags: []string{"backup", "backup=false"}},
		"the last one": {tags: []string{"weight=3", "weight=4"}, want: consul.Tags{Weight: 4}},
		"mistakes": {
			tags:     []string{"weight=0", "weight=-1", "weight=1000001", "weight=x", "weight=", "backup=maybe", "max_in_flight=-1", "scheme=ftp", "path=v1", "path=/a?b"},
			mistakes: []string{"tag weight", "tag weight", "tag weight", "tag weight", "tag weight", "tag backup", "tag max_in_flight", "tag scheme", "tag path", "tag path"},
		},
		"a mistake does not undo": {tags: []string{"weight=3", "weight=x"}, want: consul.Tags{Weight: 3}, mistakes: []string{"tag weight"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			got, errs := consul.ParseTags(c.tags)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("tags (-want +got):\n%s", diff)
			}
			if len(errs) != len(c.mistakes) {
				t.Fatalf("got %v, want %v", errs, c.mistakes)
			}
			for i, err := range errs {
				if !strings.HasPrefix(err.Error(), c.mistakes[i]) {
					t.Errorf("got %v, want %q", err, c.mistakes[i])
				}
			}
		})
	}
}

func TestTargetsOfEntries(t *testing.T) {
	t.Parallel()
	const passing = `"Checks":[{"Status":"passing"}]`
	node := func(address, service, checks string) string {
		return fmt.Sprintf(`{"Node":{"Address":%q},"Service":{"ID":"x",%s},%s}`, address, service, checks)
	}
	cases := map[string]struct {
		entries string
		want    []fleet.Target
		said    string // part of the log; "" is nothing
	}{
		"the node's address":     {node("10.0.0.2", `"Port":80`, passing), []fleet.Target{at("http://10.0.0.2:80")}, ""},
		"the service's address":  {node("10.0.0.2", `"Address":"a.b","Port":80`, passing), []fleet.Target{at("http://a.b:80")}, ""},
		"IPv6":                   {node("fd00::1", `"Port":80`, passing), []fleet.Target{at("http://[fd00::1]:80")}, ""},
		"no checks":              {node("a", `"Port":80`, `"Checks":[]`), []fleet.Target{at("http://a:80")}, ""},
		"a null check":           {node("a", `"Port":80`, `"Checks":[null]`), []fleet.Target{at("http://a:80")}, ""},
		"a check that is not":    {node("a", `"Port":80`, `"Checks":[{"Status":"critical"}]`), nil, ""},
		"an unknown status":      {node("a", `"Port":80`, `"Checks":[{"Status":"odd"}]`), nil, ""},
		"in maintenance":         {node("a", `"Port":80`, `"Checks":[{"CheckID":"_node_maintenance","Status":"critical"}]`), nil, ""},
		"several ports":          {node("a", `"Ports":[{"Name":"m","Port":90},{"Name":"h","Port":80,"Default":true}]`, passing), []fleet.Target{at("http://a:80")}, ""},
		"weights":                {node("a", `"Port":80,"Weights":{"Passing":7,"Warning":1}`, passing), []fleet.Target{{URL: "http://a:80", Weight: 7}}, ""},
		"a tag before weights":   {node("a", `"Port":80,"Weights":{"Passing":7},"Tags":["weight=2"]`, passing), []fleet.Target{{URL: "http://a:80", Weight: 2}}, ""},
		"a weight beyond bounds": {node("a", `"Port":80,"Weights":{"Passing":2000000}`, passing), []fleet.Target{{URL: "http://a:80", Weight: 1_000_000}}, ""},
		"twice":                  {node("a", `"Port":80`, passing) + "," + node("a", `"Port":80,"Tags":["weight=2"]`, passing), []fleet.Target{{URL: "http://a:80", Weight: 2}}, ""},
		"sorted":                 {node("b", `"Port":80`, passing) + "," + node("a", `"Port":80`, passing), []fleet.Target{at("http://a:80"), at("http://b:80")}, ""},
		"no port":                {node("a", `"Address":""`, passing), nil, "no usable address"},
		"no address":             {node("", `"Port":80`, passing), nil, "no usable address"},
		"no node":                {`{"Service":{"ID":"x","Port":80},"Checks":[]}`, nil, "no usable address"},
		"no service":             {`null,{}`, nil, "without a service"},
		"an address with a path": {node("a/b", `"Port":80`, passing), nil, "is not a host"},
		"an address with a user": {node("u:p@a", `"Port":80`, passing), nil, "x"},
		"spaces":                 {node("a b", `"Port":80`, passing), nil, "x"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := script(t, func(n int, w http.ResponseWriter, r *http.Request) {
				if n > 1 {
					hold(r)
					return
				}
				say(w, "1", "["+c.entries+"]")
			})
			got, l := run(t, config(s.URL))
			expect(t, got, c.want...)
			if warned := l.Count("level=WARN") > 0; warned != (c.said != "") || l.Count(c.said) == 0 && c.said != "" {
				t.Errorf("log %s, want %q", l, c.said)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	cases := map[string]struct {
		change func(*consul.Config)
		want   string // beginning of the message; "" is valid
	}{
		"default":           {func(*consul.Config) {}, ""},
		"no service":        {func(c *consul.Config) { c.Service = "" }, "service: is missing"},
		"a path as service": {func(c *consul.Config) { c.Service = "a/b" }, "service: must not"},
		"odd service":       {func(c *consul.Config) { c.Service = "a\n" }, "service: must not"},
		"https":             {func(c *consul.Config) { c.Address = "https://consul:8501" }, ""},
		"below a path":      {func(c *consul.Config) { c.Address = "https://proxy/consul" }, ""},
		"socket":            {func(c *consul.Config) { c.Address = "unix:///run/consul.sock" }, ""},
		"no scheme":         {func(c *consul.Config) { c.Address = "consul:8500" }, "address: want"},
		"ftp":               {func(c *consul.Config) { c.Address = "ftp://consul" }, "address: want"},
		"credentials":       {func(c *consul.Config) { c.Address = "http://u:secret@consul" }, "address: credentials"},
		"a query":           {func(c *consul.Config) { c.Address = "http://consul?dc=a" }, "address: want no query"},
		"an empty tag":      {func(c *consul.Config) { c.Tags = []string{"a", ""} }, "tags[1]: "},
		"datacenter":        {func(c *consul.Config) { c.Datacenter = "a b" }, "datacenter: "},
		"namespace":         {func(c *consul.Config) { c.Namespace = "a/b" }, "namespace: "},
		"partition":         {func(c *consul.Config) { c.Partition = "a/b" }, "partition: "},
		"two tokens":        {func(c *consul.Config) { c.TokenEnv, c.TokenFile = "A", "b" }, "token_file: "},
		"half a key":        {func(c *consul.Config) { c.TLS.CertFile = "a" }, "tls.key_file: "},
		"short wait":        {func(c *consul.Config) { c.Wait = time.Millisecond }, "wait: "},
		"long wait":         {func(c *consul.Config) { c.Wait = time.Hour }, "wait: "},
		"scheme":            {func(c *consul.Config) { c.Scheme = "ftp" }, "scheme: "},
		"path":              {func(c *consul.Config) { c.Path = "v1" }, "path: "},
		"good path":         {func(c *consul.Config) { c.Path = "/v1" }, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := config("")
			c.change(&cfg)
			err := cfg.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("a credential in %q", err)
			}
		})
	}
}

func FuzzParseTags(f *testing.F) {
	f.Add("weight=3\nbackup\nmax_in_flight=9\nscheme=https\npath=/v1")
	f.Add("weight=99999999999999999999\npath=/%zz\npath=//a\nbackup=")
	f.Fuzz(func(t *testing.T, text string) {
		tags := strings.Split(text, "\n")
		got, errs := consul.ParseTags(tags)
		if got.Weight < 0 || got.Weight > 1_000_000 || got.MaxInFlight < 0 {
			t.Errorf("%q: %+v", tags, got)
		}
		if got.Scheme != "" && got.Scheme != "http" && got.Scheme != "https" {
			t.Errorf("%q: scheme %q", tags, got.Scheme)
		}
		if _, err := fleet.ParseURL("http://10.0.0.1:80" + got.Path); err != nil {
			t.Errorf("%q: path %q: %v", tags, got.Path, err)
		}
		if len(errs) > len(tags) {
			t.Errorf("%q: %d mistakes", tags, len(errs))
		}
	})
}

func Example() {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Consul-Index", "7")
		fmt.Fprint(w, `[{"Node":{"Address":"10.0.0.1"},"Service":{"ID":"a","Port":8000,"Tags":["weight=2"]},"Checks":[{"Status":"passing"}]}]`)
	}))
	defer agent.Close()
	cfg := consul.Default()
	cfg.Address, cfg.Service = agent.URL, "vllm"
	ctx, stop := context.WithCancel(context.Background())
	_ = consul.New(cfg, slog.New(slog.DiscardHandler)).Run(ctx, func(targets []fleet.Target) {
		fmt.Println(targets)
		stop()
	})
	// Output: [{http://10.0.0.1:8000 2 false 0}]
}
