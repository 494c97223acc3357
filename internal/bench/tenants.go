package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spillway/spillway/internal/load"
	"github.com/spillway/spillway/internal/usage/ledger"
)

// The load of `bench tenants`: the clients of the arena trace, each with a key whose
// tokens a minute are its weight times a base. The trace is played fast enough for
// many of them to want more than that.
const (
	arenaTenants  = 27
	arenaSpeed    = 40.0
	arenaBase     = 8000 // tokens a minute for each weight
	arenaWeights  = 3    // weights are 1 to 3 in turn
	arenaLimited  = 0.5  // share of the requests of a tenant that clearly wants more than it may have that are refused
	arenaFewest   = 8    // tenants of which that must be so
	arenaSlack    = 0.1  // of what such a tenant may use that it may leave: the next request does not fit
	arenaNameHead = "dummy-lora-7b-rank-8-"
)

// arenaQuota is the tokens a minute of a tenant.
func arenaQuota(i int) int64 { return arenaBase * int64(1+i%arenaWeights) }

// playTenants sends a trace of 27 clients through keys of 27 tenants.
func playTenants(ctx context.Context, r *rig) error {
	var err error
	if r.engines, err = startEngines(ctx, r.Binary, 2, r.Err, "--step-base", "2ms", "--step-per-seq", "10us", "--max-seqs", "512"); err != nil {
		return err
	}
	keys, tenants := arenaKeys()
	if err := os.WriteFile(r.path("keys"), keys, 0o600); err != nil {
		return err
	}
	if err := r.serve(ctx, "identity: {keys_file: "+r.path("keys")+"}", poolOf("gpu", r.engines.urls())); err != nil {
		return err
	}
	cfg := r.config("tenants", 0, r.Duration)
	cfg.Schedule.Trace.Path, cfg.Schedule.Trace.Speed = arenaPath, arenaSpeed
	cfg.Schedule.Rate = 0
	cfg.Request.Streamed, cfg.Request.IncludeUsage = 1, true
	cfg.Tenants = tenants
	r.say("%d tenants with limits of %d, %d and %d tokens a minute, for %v", arenaTenants, arenaQuota(0), arenaQuota(1), arenaQuota(2), r.Duration)
	systems, err := r.play(ctx, job{cfg: cfg, files: arena})
	if err != nil {
		return err
	}
	spent, err := r.spent(ctx, func(e ledger.Entry) string { return e.Tenant })
	if err != nil {
		return err
	}
	r.judgeTenants(systems[0], spent)
	return r.expectZero(ctx)
}

// judgeTenants compares what each tenant used with what it may use: its limit's
// minute at once, and its rate from then on.
func (r *rig) judgeTenants(s load.System, spent map[string]ledger.Amount) {
	limited, least, most := 0, 1.0, 0.0
	for i := range arenaTenants {
		name := arenaNameHead + strconv.Itoa(i)
		g := s.Tenants[name]
		may := float64(arenaQuota(i)) * (1 + s.DurationS/60)
		used := float64(spent[name].Tokens()) / may
		refused := float64(g.Errors["rate_limit_exceeded"]) / float64(max(1, g.Offered))
		r.say("%-26s may use %6.0f tokens, used %.3f of them; %4d requests, %.2f refused", name, may, used, g.Offered, refused)
		most = max(most, used)
		if refused >= arenaLimited {
			limited++
			least = min(least, used)
		}
	}
	r.expect("tenants whose limit decided", float64(limited), AtLeast, arenaFewest, "")
	r.expect("least share of its limit that such a tenant used", least, AtLeast, 1-arenaSlack, "")
	r.expect("most that any tenant used", most, AtMost, 1.05, "")
	r.expect("failures that are no tenant's own limit", float64(failures(s, "rate_limit_exceeded")), Exactly, 0, "")
}

// arenaKeys are the keys of the trace's clients, as a file and for the load.
func arenaKeys() (file []byte, tenants []load.Tenant) {
	for i := range arenaTenants {
		name := arenaNameHead + strconv.Itoa(i)
		key := "sw-bench-" + name
		file = fmt.Appendf(file, "%x %s normal tpm=%d\n", sha256.Sum256([]byte(key)), name, arenaQuota(i))
		tenants = append(tenants, load.Tenant{Name: name, Share: 1, APIKey: key})
	}
	return file, tenants
}

// poolOf is a pool of instances in the configuration.
func poolOf(name string, urls []string, more ...string) string {
	return fmt.Sprintf("        - {name: %s, policy: least_request, models: [%s], %s}\n", name, model, strings.Join(append([]string{list("instances", urls)}, more...), ", "))
}

// serve starts a gateway with sections of its own and pools in one region.
func (r *rig) serve(ctx context.Context, sections string, pools ...string) error {
	g, err := newGatewayProcess(r)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("usage: {access_log: %q}\ntelemetry: {log: {level: error}}\ncache: {enabled: false}\nstore: {directory: %q}\n%s\nfleet:\n  regions:\n    - name: eu\n      pools:\n%s",
		g.accessLog, filepath.Join(filepath.Dir(g.config), "state"), sections, strings.Join(pools, ""))
	if err := replaceFile(g.config, []byte(text)); err != nil {
		return err
	}
	r.gateway = g
	return g.launch(ctx)
}

// spent reads the ledger of today and yesterday, when it does not change any more.
func (r *rig) spent(ctx context.Context, by func(ledger.Entry) string) (map[string]ledger.Amount, error) {
	var sums map[string]ledger.Amount
	var before int64 = -1
	url := r.gateway.admin + "/admin/usage?from=" + time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly)
	return sums, settled(ctx, func() (bool, error) {
		if err := pause(ctx, 1500*time.Millisecond); err != nil { // a flush comes each second
			return false, err
		}
		text, err := r.gateway.get(ctx, url)
		if err != nil {
			return false, err
		}
		var page struct{ Entries []ledger.Entry }
		if err := json.Unmarshal(text, &page); err != nil {
			return false, err
		}
		sums = make(map[string]ledger.Amount)
		var total int64
		for _, e := range page.Entries {
			a := sums[by(e)]
			a.Requests, a.Prompt, a.Output = a.Requests+e.Requests, a.Prompt+e.Prompt, a.Output+e.Output
			sums[by(e)] = a
			total += e.Tokens()
		}
		same := total == before
		before = total
		return same, nil
	})
}

// The load of `bench refunds`.
const (
	refundLeave  = 0.3    // of the clients leave before the end
	refundTokens = 60     // of an answer
	refundBurst  = 85_000 // tokens of the bucket, of which less than one comes back in a minute
	refundKey    = "sw-bench-refunds"
)

// playRefunds lets clients leave at random and compares what was streamed with the
// ledger, the access log and the bucket.
func playRefunds(ctx context.Context, r *rig) error {
	var err error
	if r.engines, err = startEngines(ctx, r.Binary, 2, r.Err, "--step-base", "2ms", "--step-per-seq", "10us", "--max-seqs", "512"); err != nil {
		return err
	}
	file := fmt.Appendf(nil, "%x acme normal\n", sha256.Sum256([]byte(refundKey)))
	if err := os.WriteFile(r.path("keys"), file, 0o600); err != nil {
		return err
	}
	sections := fmt.Sprintf("identity: {keys_file: %s}\nlimit: {rules: [{name: tokens, by: [tenant], tokens: {rate: 10/h, burst: %d}}]}", r.path("keys"), refundBurst)
	if err := r.serve(ctx, sections, poolOf("gpu", r.engines.urls())); err != nil {
		return err
	}
	r.say("%d streams of %d tokens, of whose clients %.0f%% leave at a random token", r.Count, refundTokens, 100*refundLeave)
	before, _, err := r.probe(ctx)
	if err != nil {
		return err
	}
	seen, left, err := r.streamAndLeave(ctx)
	if err != nil {
		return err
	}
	if err := r.expectZero(ctx); err != nil {
		return err
	}
	spent, err := r.spent(ctx, func(ledger.Entry) string { return "" })
	if err != nil {
		return err
	}
	logged, requests, err := r.logged()
	if err != nil {
		return err
	}
	after, _, err := r.probe(ctx)
	if err != nil {
		return err
	}
	r.expect("clients that left", float64(left), AtLeast, refundLeave*float64(r.Count)*0.8, "")
	r.expect("requests in the ledger", float64(spent[""].Requests), Exactly, float64(requests), "")
	r.expect("tokens in the ledger, of those in the access log", float64(spent[""].Tokens()), Exactly, float64(logged), "")
	r.expect("tokens gone from the bucket, of those in the ledger", float64(before-after), Exactly, float64(spent[""].Tokens()), "")
	beyond := spent[""].Output - seen - 1 // the probe's
	r.expect("output tokens in the ledger beyond those that clients saw", float64(beyond), AtLeast, 0, "")
	r.expect("such tokens, which left with the clients, for each that left", float64(beyond)/float64(max(1, left)), AtMost, refundTokens/4, "")
	return nil
}

// streamAndLeave sends the streams, 32 at a time, and counts the tokens that clients
// saw and the clients that left.
func (r *rig) streamAndLeave(ctx context.Context) (seen, left int64, err error) {
	var tokens, gone atomic.Int64
	var wg sync.WaitGroup
	slots, errs := make(chan struct{}, 32), make(chan error, r.Count)
	draws := rand.New(rand.NewPCG(r.Seed, 5))
	for range r.Count {
		leaveAt := refundTokens + 10
		if draws.Float64() < refundLeave {
			leaveAt = 1 + draws.IntN(refundTokens/2)
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			n, err := r.readTokens(ctx, leaveAt)
			if err != nil {
				errs <- err
				return
			}
			tokens.Add(int64(n))
			if leaveAt <= refundTokens {
				gone.Add(1)
			}
		})
	}
	wg.Wait()
	close(errs)
	return tokens.Load(), gone.Load(), <-errs // the first, or nil
}

// keyed sends a request with the key.
func (r *rig) keyed(ctx context.Context, stream bool, tokens int) (*http.Response, error) {
	usage := ""
	if stream {
		usage = `"stream_options":{"include_usage":true},`
	}
	body := fmt.Appendf(nil, `{"model":%q,"stream":%t,"max_tokens":%d,%s"messages":[{"role":"user","content":"hello"}]}`, model, stream, tokens, usage)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.gateway.url+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+refundKey)
	req.Header.Set("X-Engine-Output-Tokens", strconv.Itoa(tokens))
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	if err == nil && res.StatusCode != http.StatusOK {
		res.Body.Close()
		err = fmt.Errorf("status %d", res.StatusCode)
	}
	return res, err
}

// readTokens reads a stream up to its end or so many tokens, and leaves.
func (r *rig) readTokens(ctx context.Context, most int) (n int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	res, err := r.keyed(ctx, true, refundTokens)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); n < most && lines.Scan(); {
		if strings.Contains(lines.Text(), `"content":"`) && !strings.Contains(lines.Text(), `"content":""`) {
			n++
		}
	}
	return n, nil
}

// logged sums the tokens of the access log.
func (r *rig) logged() (tokens, requests int64, err error) {
	data, err := os.ReadFile(r.gateway.accessLog)
	if err != nil {
		return 0, 0, err
	}
	for line := range bytes.Lines(data) {
		var e struct {
			Prompt int64 `json:"prompt_tokens"`
			Output int64 `json:"completion_tokens"`
		}
		if err := json.Unmarshal(line, &e); err != nil {
			return 0, 0, err
		}
		if e.Prompt+e.Output > 0 {
			tokens, requests = tokens+e.Prompt+e.Output, requests+1
		}
	}
	return tokens, requests, nil
}

// probe sends a short request: what the bucket has left beside what it has reserved
// itself, and what it has cost.
func (r *rig) probe(ctx context.Context) (left, cost int64, err error) {
	res, err := r.keyed(ctx, false, 1)
	if err != nil {
		return 0, 0, err
	}
	defer res.Body.Close()
	var answer struct {
		Usage struct {
			Total int64 `json:"total_tokens"`
		}
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return 0, 0, err
	}
	left, err = strconv.ParseInt(res.Header.Get("X-Ratelimit-Remaining-Tokens"), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("what is left of the bucket: %w", err)
	}
	return left, answer.Usage.Total, nil
}
