package app

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
	"github.com/spillway/spillway/internal/route/geo"
	"github.com/spillway/spillway/internal/route/rule"
)

// steering is what decides before the tiers, with what it knows.
type steering struct {
	places      *geo.Databases
	behaviour   *rule.Behaviour
	rules       atomic.Pointer[rule.Set]
	failed      atomic.Int64 // expressions of rules that were replaced
	experiments *experiment.Set
	counts      sync.Map // of *atomic.Int64, by rule; a rule that is gone keeps its own
}

// maxTenants bounds the tenants whose behaviour is known.
const maxTenants = 100_000

// newSteering builds it. It starts nothing.
func newSteering(file *config.File, keep experiment.Keep, log *slog.Logger) (*steering, error) {
	s := &steering{places: geo.New(file.Route.Geo, log), behaviour: rule.NewBehaviour(maxTenants)}
	if err := s.applyRules(file); err != nil {
		return nil, err
	}
	var err error
	s.experiments, err = experiment.New(file.Route.Experiments, experiment.Parts{Compile: s.compile, Keep: keep, Log: log})
	if err != nil {
		return nil, fmt.Errorf("route: %w", err)
	}
	return s, nil
}

// applyRules replaces the rules, or changes nothing.
func (s *steering) applyRules(file *config.File) error {
	parts := rule.Parts{Places: s.places, Behaviour: s.behaviour, DefaultRegion: file.Route.Geo.DefaultRegion, Count: s.count}
	set, err := rule.New(file.Route.Rules, parts)
	if err != nil {
		return err
	}
	if old := s.rules.Swap(set); old != nil {
		s.failed.Add(old.Failed())
	}
	return nil
}

// count is where the decisions of a rule are counted, over reloads.
func (s *steering) count(rule string) *atomic.Int64 {
	n, _ := s.counts.LoadOrStore(rule, new(atomic.Int64))
	return n.(*atomic.Int64)
}

// ruleDescs names the metrics of rules.
func ruleDescs() (decisions, failures *prometheus.Desc) {
	return prometheus.NewDesc("spillway_route_rule_decisions_total", "Requests that a rule has decided, or had a part in.", []string{"rule"}, nil),
		prometheus.NewDesc("spillway_route_rule_failures_total", "Expressions of rules that failed on a request, and counted as not true.", nil, nil)
}

// Describe implements prometheus.Collector.
func (s *steering) Describe(ch chan<- *prometheus.Desc) {
	decisions, failures := ruleDescs()
	ch <- decisions
	ch <- failures
}

// Collect implements prometheus.Collector.
func (s *steering) Collect(ch chan<- prometheus.Metric) {
	decisions, failures := ruleDescs()
	s.counts.Range(func(rule, n any) bool {
		ch <- prometheus.MustNewConstMetric(decisions, prometheus.CounterValue, float64(n.(*atomic.Int64).Load()), rule.(string))
		return true
	})
	ch <- prometheus.MustNewConstMetric(failures, prometheus.CounterValue, float64(s.failures()))
}

// failures is how many expressions have failed at run time.
func (s *steering) failures() int64 { return s.failed.Load() + s.rules.Load().Failed() }

// Steer implements route.Steering by the rules in force.
func (s *steering) Steer(now time.Time, req *inference.Request) route.Decision {
	return s.rules.Load().Steer(now, req)
}

// compile makes a condition of an experiment.
func (s *steering) compile(text string) (experiment.Condition, error) {
	c, err := rule.Compile(text)
	if err != nil {
		return nil, err
	}
	return condition{s, c}, nil
}

// condition is an experiment's, with what the rules know.
type condition struct {
	steering *steering
	*rule.Condition
}

// Match implements experiment.Condition.
func (c condition) Match(now time.Time, req *inference.Request) bool {
	return c.steering.rules.Load().Match(c.Condition, now, req)
}
