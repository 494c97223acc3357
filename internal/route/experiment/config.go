package experiment

import (
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/spillway/spillway/internal/route"
)

// Config is one member of `route.experiments`: a split of the traffic between arms
// that are compared, or a copy of a share of it.
type Config struct {
	// Name, unique among the experiments: lower-case letters, digits, `-` and `_`. It is part of the hash that assigns requests.
	Name string `yaml:"name"`
	// Which requests are part of it, in the language of `route.rules`. Empty is all. A request is part of one experiment at most: the first that takes it.
	When string `yaml:"when"`
	// What stays in one arm: `tenant`, `key` (of the API), `user` (of the request's body, in its tenant), `ip` (IPv6 by /64), `session` (the header field `header`) or `request`. Requests without it are not part of the experiment.
	By string `yaml:"by"`
	// The header field that names the session, with `by: session`.
	Header string `yaml:"header"`
	// The arms, at least two.
	Arms []Arm `yaml:"arms"`
	// The arm that the others are compared to. Empty is the first.
	Control string `yaml:"control"`
	// Share of the requests that are part of the experiment, by the time since it began. Who is in stays in. Empty is all of them from the beginning.
	Ramp []Step `yaml:"ramp"`
	// When the experiment ends by itself because an arm is worse than control.
	Guard Guard `yaml:"guard"`
	// Instead of arms: where a copy of each request goes whose answer is dropped.
	Mirror Mirror `yaml:"mirror"`
	// What arms are compared by: `success`, `ttft`, `itl`, `tokens`, `score`.
	Metrics []string `yaml:"metrics"`
	// Chance that any verdict of the experiment is wrong, over all arms and metrics together and however often one looks.
	Alpha float64 `yaml:"alpha"`
}

// Arm is one way to treat requests.
type Arm struct {
	// Name, unique in the experiment.
	Name string `yaml:"name"`
	// Share of the experiment's requests, relative to the other arms.
	Weight int `yaml:"weight"`
	// What is done to its requests. Empty leaves them as they are.
	Then route.Action `yaml:"then"`
}

// Step is one step of a ramp.
type Step struct {
	// Time since the experiment began.
	After time.Duration `yaml:"after"`
	// Share of the requests that are part of it from then on, above 0 and at most 1.
	Share float64 `yaml:"share"`
}

// Guard says when an experiment ends by itself: an arm is worse than control by at
// least so much, and it is certain that it is worse.
type Guard struct {
	// Increase of the share of requests that fail, or meet a server that breaks even if a retry saves them: 0.02 is two in a hundred more. 0 is no guard.
	ErrorRate float64 `yaml:"error_rate"`
	// Increase of the typical (geometric mean) time to the first token: 0.2 is a fifth more. 0 is no guard.
	TTFT float64 `yaml:"ttft"`
	// Fewest requests of the arm and of control.
	MinRequests int `yaml:"min_requests"`
	// Chance that an arm that is not worse ends the experiment, over all arms and both guards together, however long it runs.
	Alpha float64 `yaml:"alpha"`
}

// Mirror sends a copy of requests elsewhere.
type Mirror struct {
	// Where the copies go, and nowhere else: region or pools are needed, and strict is always true.
	To route.Action `yaml:"to"`
	// Share of the requests that are copied, above 0 and at most 1.
	Share float64 `yaml:"share"`
}

// set says whether a mirror is configured.
func (m *Mirror) set() bool { return m.Share != 0 || !m.To.Empty() }

// mirrorArm is the arm that the results of copies are recorded as.
const mirrorArm = "mirror"

// What requests can be assigned by.
const (
	byTenant  = "tenant"
	byKey     = "key"
	byUser    = "user"
	byIP      = "ip"
	bySession = "session"
	byRequest = "request"
)

// Default is an experiment that says nothing but its name and arms.
func Default() Config {
	return Config{
		By: byRequest, Metrics: []string{metricNames[success], metricNames[ttft], metricNames[itl], metricNames[tokens]}, Alpha: 0.05,
		Guard: Guard{ErrorRate: 0.02, TTFT: 0.2, MinRequests: 20, Alpha: 0.05},
	}
}

// UnmarshalYAML decodes over the defaults.
func (c *Config) UnmarshalYAML(decode func(any) error) error {
	type plain Config
	*c = Default()
	return decode((*plain)(c))
}

// UnmarshalYAML decodes over the default weight.
func (a *Arm) UnmarshalYAML(decode func(any) error) error {
	type plain Arm
	*a = Arm{Weight: 1}
	return decode((*plain)(a))
}

// Bounds of a configuration. Names are part of file names and of series.
const (
	maxExperiments = 64
	maxArms        = 16
	maxName        = 40
	maxWeight      = 1_000_000
	maxAlpha       = 0.25
)

// Validate returns every mistake of the experiments, each with its key in front. What
// conditions and the names in actions mean is not known here.
func Validate(all []Config) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(all) > maxExperiments {
		bad("experiments: at most %d, got %d", maxExperiments, len(all))
	}
	for i := range all {
		c, at := &all[i], fmt.Sprintf("experiments[%d]", i)
		errs = append(errs, under(at, c.validate())...)
		for j := range all[:i] {
			switch earlier := &all[j]; {
			case earlier.Name == c.Name && c.Name != "":
				bad("%s.name: %q is the name of experiments[%d] too", at, c.Name, j)
			case earlier.takesAll() && (strings.TrimSpace(earlier.When) == "" || sameText(earlier.When, c.When)):
				bad("%s: takes no request, because %q (experiments[%d]) takes all of them", at, earlier.Name, j)
			}
		}
	}
	return errors.Join(errs...)
}

// under puts a key in front of each of the mistakes.
func under(key string, errs []error) []error {
	for i, err := range errs {
		errs[i] = fmt.Errorf("%s.%w", key, err)
	}
	return errs
}

// sameText compares conditions but for blanks.
func sameText(a, b string) bool { return slices.Equal(strings.Fields(a), strings.Fields(b)) }

// takesAll says whether the experiment takes every request that its condition matches.
func (c *Config) takesAll() bool {
	switch {
	case c.By != byTenant && c.By != byRequest:
		return false
	case c.Mirror.set():
		return c.Mirror.Share >= 1
	}
	return len(c.Ramp) == 0 || c.Ramp[0].After == 0 && c.Ramp[0].Share >= 1
}

// validate returns the mistakes of one experiment.
func (c *Config) validate() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !goodName(c.Name) {
		bad("name: want 1 to %d lower-case letters, digits, - and _, got %q", maxName, c.Name)
	}
	switch c.By {
	case byTenant, byKey, byUser, byIP, byRequest:
		if c.Header != "" {
			bad("header: has no effect with by: %s", c.By)
		}
	case bySession:
		if !headerName(c.Header) {
			bad("header: must name the header field of the session, got %q", c.Header)
		}
	default:
		bad("by: want tenant, key, user, ip, session or request, got %q", c.By)
	}
	if c.Mirror.set() {
		errs = append(errs, c.validateMirror()...)
	} else {
		errs = append(errs, c.validateArms()...)
		errs = append(errs, validateRamp(c.Ramp)...)
		errs = append(errs, under("guard", c.Guard.validate())...)
	}
	for i, name := range c.Metrics {
		switch {
		case !slices.Contains(metricNames[:], name):
			bad("metrics[%d]: unknown metric %q; known are %s", i, name, strings.Join(metricNames[:], ", "))
		case slices.Contains(c.Metrics[:i], name):
			bad("metrics[%d]: %s is listed twice", i, name)
		}
	}
	if !(c.Alpha > 0 && c.Alpha <= maxAlpha) {
		bad("alpha: must be above 0 and at most %v, got %v", maxAlpha, c.Alpha)
	}
	return errs
}

// validateMirror returns the mistakes of an experiment that copies requests.
func (c *Config) validateMirror() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Arms) > 0 {
		bad("mirror: an experiment has arms or a mirror; use two")
	}
	if c.Mirror.To.Empty() {
		bad("mirror.to: is missing, so that copies would go where the requests go")
	} else if c.Mirror.To.Region == "" && len(c.Mirror.To.Pools) == 0 {
		bad("mirror.to: needs region or pools, so that copies go where the requests do not")
	} else if err := c.Mirror.To.Validate(); err != nil {
		errs = append(errs, under("mirror.to", lines(err))...)
	}
	if !share(c.Mirror.Share) {
		bad("mirror.share: must be above 0 and at most 1, got %v", c.Mirror.Share)
	}
	if c.Control != "" {
		bad("control: has no effect with a mirror")
	}
	if len(c.Ramp) > 0 {
		bad("ramp: has no effect with a mirror; its share is mirror.share")
	}
	return errs
}

// validateArms returns the mistakes of the arms.
func (c *Config) validateArms() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Arms) < 2 || len(c.Arms) > maxArms {
		bad("arms: want 2 to %d, or a mirror, got %d", maxArms, len(c.Arms))
	}
	names := make([]string, 0, len(c.Arms))
	for i := range c.Arms {
		a := &c.Arms[i]
		switch {
		case !goodName(a.Name):
			bad("arms[%d].name: want 1 to %d lower-case letters, digits, - and _, got %q", i, maxName, a.Name)
		case a.Name == mirrorArm:
			bad("arms[%d].name: %q is what copies are recorded as", i, mirrorArm)
		case slices.Contains(names, a.Name):
			bad("arms[%d].name: %q is listed twice", i, a.Name)
		}
		names = append(names, a.Name)
		if a.Weight < 1 || a.Weight > maxWeight {
			bad("arms[%d].weight: must be 1 to %d, got %d", i, maxWeight, a.Weight)
		}
		if err := a.Then.Validate(); err != nil {
			errs = append(errs, under(fmt.Sprintf("arms[%d].then", i), lines(err))...)
		}
	}
	if c.Control != "" && !slices.Contains(names, c.Control) {
		bad("control: %q is none of the arms %s", c.Control, strings.Join(names, ", "))
	}
	return errs
}

// validateRamp returns the mistakes of a ramp.
func validateRamp(ramp []Step) (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for i, s := range ramp {
		if s.After < 0 {
			bad("ramp[%d].after: must not be negative, got %v", i, s.After)
		}
		if !share(s.Share) {
			bad("ramp[%d].share: must be above 0 and at most 1, got %v", i, s.Share)
		}
		if i == 0 {
			continue
		}
		if before := ramp[i-1]; s.After <= before.After {
			bad("ramp[%d].after: must be later than %v, got %v", i, before.After, s.After)
		} else if s.Share <= before.Share {
			bad("ramp[%d].share: must be more than %v, got %v", i, before.Share, s.Share)
		}
	}
	return errs
}

// validate returns the mistakes of a guard.
func (g *Guard) validate() (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !(g.ErrorRate >= 0 && g.ErrorRate < 1) {
		bad("error_rate: must be 0 (no guard) to below 1, got %v", g.ErrorRate)
	}
	if !(g.TTFT >= 0 && g.TTFT <= 100) {
		bad("ttft: must be 0 (no guard) to 100, got %v", g.TTFT)
	}
	if g.MinRequests < leastGuard {
		bad("min_requests: must be at least %d, got %d", leastGuard, g.MinRequests)
	}
	if !(g.Alpha > 0 && g.Alpha <= maxAlpha) {
		bad("alpha: must be above 0 and at most %v, got %v", maxAlpha, g.Alpha)
	}
	return errs
}

// share says whether a number is a share that takes something.
func share(f float64) bool { return f > 0 && f <= 1 }

// lines takes joined errors apart.
func lines(err error) (errs []error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		errs = append(errs, errors.New(line))
	}
	return errs
}

// goodName says whether a name can stand in a file name and in a series.
func goodName(s string) bool {
	return s != "" && len(s) <= maxName && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// headerName says whether a name can be that of a header field.
func headerName(s string) bool {
	return s != "" && !strings.ContainsFunc(textproto.CanonicalMIMEHeaderKey(s), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}
