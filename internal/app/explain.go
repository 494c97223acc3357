package app

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/admin"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/wire"
)

// Explain implements admin.Routes. It works on a gateway that does not run, too.
func (a *App) Explain(ctx context.Context, q admin.RouteQuestion) (*admin.RouteAnswer, error) {
	req, err := a.question(q)
	if err != nil {
		return nil, err
	}
	rules := a.steering.rules.Load()
	answer := &admin.RouteAnswer{Rules: []admin.RouteRule{}, Steps: []admin.RouteStep{}}
	for _, t := range rules.Explain(time.Now(), req) {
		r := admin.RouteRule{Name: t.Name, When: t.When, True: t.True}
		if t.Error != nil {
			r.Error, _, _ = strings.Cut(t.Error.Error(), "\n")
		}
		answer.Rules = append(answer.Rules, r)
	}
	p := rules.Place(req)
	answer.Place = strings.Join(slices.DeleteFunc([]string{p.Continent, p.Country, p.Region, p.City, p.Organization}, func(s string) bool { return s == "" }), ", ")
	plan, steps, err := a.router.Explain(ctx, req)
	if err != nil {
		answer.Error = err.Error()
	}
	answer.Rule, answer.Experiment, answer.Arm = plan.Rule, plan.Arm.Experiment, plan.Arm.Arm
	answer.Model, answer.Asked, answer.Class = plan.Request.Model, plan.Request.Asked, plan.Request.Class.String()
	steered := plan.Request // by rules, and by an arm that it is in behind those that are drawn
	if plan.Rule == "" {
		steered = req
	}
	answer.Drawn = a.steering.experiments.Drawn(time.Now(), steered)
	answer.Headers = changed(req.Header, plan.Request.Header)
	if plan.Mirror != nil && len(plan.Mirror.Candidates) > 0 {
		answer.Mirror = plan.Mirror.Candidates[0].Pool.Name
	}
	for _, s := range steps {
		answer.Steps = append(answer.Steps, admin.RouteStep{
			Node: s.Node, Policy: s.Policy, Affinity: s.Affinity, Fallback: s.Fallback, Status: s.Status.String(),
			Backup: s.Backup, Load: s.Load, Tokens: s.Tokens, Chosen: s.Chosen,
		})
	}
	return answer, err
}

// Preview implements route.Preview by the rules in force.
func (s *steering) Preview(now time.Time, req *inference.Request) route.Decision {
	return s.rules.Load().Preview(now, req)
}

// question makes the request that is asked about.
func (a *App) question(q admin.RouteQuestion) (*inference.Request, error) {
	req := &inference.Request{
		ID: "explain", Received: time.Now(), Tenant: q.Tenant, Key: q.Key, Header: make(http.Header), Body: q.Body,
	}
	req.Deadline = req.Received.Add(a.gateway.Timeout())
	if req.Tenant == "" {
		req.Tenant = inference.Anonymous
	}
	var ok bool
	if req.Surface, ok = inference.ParseSurface(q.Surface); !ok && q.Surface != "" {
		return nil, fmt.Errorf("surface: unknown surface %q; known are %v", q.Surface, inference.Surfaces())
	}
	if req.Class, ok = inference.ParseClass(q.Class); !ok && q.Class != "" {
		return nil, fmt.Errorf("class: unknown class %q; known are vip, normal and batch", q.Class)
	}
	if q.IP != "" {
		ip, err := netip.ParseAddr(q.IP)
		if err != nil {
			return nil, fmt.Errorf("ip: %w", err)
		}
		req.ClientIP = ip.Unmap()
	}
	for name, value := range q.Headers {
		req.Header.Set(name, value)
	}
	fields, err := wire.ScanRequest(req.Surface, req.Body)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	req.Fields = fields
	return req, nil
}

// changed lists the fields that differ.
func changed(a, b http.Header) (names []string) {
	all := maps.Clone(a)
	maps.Copy(all, b)
	for name := range all {
		if !slices.Equal(a[name], b[name]) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
