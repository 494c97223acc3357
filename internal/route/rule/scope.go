package rule

import (
	"net/http"
	"strings"
	"time"

	"github.com/expr-lang/expr/vm"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
)

// Request is what expressions see. Its names are those of the expressions.
type Request struct {
	Model        string `expr:"model"`         // as the client wrote it
	Path         string `expr:"path"`          // /v1/chat/completions
	Surface      string `expr:"surface"`       // chat, completions, embeddings, messages or responses
	Stream       bool   `expr:"stream"`        // the client wants events
	PromptTokens int    `expr:"prompt_tokens"` // estimated, at 4 bytes a token and 1000 an image
	MaxTokens    int    `expr:"max_tokens"`    // what the client allows; 0 is not said
	Images       int    `expr:"images"`        // in the prompt
	Messages     int    `expr:"messages"`      // number of messages
	BodyBytes    int    `expr:"body_bytes"`    // size of the body
	User         string `expr:"user"`          // the member user of the body
	Tenant       string `expr:"tenant"`        // who pays
	Key          string `expr:"key"`           // public name of the credential
	Class        string `expr:"class"`         // vip, normal, batch or idle
	IP           string `expr:"ip"`            // of the client, behind trusted proxies
	Retry        int    `expr:"retry"`         // which retry the client's SDK says this is

	Hour    int    `expr:"hour"`    // 0 to 23, UTC
	Minute  int    `expr:"minute"`  // 0 to 59
	Weekday string `expr:"weekday"` // mon, tue, wed, thu, fri, sat or sun, UTC

	Geo  route.Place `expr:"geo"`  // of the client's address
	Past Past        `expr:"past"` // of the tenant

	Header func(name string) string `expr:"header"` // first value of a header field; "" is none
}

// Past is how a tenant's requests were of late.
type Past struct {
	Requests     float64 `expr:"requests"`      // in the last hour, older ones fading
	OutputTokens float64 `expr:"output_tokens"` // mean of an answer
	ErrorShare   float64 `expr:"error_share"`   // 0 to 1, of what ended as it should not, the client's own leaving aside
	Spend        float64 `expr:"spend"`         // tokens in the last 24 hours
}

// needs says what a condition wants that costs something to find out.
type needs uint8

const (
	needsPlace needs = 1 << iota
	needsPast
	needsIP
	needsTime
)

// costly are the names of which needs depend.
var costly = map[string]needs{
	"geo": needsPlace, "past": needsPast, "ip": needsIP, "hour": needsTime, "minute": needsTime, "weekday": needsTime,
}

// maxText is how much, in bytes, expressions see of a text that clients choose: what a
// pattern costs grows with the text (60 ns a byte), and rules are asked before limits.
const maxText = 4 << 10

// cut bounds a text that clients choose.
func cut(s string) string { return s[:min(len(s), maxText)] }

// weekdays is indexed by time.Weekday.
var weekdays = [...]string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// scope is where expressions run, kept from one request to the next.
type scope struct {
	env    Request
	header http.Header
	vm     vm.VM
}

// newScope makes one.
func newScope() *scope {
	sc := &scope{}
	sc.env.Header = func(name string) string {
		return cut(sc.header.Get(name))
	}
	sc.vm.MemoryBudget = maxMemory
	return sc
}

// fill tells the scope about a request.
func (sc *scope) fill(now time.Time, req *inference.Request, parts Parts, n needs) {
	e := &sc.env
	sc.header = req.Header
	e.Model, e.Path, e.Surface, e.Stream = cut(req.Model), req.Surface.Path(), req.Surface.String(), req.Stream
	e.PromptTokens, e.MaxTokens, e.Images, e.Messages = int(req.PromptTokens()), int(req.MaxTokens), req.Images, req.Messages
	e.BodyBytes, e.User, e.Tenant, e.Key, e.Class, e.Retry = len(req.Body), cut(req.User), req.Tenant, req.Key, req.Class.String(), req.Retry
	if n&needsIP != 0 && req.ClientIP.IsValid() {
		e.IP = req.ClientIP.String()
	}
	if n&needsTime != 0 {
		utc := now.UTC()
		e.Hour, e.Minute, e.Weekday = utc.Hour(), utc.Minute(), weekdays[utc.Weekday()]
	}
	if n&needsPlace != 0 {
		e.Geo = parts.place(req.ClientIP)
	}
	if n&needsPast != 0 && parts.Behaviour != nil {
		e.Past = parts.Behaviour.Of(now, req.Tenant)
	}
}

// clear forgets the request, whose body must not be held.
func (sc *scope) clear() {
	header := sc.env.Header
	sc.env = Request{Header: header}
	sc.header = nil
}

// run evaluates a condition.
func (sc *scope) run(c *Condition) (bool, error) {
	v, err := sc.vm.Run(c.program, &sc.env)
	if err != nil {
		return false, err
	}
	b, _ := v.(bool)
	return b, nil
}

// Fields lists the names that expressions know, for documentation and messages.
func Fields() []string {
	return strings.Fields(`model path surface stream prompt_tokens max_tokens images messages body_bytes user tenant key class ip retry
		hour minute weekday geo.continent geo.country geo.region geo.city geo.asn geo.organization
		past.requests past.output_tokens past.error_share past.spend header("NAME")`)
}
