package load

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/inference"
)

// job is one request, fixed before its instant.
type job struct {
	seq           uint64
	due           time.Duration // since the start of the run
	class, tenant string
	client        string // sent as the user field
	headers       []byte // credentials and class
	prompt        prompt
	output        int // the true length of the answer, in tokens
	stream        bool
	patience      time.Duration // 0 is without end
}

// recent is how many prompts back a repeated one may lie.
const recent = 1024

// planner turns rows into requests. plan is for one goroutine at a time;
// write is safe for concurrent use.
type planner struct {
	cfg     Config
	salt    uint64
	scribe  *scribe
	form    bodyForm
	fixed   []byte // header fields of every request
	surface inference.Surface
	local   bool // block identities count inside one session only
	tenants map[string]int
	draws   *rand.Rand
	past    []job
	popular []float64 // cumulative shares of the popular questions
}

func newPlanner(cfg Config, surface inference.Surface) *planner {
	p := &planner{
		cfg: cfg, surface: surface, scribe: newScribe(), form: newBodyForm(surface, cfg.Target.Model, cfg.Request),
		// Systems of one report see prompts of their own: the caches of servers
		// that both use must not carry over.
		salt:    mix(cfg.Seed, hash(cfg.Target.Name)),
		tenants: map[string]int{},
		draws:   rand.New(rand.NewPCG(cfg.Seed, 3)),
	}
	for i, t := range cfg.Tenants {
		p.tenants[t.Name] = i
	}
	if cfg.Request.Popular.Share > 0 {
		p.popular = zipf(cfg.Request.Popular)
	}
	f, err := cfg.Schedule.Trace.format()
	p.local = err == nil && f == AgentSessions
	var b strings.Builder
	b.WriteString("User-Agent: spillway-load\r\nContent-Type: application/json\r\n")
	for _, name := range slices.Sorted(maps.Keys(cfg.Target.Headers)) {
		fmt.Fprintf(&b, "%s: %s\r\n", name, cfg.Target.Headers[name])
	}
	p.fixed = []byte(b.String())
	return p
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s)) // never fails
	return h.Sum64()
}

// plan makes a request of an arrival.
func (p *planner) plan(a arrival, seq uint64) job {
	salt := mix(p.salt, a.pass)
	if p.local {
		salt = mix(salt, hash(a.row.Session))
	}
	j := job{
		seq: seq, due: a.at, client: a.row.Client, stream: p.draws.Float64() < p.cfg.Request.Streamed,
		prompt: prompt{salt: salt, unique: seq, prefix: a.row.Prefix, tokens: a.row.Input},
		output: min(a.row.Output, p.cfg.Request.MaxTokens),
	}
	if limit := p.cfg.Request.MaxPromptTokens; limit > 0 {
		j.prompt.tokens = min(j.prompt.tokens, limit)
	}
	if p.cfg.Request.Repeat > 0 {
		p.repeat(&j)
	}
	if p.popular != nil && p.draws.Float64() < p.cfg.Request.Popular.Share {
		rank, _ := slices.BinarySearch(p.popular, p.draws.Float64())
		j.prompt.salt, j.prompt.unique = mix(p.salt, popularSalt), uint64(rank) // the same in every pass
	}
	p.identify(&j)
	return j
}

// popularSalt tells the popular questions from those that are asked once.
const popularSalt = 0x9091a5

// zipf is the cumulative distribution of Zipf's law over the questions.
func zipf(p Popular) []float64 {
	sums := make([]float64, p.Questions)
	sum := 0.0
	for k := range sums {
		sum += math.Pow(float64(k+1), -p.Skew)
		sums[k] = sum
	}
	for k := range sums {
		sums[k] /= sum
	}
	sums[len(sums)-1] = 1
	return sums
}

// repeat replaces the prompt by a recent one, at the configured share.
func (p *planner) repeat(j *job) {
	if p.draws.Float64() < p.cfg.Request.Repeat && len(p.past) > 0 {
		old := p.past[p.draws.IntN(len(p.past))]
		j.prompt, j.output = old.prompt, old.output
		return
	}
	if len(p.past) < recent {
		p.past = append(p.past, *j)
		return
	}
	p.past[j.seq%recent] = *j
}

// identify picks class and tenant and writes their header fields.
func (p *planner) identify(j *job) {
	key, tell := p.cfg.Target.APIKey, ""
	if n := len(p.cfg.Classes); n > 0 {
		c := p.cfg.Classes[pick(n, p.draws.Float64(), func(i int) float64 { return p.cfg.Classes[i].Share })]
		j.class, tell, j.patience = c.Name, c.Name, c.Patience
		if c.APIKey != "" {
			key, tell = c.APIKey, ""
		}
	}
	j.tenant = j.client
	if n := len(p.cfg.Tenants); n > 0 {
		t := p.cfg.Tenants[p.tenant(j.client)]
		j.tenant = t.Name
		if t.APIKey != "" {
			key, tell = t.APIKey, j.class
		}
	}
	h := p.fixed[:len(p.fixed):len(p.fixed)]
	if key != "" && p.surface == inference.Messages {
		h = append(append(append(h, "X-Api-Key: "...), key...), "\r\n"...)
	} else if key != "" {
		h = append(append(append(h, "Authorization: Bearer "...), key...), "\r\n"...)
	}
	if p.surface == inference.Messages {
		h = append(h, "Anthropic-Version: 2023-06-01\r\n"...)
	}
	if tell != "" {
		h = append(append(append(h, "X-Spillway-Class: "...), tell...), "\r\n"...)
	}
	if name := p.cfg.Target.TenantHeader; name != "" && j.tenant != "" {
		h = append(append(append(append(h, name...), ": "...), j.tenant...), "\r\n"...)
	}
	j.headers = h
}

// tenant finds the tenant of a client label: of that name, else by hash, else
// drawn by share.
func (p *planner) tenant(client string) int {
	n := len(p.cfg.Tenants)
	if i, ok := p.tenants[client]; ok {
		return i
	}
	if client != "" {
		return int(hash(client) % uint64(n))
	}
	return pick(n, p.draws.Float64(), func(i int) float64 { return p.cfg.Tenants[i].Share })
}

// pick draws one of n by weight; x is in [0, 1). Without weights all are equal.
func pick(n int, x float64, weight func(int) float64) int {
	sum := 0.0
	for i := range n {
		sum += weight(i)
	}
	if sum == 0 {
		return int(x * float64(n))
	}
	x *= sum
	for i := range n {
		if x -= weight(i); x < 0 {
			return i
		}
	}
	return n - 1
}

// write appends the whole request for an endpoint.
func (p *planner) write(dst []byte, ep *endpoint, j job, a attempt) []byte {
	end := p.form.end(j.stream)
	size := len(p.form.head) + j.prompt.tokens*bytesPerToken + len(end) + 1
	if j.client != "" {
		size += len(`,"user":""`) + len(j.client)
	}
	dst = append(append(dst, ep.line...), j.headers...)
	if j.stream {
		dst = append(dst, "Accept: text/event-stream\r\n"...)
	}
	if p.cfg.Client.Retries > 0 {
		dst = strconv.AppendInt(append(dst, "X-Stainless-Retry-Count: "...), int64(a.n), 10)
		dst = append(dst, "\r\n"...)
	}
	if p.cfg.Client.EchoTicket && a.ticket != "" {
		dst = append(append(append(dst, "X-Retry-Ticket: "...), a.ticket...), "\r\n"...)
	}
	dst = strconv.AppendInt(append(dst, "X-Engine-Output-Tokens: "...), int64(j.output), 10)
	dst = strconv.AppendInt(append(dst, "\r\nContent-Length: "...), int64(size), 10)
	dst = append(append(dst, "\r\n\r\n"...), p.form.head...)
	dst = append(p.scribe.text(dst, j.prompt), end...)
	if j.client != "" {
		dst = append(append(append(dst, `,"user":"`...), j.client...), '"')
	}
	return append(dst, '}')
}

// newEndpoint prepares a base URL. Like the official SDKs' base URL it holds
// the version; one without a path gets /v1.
func newEndpoint(raw string, s inference.Surface) (*endpoint, error) {
	u, err := parseURL(raw)
	if err != nil {
		return nil, err
	}
	ep := &endpoint{host: u.Host}
	if u.Scheme == "https" {
		ep.server = u.Hostname()
	}
	if u.Port() == "" {
		ep.host = hostPort(u)
	}
	base := strings.TrimSuffix(u.EscapedPath(), "/")
	if base == "" {
		base = "/v1"
	}
	path := base + strings.TrimPrefix(s.Path(), "/v1")
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	ep.line = fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\n", path, u.Host)
	return ep, nil
}

func hostPort(u *url.URL) string {
	if u.Scheme == "https" {
		return u.Host + ":443"
	}
	return u.Host + ":80"
}
