package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/api"
	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/consul"
	"github.com/spillway/spillway/internal/fleet/dns"
	"github.com/spillway/spillway/internal/fleet/file"
	"github.com/spillway/spillway/internal/fleet/kubernetes"
	"github.com/spillway/spillway/internal/gateway"
	"github.com/spillway/spillway/internal/health"
	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/preload"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/telemetry"
	"github.com/spillway/spillway/internal/upstream"
)

// File is the whole configuration.
type File struct {
	// The listener for clients.
	API api.Config `yaml:"api"`
	// The listener for operators.
	Admin admin.Config `yaml:"admin"`
	// API keys, tenants and classes.
	Identity identity.Config `yaml:"identity"`
	// How a region is chosen, fallbacks and session cookies, rules, places of clients and experiments.
	Route Route `yaml:"route"`
	// Who may use how much: limits of addresses, keys, tenants and models.
	Limit limit.Config `yaml:"limit"`
	// Answers that are kept and given again: levels, times, rules.
	Cache cache.Config `yaml:"cache"`
	// Popular answers, refreshed before they are asked for.
	Preload preload.Config `yaml:"preload"`
	// Overload control: learned limits, queues, classes, tickets, brownout.
	Admission admission.Config `yaml:"admission"`
	// Time-outs, retries, hedging and keep-alives.
	Gateway gateway.Config `yaml:"gateway"`
	// The access log, and the ledger of tokens.
	Usage Usage `yaml:"usage"`
	// Logs and traces.
	Telemetry telemetry.Config `yaml:"telemetry"`
	// What must survive a restart.
	Store Store `yaml:"store"`
	// Regions, pools and instances.
	Fleet Fleet `yaml:"fleet"`

	doc     *document
	hash    string
	origins map[string]string // key path -> where it comes from, beside the file
}

// Fleet is the section `fleet`: the three tiers.
type Fleet struct {
	// The regions.
	Regions []Region `yaml:"regions"`
}

// Region is a place with pools in it.
type Region struct {
	// Name, unique among the regions.
	Name string `yaml:"name"`
	// Share of the work among the regions, where the policy knows shares.
	Weight int `yaml:"weight"`
	// Used only when no other region is open.
	Backup bool `yaml:"backup"`
	// How one of its pools is chosen.
	route.TierConfig `yaml:",inline"`
	// The pools.
	Pools []Pool `yaml:"pools"`
}

// Pool is a set of instances of one kind.
type Pool struct {
	// Name, unique in its region.
	Name string `yaml:"name"`
	// Share of the work among the region's pools, where the policy knows shares.
	Weight int `yaml:"weight"`
	// Used only when no other pool of the region is open.
	Backup bool `yaml:"backup"`
	// Models that the pool serves: a list of names, or a mapping from the name that clients use to the name asked for upstream. Without it they are learned from the instances' own /v1/models.
	Models Models `yaml:"models"`
	// Surfaces that the instances have: chat, completions, embeddings, messages, responses.
	Surfaces []string `yaml:"surfaces"`
	// A hosted account instead of servers of your own: its limits are learned from its refusals and headers alone.
	Provider bool `yaml:"provider"`
	// In reserve: takes work only while the emergency switch is on.
	Standby bool `yaml:"standby"`
	// Most requests in flight at one instance; 0 is no limit.
	MaxInFlight int64 `yaml:"max_in_flight"`
	// Time over which an instance that came back takes up its full share.
	SlowStart time.Duration `yaml:"slow_start"`
	// Ask a second instance when the first is late.
	Hedge bool `yaml:"hedge"`
	// How one of its instances is chosen.
	route.TierConfig `yaml:",inline"`
	// Instances written here: a list of URLs, or of mappings with url, weight, backup and max_in_flight.
	Instances []Instance `yaml:"instances"`
	// Instances from a watched file.
	File *file.Config `yaml:"file"`
	// Instances from DNS.
	DNS *dns.Config `yaml:"dns"`
	// Instances from Consul.
	Consul *consul.Config `yaml:"consul"`
	// Instances from the endpoints of a Kubernetes service.
	Kubernetes *kubernetes.Config `yaml:"kubernetes"`
	// How instances are reached.
	Upstream upstream.Config `yaml:"upstream"`
	// How instances are judged.
	Health health.Config `yaml:"health"`
	// The engines' own metrics, scraped to correct the load. Off unless kind or path is set.
	Metrics health.Metrics `yaml:"metrics"`
}

// Models maps the name that clients use to the name asked for upstream.
type Models map[string]string

// UnmarshalYAML accepts a list of names as well as a mapping.
func (m *Models) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		var plain map[string]string
		err := n.Decode(&plain)
		*m = plain
		return err
	}
	var names []string
	if err := n.Decode(&names); err != nil {
		return err
	}
	*m = make(Models, len(names))
	for _, name := range names {
		(*m)[name] = name
	}
	return nil
}

// Instance is one configured instance.
type Instance struct {
	fleet.Target `yaml:",inline"`
}

// UnmarshalYAML accepts a URL as well as a mapping.
func (i *Instance) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		return n.Decode(&i.URL)
	}
	return n.Decode(&i.Target)
}

// DefaultRegion is a region that says nothing.
func DefaultRegion() Region {
	return Region{Weight: 1, TierConfig: route.DefaultTier()}
}

// DefaultPool is a pool that says nothing.
func DefaultPool() Pool {
	return Pool{
		Weight:     1,
		Surfaces:   []string{"chat", "completions", "embeddings"},
		SlowStart:  10 * time.Second,
		TierConfig: route.DefaultTier(),
		Upstream:   upstream.Default(),
		Health:     health.Default(),
		Metrics:    health.DefaultMetrics(),
	}
}

// UnmarshalYAML decodes over the defaults.
func (r *Region) UnmarshalYAML(n *yaml.Node) error {
	type plain Region
	*r = DefaultRegion()
	return n.Decode((*plain)(r))
}

// UnmarshalYAML decodes over the defaults. A source of discovery that is not
// mentioned stays nil.
func (p *Pool) UnmarshalYAML(n *yaml.Node) error {
	type plain Pool
	*p = DefaultPool()
	if child(n, "file") != nil {
		c := file.Default()
		p.File = &c
	}
	if child(n, "dns") != nil {
		c := dns.Default()
		p.DNS = &c
	}
	if child(n, "consul") != nil {
		c := consul.Default()
		p.Consul = &c
	}
	if child(n, "kubernetes") != nil {
		c := kubernetes.Default()
		p.Kubernetes = &c
	}
	return n.Decode((*plain)(p))
}

// Default is the configuration of an empty file.
func Default() *File {
	return &File{
		API: api.Default(), Admin: admin.Default(), Identity: identity.Default(), Route: defaultRoute(), Limit: limit.Default(),
		Cache: cache.Default(), Preload: preload.Default(), Admission: admission.Default(),
		Gateway: gateway.Default(), Usage: defaultUsage(), Telemetry: telemetry.Default(), Store: defaultStore(),
		doc: &document{env: map[string]string{}},
	}
}

// Load reads and validates a file. The error is Mistakes, or that of reading.
func Load(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// Parse reads and validates a configuration. name stands for the file in
// messages. The error is Mistakes.
func Parse(name string, data []byte) (*File, error) {
	doc, mistakes := parse(name, data)
	if doc == nil {
		return nil, mistakes
	}
	f := Default()
	f.doc, f.hash = doc, Hash(data)
	found, whole := doc.decode(f)
	mistakes = append(mistakes, found...)
	if whole { // where a value is missing, complaints would be about what is not there
		mistakes = append(mistakes, f.unsaid(mistakes)...)
	}
	if len(mistakes) > 0 {
		slices.SortStableFunc(mistakes, func(a, b Mistake) int { return a.Line - b.Line })
		return nil, mistakes
	}
	return f, nil
}

// unsaid validates, and leaves out what was complained about at the same line.
func (f *File) unsaid(said Mistakes) Mistakes {
	return slices.DeleteFunc(f.validate(), func(m Mistake) bool {
		return slices.ContainsFunc(said, func(s Mistake) bool { return s.Line == m.Line && m.Line > 0 })
	})
}

// Hash identifies the bytes that the configuration was read from; "" when it was
// not read from a file.
func (f *File) Hash() string { return f.hash }

// Validate returns Mistakes, or nil. It serves configurations that were not
// read from a file.
func (f *File) Validate() error {
	if m := f.validate(); len(m) > 0 {
		return m
	}
	return nil
}

// validate collects every mistake of every section.
func (f *File) validate() Mistakes {
	var mistakes Mistakes
	section := func(prefix string, err error) {
		for _, e := range split(err) {
			mistakes = append(mistakes, f.doc.mistake(prefix, e))
		}
	}
	section("api", f.API.Validate())
	section("admin", f.Admin.Validate())
	section("identity", f.Identity.Validate())
	section("route", f.Route.Validate())
	section("limit", f.Limit.Validate())
	section("cache", f.Cache.Validate())
	section("preload", f.Preload.Validate())
	section("admission", f.Admission.Validate())
	section("gateway", f.Gateway.Validate())
	section("usage", f.Usage.Validate())
	section("telemetry", f.Telemetry.Validate())
	section("store", f.Store.Validate())
	section("fleet", f.validateFleet(section))
	return mistakes
}

// validateFleet checks the tiers; what a mechanism's own section says is
// reported through section.
func (f *File) validateFleet(section func(prefix string, err error)) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(f.Fleet.Regions) == 0 {
		bad("regions: at least one region is needed")
	}
	models, pools := make(map[string]bool), make(map[string]bool)
	learned := false
	for i := range f.Fleet.Regions {
		r := &f.Fleet.Regions[i]
		path := fmt.Sprintf("regions[%d]", i)
		name(bad, path, r.Name, func() bool {
			return slices.ContainsFunc(f.Fleet.Regions[:i], func(o Region) bool { return o.Name == r.Name })
		})
		if r.Weight < 1 {
			bad("%s.weight: must be at least 1, got %d", path, r.Weight)
		}
		if len(r.Pools) == 0 {
			bad("%s.pools: at least one pool is needed", path)
		}
		section("fleet."+path, r.TierConfig.Validate())
		for j := range r.Pools {
			p := &r.Pools[j]
			at := fmt.Sprintf("%s.pools[%d]", path, j)
			name(bad, at, p.Name, func() bool {
				return slices.ContainsFunc(r.Pools[:j], func(o Pool) bool { return o.Name == p.Name })
			})
			p.validate(at, bad, section)
			learned = learned || p.Models == nil
			for m := range p.Models {
				models[m] = true
			}
			pools[r.Name+"/"+p.Name] = true
		}
	}
	if !learned {
		for asked, others := range f.Route.Fallbacks {
			for _, m := range append([]string{asked}, others...) {
				if !models[m] {
					section("route", fmt.Errorf("fallbacks.%s: no pool serves model %q", asked, m))
				}
			}
		}
	}
	if learned {
		models = nil
	}
	section("route", f.Route.unknown(f.Fleet.Regions, models))
	section("limit", f.unknownRoutes())
	for _, p := range f.Gateway.Hedge.Pools {
		if !pools[p] {
			section("gateway", fmt.Errorf("hedge.pools: unknown pool %q", p))
		}
	}
	return errors.Join(errs...)
}

// name checks a region's or pool's name.
func name(bad func(string, ...any), path, value string, taken func() bool) {
	switch {
	case value == "":
		bad("%s.name: is missing", path)
	case strings.ContainsAny(value, "/ \t\"\\") || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' }):
		bad("%s.name: %q must not contain spaces, quotes or slashes", path, value)
	case taken():
		bad("%s.name: %q is used twice", path, value)
	}
}

// validate checks one pool.
func (p *Pool) validate(path string, bad func(string, ...any), section func(string, error)) {
	if p.Weight < 1 {
		bad("%s.weight: must be at least 1, got %d", path, p.Weight)
	}
	if p.MaxInFlight < 0 {
		bad("%s.max_in_flight: must be >= 0, got %d", path, p.MaxInFlight)
	}
	if p.SlowStart < 0 {
		bad("%s.slow_start: must be >= 0, got %v", path, p.SlowStart)
	}
	if len(p.Surfaces) == 0 {
		bad("%s.surfaces: at least one surface is needed", path)
	}
	for i, s := range p.Surfaces {
		if _, ok := inference.ParseSurface(s); !ok {
			bad("%s.surfaces[%d]: unknown surface %q; known are %v", path, i, s, inference.Surfaces())
		}
	}
	for alias, to := range p.Models {
		if alias == "" || to == "" {
			bad("%s.models: a model's name is empty", path)
		}
	}
	p.validateInstances(path, bad)
	path = "fleet." + path
	section(path, p.TierConfig.Validate())
	section(path+".upstream", p.Upstream.Validate())
	section(path+".health", p.Health.Validate())
	for _, s := range p.sources() {
		section(path+"."+s.key, s.config.Validate())
	}
	section(path+".metrics", p.Metrics.Validate())
}

// source is one source of discovery that a pool has, by its key.
type source struct {
	key    string
	config interface{ Validate() error }
}

// sources are those that the pool has; more than one is a mistake.
func (p *Pool) sources() (all []source) {
	if p.File != nil {
		all = append(all, source{"file", p.File})
	}
	if p.DNS != nil {
		all = append(all, source{"dns", p.DNS})
	}
	if p.Consul != nil {
		all = append(all, source{"consul", p.Consul})
	}
	if p.Kubernetes != nil {
		all = append(all, source{"kubernetes", p.Kubernetes})
	}
	return all
}

// validateInstances checks where the instances come from.
func (p *Pool) validateInstances(path string, bad func(string, ...any)) {
	sources := p.sources()
	switch {
	case len(sources) > 1:
		bad("%s.%s: a pool has one source of discovery, and %s is given too", path, sources[1].key, sources[0].key)
	case len(p.Instances) == 0 && len(sources) == 0:
		bad("%s.instances: a pool needs instances, file, dns, consul or kubernetes", path)
	}
	seen := make(map[string]bool)
	for i, t := range p.Instances {
		at := fmt.Sprintf("%s.instances[%d]", path, i)
		u, err := fleet.ParseURL(t.URL)
		switch {
		case err != nil:
			bad("%s: %w", at, err)
		case seen[u.String()]:
			bad("%s: %s is listed twice", at, u)
		default:
			seen[u.String()] = true
		}
		if t.Weight < 0 || t.MaxInFlight < 0 {
			bad("%s: weight and max_in_flight must be >= 0", at)
		}
	}
}

// Hash identifies a configuration's bytes, for the log and the admin API.
func Hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:6])
}
