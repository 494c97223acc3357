package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/spillway/spillway/internal/fleet"
)

// Bounds on the learning of models.
const (
	learnEvery   = 30 * time.Second
	learnRetry   = time.Second // while no model is known
	learnTimeout = 5 * time.Second
	learnAtOnce  = 8 // instances asked at a time
	maxModels    = 4096
	maxModelName = 512
)

// learner asks a pool's instances which models they serve. It belongs to one
// goroutine.
type learner struct {
	m       *Monitor
	pool    string
	lists   map[string][]string // instance -> models that it listed last
	last    time.Time           // of the last step
	next    time.Time           // when every instance is asked again
	failing bool
}

// step asks the instances and tells the fleet the union of what they list. An
// instance that cannot be asked now keeps its last list: its models are out of
// reach for a while, which is another answer than "no such model". Between two
// rounds only instances that are new are asked, at most every learnRetry.
func (l *learner) step(ctx context.Context) time.Duration {
	p := l.m.pool(l.pool)
	if p == nil || !p.LearnModels {
		return time.Hour // this worker is about to be ended
	}
	now := time.Now()
	if early := learnRetry - now.Sub(l.last); early > 0 {
		return early
	}
	l.last = now
	if !now.Before(l.next) {
		l.next = now.Add(learnEvery)
	}
	err := errors.Join(l.ask(ctx, p, l.choose(now))...)
	if ctx.Err() != nil {
		return 0
	}
	if failing := err != nil; failing != l.failing {
		if l.failing = failing; failing {
			l.m.log.Warn("models cannot be learned from every instance", "pool", l.pool, "err", err)
		} else {
			l.m.log.Info("models are learned from every instance", "pool", l.pool)
		}
	}
	var union []string
	for _, list := range l.lists {
		union = append(union, list...)
	}
	slices.Sort(union)
	union = slices.Compact(union)
	if len(union) == 0 {
		return learnRetry // an instance without models is still loading them
	}
	l.m.fleet.Learn(l.pool, union[:min(len(union), maxModels)])
	return max(learnRetry, time.Until(l.next))
}

// choose lists the instances to ask, and drops the lists of those that left.
func (l *learner) choose(now time.Time) []job {
	full := l.next.Equal(now.Add(learnEvery))
	kept := make(map[string][]string)
	var jobs []job
	l.m.fleet.Snapshot().Instances(func(i *fleet.Instance) {
		if i.Pool.Name != l.pool {
			return
		}
		list, known := l.lists[i.Name]
		if known {
			kept[i.Name] = list
		}
		if (full || len(list) == 0) && i.Status(now.UnixNano()) != fleet.Down {
			jobs = append(jobs, job{pool: l.pool, name: i.Name, url: *i.URL})
		}
	})
	l.lists = kept
	return jobs
}

// ask updates the lists of the given instances.
func (l *learner) ask(ctx context.Context, p *pool, jobs []job) []error {
	var mu sync.Mutex // of l.lists and errs
	var errs []error
	places := make(chan struct{}, learnAtOnce)
	var wg sync.WaitGroup
	for _, j := range jobs {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			models, err := p.models(ctx, &j)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", j.name, err))
				return
			}
			l.lists[j.name] = models
		})
	}
	wg.Wait()
	return errs
}

// models asks one instance.
func (p *pool) models(ctx context.Context, j *job) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	res, err := p.send(ctx, j, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return nil, err
	}
	defer discard(res.Body)
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("/v1/models: status %d", res.StatusCode)
	}
	var listing struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxListing)).Decode(&listing); err != nil {
		return nil, fmt.Errorf("/v1/models: %w", err)
	}
	var names []string
	for _, m := range listing.Data {
		if m.ID != "" && len(m.ID) <= maxModelName {
			names = append(names, m.ID)
		}
	}
	return names, nil
}

// learnAgain asks a pool's instances now, because one of them came back.
func (m *Monitor) learnAgain(pool string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w := m.mu.kicks[pool]; w != nil {
		w.kick()
	}
}
