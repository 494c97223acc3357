package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/spillway/spillway/internal/route/experiment"
	"github.com/spillway/spillway/internal/usage/ledger"
)

// Routes says where requests go.
type Routes interface {
	// Explain says where a request would go now. Its error is an *inference.Error, which
	// comes with the answer as far as it goes and is in it, too; or it says what is wrong
	// with the question.
	Explain(ctx context.Context, q RouteQuestion) (*RouteAnswer, error)
}

// RouteQuestion is a request that is not sent, as POST /admin/route/explain takes it.
type RouteQuestion struct {
	Surface string            `json:"surface"` // chat when it is empty
	Tenant  string            `json:"tenant"`
	Key     string            `json:"key"`
	Class   string            `json:"class"` // normal when it is empty
	IP      string            `json:"ip"`
	Headers map[string]string `json:"headers"`
	Body    json.RawMessage   `json:"body"`
}

// RouteAnswer is what becomes of it, tier by tier.
type RouteAnswer struct {
	Model      string            `json:"model"`                 // that is asked for
	Asked      string            `json:"asked_model,omitempty"` // by the client, where it is another
	Class      string            `json:"class"`
	Headers    []string          `json:"headers,omitempty"` // that rules set or take out
	Place      string            `json:"place,omitempty"`   // of the client
	Rules      []RouteRule       `json:"rules"`
	Rule       string            `json:"rule,omitempty"` // that decided
	Experiment string            `json:"experiment,omitempty"`
	Arm        string            `json:"arm,omitempty"`
	Drawn      []experiment.Draw `json:"drawn,omitempty"`  // experiments that draw for each request; all else is without them
	Mirror     string            `json:"mirror,omitempty"` // pool that would get a copy
	Steps      []RouteStep       `json:"steps"`
	Error      string            `json:"error,omitempty"` // why it goes nowhere
}

// RouteRule is what one rule says.
type RouteRule struct {
	Name  string `json:"name"`
	When  string `json:"when"`
	True  bool   `json:"true"`
	Error string `json:"error,omitempty"`
}

// RouteStep is one region, pool or instance, in the order in which they would be
// tried.
type RouteStep struct {
	Node     string `json:"node"` // region, region/pool or region/pool/instance
	Policy   string `json:"policy,omitempty"`
	Affinity string `json:"affinity,omitempty"`
	Fallback string `json:"fallback,omitempty"` // the model that stands in
	Status   string `json:"status"`
	Backup   bool   `json:"backup,omitempty"`
	Load     int64  `json:"load"`   // requests
	Tokens   int64  `json:"tokens"` // of prompts, outstanding
	Chosen   bool   `json:"chosen,omitempty"`
}

// maxQuestion bounds a request that is explained, in bytes.
const maxQuestion = 32 << 20

// explainRoute answers POST /admin/route/explain.
func (s *Server) explainRoute(w http.ResponseWriter, r *http.Request) {
	body, p := readUpTo(w, r, maxQuestion)
	if p != nil {
		p.write(w)
		return
	}
	var q RouteQuestion
	err := json.Unmarshal(body, &q)
	var answer *RouteAnswer
	if err == nil {
		answer, err = s.parts.Routes.Explain(r.Context(), q)
	}
	if answer == nil {
		p := problem{http.StatusBadRequest, codeInvalidRequest, err.Error()}
		p.write(w)
		return
	}
	writeJSON(w, http.StatusOK, answer)
}

// Ledger is what was spent.
type Ledger interface {
	// Entries lists what was spent from one day to another, both included.
	Entries(ctx context.Context, from, to time.Time) ([]ledger.Entry, error)
}

// usage answers GET /admin/usage?from=2026-11-01&to=2026-11-30; without them it is
// today's.
func (s *Server) usage(w http.ResponseWriter, r *http.Request) {
	today := time.Now().UTC().Format(time.DateOnly)
	var days [2]time.Time
	for i, name := range []string{"from", "to"} {
		text := r.URL.Query().Get(name)
		if text == "" {
			text = today
		}
		var err error
		if days[i], err = time.Parse(time.DateOnly, text); err != nil {
			p := problem{http.StatusBadRequest, codeInvalidRequest, fmt.Sprintf("%s: want a day such as %s", name, today)}
			p.write(w)
			return
		}
	}
	entries, err := s.parts.Ledger.Entries(r.Context(), days[0], days[1])
	if err != nil {
		p := problem{http.StatusServiceUnavailable, codeUnavailable, err.Error()}
		p.write(w)
		return
	}
	if entries == nil {
		entries = []ledger.Entry{}
	}
	writeJSON(w, http.StatusOK, map[string]any{"from": days[0].Format(time.DateOnly), "to": days[1].Format(time.DateOnly), "entries": entries})
}
