package admission_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/spillway/spillway/internal/admission"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/store"
	"github.com/spillway/spillway/internal/testkit"
)

// memoryKeeper keeps in memory, until it is told to fail.
type memoryKeeper struct {
	mu    sync.Mutex
	files map[string]string
	fail  error
}

func (k *memoryKeeper) Read(name string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	text, ok := k.files[name]
	if k.fail != nil {
		return nil, k.fail
	}
	if !ok {
		return nil, fs.ErrNotExist
	}
	return []byte(text), nil
}

func (k *memoryKeeper) Write(name string, data []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	if k.files == nil {
		k.files = make(map[string]string)
	}
	k.files[name] = string(data)
	return nil
}

func (k *memoryKeeper) Remove(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail == nil {
		delete(k.files, name)
	}
	return k.fail
}

// kept is a copy of what is kept.
func (k *memoryKeeper) kept() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.files)
}

// auditLine is what is looked for in a line of the log.
type auditLine struct {
	Level, Msg, Component, Event     string
	By, From, Reason, Shed, Brownout string
	Since, Until                     time.Time
	Err                              string
}

// lines reads a log of JSON lines.
func lines(t testing.TB, log *testkit.Log) (all []auditLine) {
	t.Helper()
	for text := range strings.Lines(log.String()) {
		var l auditLine
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		all = append(all, l)
	}
	return all
}

// messages are the levels and messages of a log.
func messages(t testing.TB, log *testkit.Log) (all []string) {
	t.Helper()
	for _, l := range lines(t, log) {
		all = append(all, l.Level+" "+l.Msg)
	}
	return all
}

// newSwitch makes a switch with the default profile.
func newSwitch(t testing.TB, keep admission.Keeper) (*admission.Emergency, *testkit.Log) {
	t.Helper()
	log := new(testkit.Log)
	e, err := admission.NewEmergency(admission.DefaultEmergency(), keep, slog.New(slog.NewJSONHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return e, log
}

// settle lets a switch do what it does in its own time: Run looks once, and ends.
func settle(t testing.TB, e *admission.Emergency) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := e.Run(ctx); err != nil {
		t.Error(err)
	}
}

// alice gives the orders.
var alice = admission.Operator{Name: "alice", From: "10.0.0.7:4711"}

// same compares states; a profile by what it says.
func same(t testing.TB, got, want admission.EmergencyState) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(admission.Profile{}), cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
}

// everyday is the state of a switch with the default profile that is off.
func everyday() admission.EmergencyState {
	return admission.EmergencyState{Profile: &admission.Profile{Shed: []inference.Class{inference.Batch}, StandbyPools: true, Brownout: admission.StepCapTokens}}
}

func TestSteps(t *testing.T) {
	for i, s := range admission.Steps() {
		if got, ok := admission.ParseStep(s.String()); got != s || !ok || int(s) != i {
			t.Errorf("%v at %d is read as %v, %v", s, i, got, ok)
		}
	}
	for _, name := range []string{"", "reject", "unknown", "None"} {
		if got, ok := admission.ParseStep(name); ok || got != admission.StepNone {
			t.Errorf("%q is read as %v", name, got)
		}
	}
	if got := admission.Step(99).String(); got != "unknown" {
		t.Errorf("got %q", got)
	}
}

func TestEmergencyConfig(t *testing.T) {
	tests := map[string]struct {
		change func(*admission.EmergencyConfig)
		want   []string // how the mistakes begin
	}{
		"default":        {func(*admission.EmergencyConfig) {}, nil},
		"nothing shed":   {func(c *admission.EmergencyConfig) { c.Shed = nil }, nil},
		"normal too":     {func(c *admission.EmergencyConfig) { c.Shed = []string{"batch", "normal"} }, nil},
		"all day":        {func(c *admission.EmergencyConfig) { c.Expiry = 24 * time.Hour }, nil},
		"vip":            {func(c *admission.EmergencyConfig) { c.Shed = []string{"batch", "vip"} }, []string{"emergency.shed[1]: vip"}},
		"unknown class":  {func(c *admission.EmergencyConfig) { c.Shed = []string{"idle"} }, []string{`emergency.shed[0]: unknown class "idle"; known are`}},
		"twice":          {func(c *admission.EmergencyConfig) { c.Shed = []string{"batch", "batch"} }, []string{"emergency.shed[1]: batch is listed twice"}},
		"unknown step":   {func(c *admission.EmergencyConfig) { c.Brownout = "reject" }, []string{`emergency.brownout: unknown step "reject"; known are [none yield cap_tokens cheaper_model]`}},
		"over a day":     {func(c *admission.EmergencyConfig) { c.Expiry = 24*time.Hour + 1 }, []string{"emergency.expiry: "}},
		"no time":        {func(c *admission.EmergencyConfig) { c.Expiry = 0 }, []string{"emergency.expiry: "}},
		"all that there": {func(c *admission.EmergencyConfig) { *c = admission.EmergencyConfig{Shed: []string{"x"}} }, []string{"emergency.shed[0]: ", "emergency.brownout: ", "emergency.expiry: "}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := admission.DefaultEmergency()
			tt.change(&c)
			var got []string
			err := c.Validate()
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if _, again := admission.NewEmergency(c, nil, slog.New(slog.DiscardHandler)); (again != nil) != (err != nil) {
				t.Errorf("validate says %v, new says %v", err, again)
			}
		})
	}
}

func TestProfileSheds(t *testing.T) {
	tests := map[string]struct{ shed, want []string }{
		"nothing":          {nil, nil},
		"batch, and idle":  {[]string{"batch"}, []string{"batch", "idle"}},
		"normal alone":     {[]string{"normal"}, []string{"normal"}},
		"all but the vips": {[]string{"batch", "normal"}, []string{"normal", "batch", "idle"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := admission.DefaultEmergency()
			c.Shed = tt.shed
			e, err := admission.NewEmergency(c, nil, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, class := range []inference.Class{inference.VIP, inference.Normal, inference.Batch, inference.Idle, 17} {
				if e.State(time.Now()).Profile.Sheds(class) {
					got = append(got, class.String())
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestEmergencyOrders switches on, changes the order, and switches off, as an
// operator does.
func TestEmergencyOrders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keep := new(memoryKeeper)
		e, log := newSwitch(t, keep)
		start := time.Now()
		same(t, e.State(start), everyday())
		if e.Profile(start) != nil {
			t.Error("a new switch applies a profile")
		}
		want := everyday()
		want.On, want.Since, want.Until, want.By, want.Reason = true, start, start.Add(time.Hour), alice, "two racks lost"
		got, err := e.On(start, alice, "two racks lost", 0)
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
		same(t, e.State(start), want)
		if p := e.Profile(start); p == nil || !p.Sheds(inference.Batch) || p.Sheds(inference.VIP) || !p.StandbyPools || p.Brownout != admission.StepCapTokens {
			t.Errorf("got profile %+v", p)
		}
		time.Sleep(10 * time.Minute)
		bob, now := admission.Operator{Name: "bob"}, time.Now()
		want.Until, want.By, want.Reason = now.Add(5*time.Minute), bob, "" // shorter, and since the beginning
		if got, err = e.On(now, bob, "", 5*time.Minute); err != nil {
			t.Fatal(err)
		}
		same(t, got, want)
		for range 2 { // the second is heard, and changes nothing
			if got, err = e.Off(now, alice); err != nil {
				t.Fatal(err)
			}
			same(t, got, everyday())
		}
		if e.Profile(now) != nil || len(keep.kept()) != 0 {
			t.Errorf("off: got profile %v, kept %v", e.Profile(now), keep.kept())
		}
		audit := []auditLine{
			{"WARN", "emergency mode is on", "admission", "emergency", "alice", "10.0.0.7:4711", "two racks lost", "[batch]", "cap_tokens", start, start.Add(time.Hour), ""},
			{"WARN", "emergency mode is on", "admission", "emergency", "bob", "", "", "[batch]", "cap_tokens", start, now.Add(5 * time.Minute), ""},
			{"WARN", "emergency mode is off", "admission", "emergency", "alice", "10.0.0.7:4711", "", "[batch]", "cap_tokens", start, now.Add(5 * time.Minute), ""},
		}
		if diff := cmp.Diff(audit, lines(t, log)); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}

func TestEmergencyOrdersThatAreRefused(t *testing.T) {
	tests := map[string]struct {
		by     string
		reason string
		expiry time.Duration
		want   string
	}{
		"negative":         {"a", "", -time.Second, "expiry: "},
		"an instant":       {"a", "", time.Millisecond, "expiry: "},
		"over a day":       {"a", "", admission.MaxExpiry + 1, "expiry: must be 1s to 24h0m0s, got "},
		"long reason":      {"a", strings.Repeat("x", 501), 0, "reason: must have at most 500 bytes, got 501"},
		"two lines":        {"a", "x\ny", 0, "reason: must be one line"},
		"terminal codes":   {"a", "\x1b[2J", 0, "reason: must be one line"},
		"no text":          {"a", "\xff", 0, "reason: must be one line"},
		"long name":        {strings.Repeat("x", 101), "", 0, "by: must have at most 100 bytes, got 101"},
		"name of two line": {"x\ny", "", 0, "by: must be one line"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			keep := new(memoryKeeper)
			e, log := newSwitch(t, keep)
			now, by := time.Now(), admission.Operator{Name: tt.by}
			before, err := e.On(now, alice, "before", 0)
			if err != nil {
				t.Fatal(err)
			}
			kept := keep.kept()
			got, err := e.On(now, by, tt.reason, tt.expiry)
			if err == nil || errors.Is(err, admission.ErrNotKept) || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			same(t, got, before)
			if strings.HasPrefix(tt.want, "by") {
				if got, err = e.Off(now, by); err == nil {
					t.Error("the name was accepted for off")
				}
				same(t, got, before)
			}
			if diff := cmp.Diff(kept, keep.kept()); diff != "" || len(lines(t, log)) != 1 {
				t.Errorf("a refused order left a trace: %s %s", diff, log)
			}
		})
	}
	e, _ := newSwitch(t, nil)
	if _, err := e.On(time.Now(), admission.Operator{Name: strings.Repeat("x", 100)}, strings.Repeat("ü", 250), admission.MaxExpiry); err != nil {
		t.Errorf("an order at the bounds: %v", err)
	}
}

// TestEmergencyExpires lets Run find the end; readers know it at once.
func TestEmergencyExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keep := new(memoryKeeper)
		e, log := newSwitch(t, keep)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := e.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		start := time.Now()
		if _, err := e.On(start, alice, "drill", 1500*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		end := start.Add(1500 * time.Millisecond)
		if e.Profile(end.Add(-1)) == nil || e.Profile(end) != nil || !e.State(end.Add(-1)).On || e.State(end).On {
			t.Error("the end is not where it was ordered")
		}
		time.Sleep(1500*time.Millisecond + 1)
		synctest.Wait()
		if got := len(lines(t, log)); got != 1 || e.Profile(time.Now()) != nil {
			t.Errorf("at the end: got %d lines, profile %v", got, e.Profile(time.Now()))
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		cancel()
		wg.Wait()
		if diff := cmp.Diff([]string{"WARN emergency mode is on", "WARN emergency mode has expired"}, messages(t, log)); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
		if last := lines(t, log)[1]; last.By != "alice" || last.Reason != "drill" || !last.Until.Equal(end) {
			t.Errorf("got %+v, want whose emergency it was", last)
		}
		same(t, e.State(start), everyday()) // it is over for good, whatever a reader's clock says
		if len(keep.kept()) != 0 {
			t.Errorf("kept %v", keep.kept())
		}
	})
}

// TestEmergencyExpiresBetweenTicks gives orders when the end has not been noted
// yet.
func TestEmergencyExpiresBetweenTicks(t *testing.T) {
	start := time.Now()
	late := start.Add(time.Minute)
	tests := map[string]struct {
		order func(*admission.Emergency) (admission.EmergencyState, error)
		want  []string
		since time.Time
	}{
		"on": {func(e *admission.Emergency) (admission.EmergencyState, error) {
			return e.On(late, alice, "", time.Hour)
		},
			[]string{"WARN emergency mode is on", "WARN emergency mode has expired", "WARN emergency mode is on"}, late},
		"off": {func(e *admission.Emergency) (admission.EmergencyState, error) { return e.Off(late, alice) },
			[]string{"WARN emergency mode is on", "WARN emergency mode has expired"}, time.Time{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e, log := newSwitch(t, nil)
			if _, err := e.On(start, alice, "", time.Second); err != nil {
				t.Fatal(err)
			}
			got, err := tt.order(e)
			if err != nil || !got.Since.Equal(tt.since) {
				t.Errorf("got %+v, %v, want it since %v", got, err, tt.since)
			}
			e.Tick(late)
			if diff := cmp.Diff(tt.want, messages(t, log)); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
		})
	}
}

// TestEmergencyAcrossRestarts stops a gateway with its emergency on and starts it
// again, over a real directory, sooner and later.
func TestEmergencyAcrossRestarts(t *testing.T) {
	tests := map[string]struct {
		away time.Duration
		off  bool // before the stop
		on   bool
		want []string // of the second start
	}{
		"sooner":      {10 * time.Minute, false, true, []string{"WARN emergency mode goes on after a restart"}},
		"at the end":  {30 * time.Minute, false, false, nil},
		"later":       {time.Hour, false, false, nil},
		"ended first": {time.Second, true, false, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "state")
				keep, err := store.Open(store.Config{Directory: dir})
				if err != nil {
					t.Fatal(err)
				}
				first, _ := newSwitch(t, keep)
				want, err := first.On(time.Now(), alice, "brown-out of eu-west", 30*time.Minute)
				if err != nil {
					t.Fatal(err)
				}
				if tt.off {
					if _, err := first.Off(time.Now(), alice); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(tt.away)
				second, log := newSwitch(t, keep)
				if !tt.on {
					want = everyday()
				}
				same(t, second.State(time.Now()), want)
				if (second.Profile(time.Now()) != nil) != tt.on {
					t.Error("the profile does not follow the switch")
				}
				settle(t, second)
				settle(t, second)
				if diff := cmp.Diff(tt.want, messages(t, log)); diff != "" {
					t.Errorf("log (-want +got):\n%s", diff)
				}
				if _, err := os.Stat(filepath.Join(dir, "emergency.json")); (err == nil) != tt.on {
					t.Errorf("the file: %v", err)
				}
				time.Sleep(30 * time.Minute)
				settle(t, second)
				if left, err := os.ReadDir(dir); err != nil || len(left) != 0 || second.Profile(time.Now()) != nil {
					t.Errorf("at the end: %v %v", left, err)
				}
			})
		})
	}
}

// TestEmergencyFiles starts with files that people and time have made.
func TestEmergencyFiles(t *testing.T) {
	const good = `{"version":1,"since":"2000-01-01T00:00:00Z","until":"2000-01-01T01:00:00Z","by":"alice"}`
	tests := map[string]struct {
		text   string
		broken bool
		until  time.Duration // from the start of the bubble, 2000-01-01
	}{
		"good":              {good, false, time.Hour},
		"clock set back":    {strings.Replace(good, "01-01T01", "02-01T01", 1), false, 24 * time.Hour},
		"begins in future":  {strings.Replace(good, "T00:00:00", "T00:30:00", 1), false, time.Hour},
		"expired":           {strings.ReplaceAll(good, "2000", "1999"), false, 0},
		"empty":             {"", true, 0},
		"torn":              {good[:40], true, 0},
		"no JSON":           {"on", true, 0},
		"null":              {"null", true, 0},
		"another version":   {strings.Replace(good, ":1,", ":2,", 1), true, 0},
		"no version":        {strings.Replace(good, `"version":1,`, "", 1), true, 0},
		"unknown key":       {strings.Replace(good, `"by"`, `"who"`, 1), true, 0},
		"something follows": {good + "{}", true, 0},
		"ends first":        {strings.Replace(good, "T00:00:00", "T02:00:00", 1), true, 0},
		"no times":          {`{"version":1}`, true, 0},
		"terminal codes":    {strings.Replace(good, "alice", `\u001b[2J`, 1), true, 0},
		"terminal codes, 2": {strings.Replace(good, `"by":"alice"`, `"from":"\u001b[2J"`, 1), true, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keep := &memoryKeeper{files: map[string]string{"emergency.json": tt.text}}
				e, log := newSwitch(t, keep)
				now := time.Now()
				if got := e.State(now); got.On != (tt.until > 0) || got.On && !got.Until.Equal(now.Add(tt.until)) {
					t.Errorf("got %+v, want it on for %v", got, tt.until)
				}
				if diff := cmp.Diff(map[string]string{"emergency.json": tt.text}, keep.kept()); diff != "" || log.String() != "" {
					t.Errorf("a switch that was made and not run left a trace: %s %s", diff, log)
				}
				want := map[string]string{}
				switch {
				case tt.broken:
					want["emergency.json.broken"] = tt.text
				case tt.until > 0:
					want["emergency.json"] = tt.text
				}
				settle(t, e)
				if diff := cmp.Diff(want, keep.kept()); diff != "" {
					t.Errorf("kept (-want +got):\n%s", diff)
				}
				if got := messages(t, log); slices.ContainsFunc(got, func(m string) bool { return strings.HasPrefix(m, "ERROR") }) != tt.broken {
					t.Errorf("got log %q", got)
				}
				before := len(lines(t, log))
				settle(t, e)
				if _, err := e.On(now, alice, "", 0); err != nil || len(lines(t, log)) != before+1 {
					t.Errorf("the next order: %v %s", err, log)
				}
				again, _ := newSwitch(t, keep)
				same(t, again.State(now), e.State(now))
			})
		})
	}
}

// TestEmergencyThatCannotBeKept has a disk that fails and recovers.
func TestEmergencyThatCannotBeKept(t *testing.T) {
	full := errors.New("no space left on device")
	now := time.Now()
	keep := new(memoryKeeper)
	e, log := newSwitch(t, keep)
	keep.fail = full
	got, err := e.On(now, alice, "", time.Hour)
	if !errors.Is(err, admission.ErrNotKept) || !errors.Is(err, full) || !strings.Contains(err.Error(), "restart") {
		t.Errorf("on: got %v, want ErrNotKept and its cause", err)
	}
	if !got.On || e.Profile(now) == nil {
		t.Error("the switch is not on")
	}
	keep.fail = nil
	if _, err := e.On(now, alice, "", time.Hour); err != nil || len(keep.kept()) != 1 {
		t.Errorf("on again: %v, kept %v", err, keep.kept())
	}
	keep.fail = full
	if got, err = e.Off(now, alice); !errors.Is(err, admission.ErrNotKept) || got.On || e.Profile(now) != nil {
		t.Errorf("off: got %+v, %v", got, err)
	}
	keep.fail = nil
	if _, err := e.Off(now, alice); err != nil || len(keep.kept()) != 0 {
		t.Errorf("off again: %v, kept %v", err, keep.kept())
	}
	if _, err := e.On(now, alice, "", time.Second); err != nil {
		t.Fatal(err)
	}
	keep.fail = full
	e.Tick(now.Add(time.Minute))
	e.Tick(now.Add(2 * time.Minute))
	settle(t, e)
	settle(t, e)
	want := []string{
		"WARN emergency mode is on", "ERROR the order is in force, but a restart would not know of it", "WARN emergency mode is on",
		"WARN emergency mode is off", "ERROR the order is in force, but a restart would not know of it",
		"WARN emergency mode is on", "WARN emergency mode has expired", "ERROR an emergency that is over could not be forgotten; a restart will ignore it",
	}
	if diff := cmp.Diff(want, messages(t, log)); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

// slowKeeper is a disk that hangs.
type slowKeeper struct {
	memoryKeeper
	hang chan struct{}
}

func (k *slowKeeper) Write(name string, data []byte) error {
	<-k.hang
	return k.memoryKeeper.Write(name, data)
}

// TestEmergencyDoesNotWaitForItsDisk gives an order that hangs on the disk: it is in
// force, and nothing that the governor calls waits for it.
func TestEmergencyDoesNotWaitForItsDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keep := &slowKeeper{hang: make(chan struct{})}
		e, log := newSwitch(t, keep)
		now := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := e.On(now, alice, "", time.Minute); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if e.Profile(now) == nil || !e.State(now).On {
			t.Error("the order is not in force")
		}
		late := now.Add(time.Hour)
		e.Tick(late)
		if e.Profile(late) != nil || len(lines(t, log)) != 1 {
			t.Errorf("at the end: got profile %v, log %s", e.Profile(late), log)
		}
		close(keep.hang)
		wg.Wait()
		e.Tick(late)
		if len(lines(t, log)) != 2 || len(keep.kept()) != 1 {
			t.Errorf("got %s, kept %v, want the end in the log and nothing done on the disk", log, keep.kept())
		}
		settle(t, e)
		if len(keep.kept()) != 0 {
			t.Errorf("kept %v", keep.kept())
		}
	})
}

// TestEmergencyStartsWithoutItsDisk cannot read, or cannot set aside, and goes on.
func TestEmergencyStartsWithoutItsDisk(t *testing.T) {
	keep := &memoryKeeper{fail: errors.New("input/output error")}
	e, log := newSwitch(t, keep)
	settle(t, e)
	if e.Profile(time.Now()) != nil || len(lines(t, log)) != 1 || lines(t, log)[0].Err != "input/output error" {
		t.Errorf("got %s", log)
	}
	keep = &memoryKeeper{files: map[string]string{"emergency.json": "{"}}
	e, log = newSwitch(t, keep)
	keep.fail = errors.New("read-only file system")
	settle(t, e)
	settle(t, e)
	if got := lines(t, log); len(got) != 2 || got[1].Err != "read-only file system" {
		t.Errorf("got %s", log)
	}
	file := filepath.Join(t.TempDir(), "file")
	unwritable, err := store.Open(store.Config{Directory: filepath.Join(file, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	e, _ = newSwitch(t, unwritable)
	if got, err := e.On(time.Now(), alice, "", 0); !errors.Is(err, admission.ErrNotKept) || !got.On || !strings.Contains(err.Error(), file) {
		t.Errorf("got %+v, %v, want it on, and the path in the error", got, err)
	}
}

func TestEmergencyApply(t *testing.T) {
	e, log := newSwitch(t, nil)
	now := time.Now()
	state, err := e.On(now, alice, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	e.Apply(admission.EmergencyConfig{Shed: []string{"normal"}, Brownout: "cheaper_model", Expiry: 2 * time.Hour})
	state.Profile = &admission.Profile{Shed: []inference.Class{inference.Normal}, Brownout: admission.StepCheaperModel}
	same(t, e.State(now), state)
	if p := e.Profile(now); p == nil || p.Sheds(inference.Batch) || !p.Sheds(inference.Normal) {
		t.Errorf("got profile %+v", p)
	}
	if state, err = e.On(now, alice, "", 0); err != nil || !state.Until.Equal(now.Add(2*time.Hour)) {
		t.Errorf("got %+v, %v, want the new expiry", state, err)
	}
	if len(lines(t, log)) != 2 {
		t.Errorf("got %s", log)
	}
}

// TestEmergencyConcurrently has many operators, readers and reloads at once. What
// is kept at the end is what is in force.
func TestEmergencyConcurrently(t *testing.T) {
	keep, err := store.Open(store.Config{Directory: filepath.Join(t.TempDir(), "state")})
	if err != nil {
		t.Fatal(err)
	}
	e, err := admission.NewEmergency(admission.DefaultEmergency(), keep, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			by := admission.Operator{Name: fmt.Sprint(i)}
			for n := range 25 {
				if _, err := e.On(now, by, "", time.Duration(1+n)*time.Minute); err != nil {
					t.Error(err)
				}
				if n%3 == i%3 {
					if _, err := e.Off(now, by); err != nil {
						t.Error(err)
					}
				}
			}
		})
		wg.Go(func() {
			for range 500 {
				s := e.State(now)
				if s.On != (s.By.Name != "") || s.On && !s.Until.After(now) || s.Profile == nil {
					t.Errorf("torn: %+v", s)
				}
				if p := e.Profile(now); p != nil && !p.Sheds(inference.Batch) {
					t.Errorf("torn: %+v", p)
				}
				e.Tick(now)
				settle(t, e)
				e.Apply(admission.DefaultEmergency())
			}
		})
	}
	wg.Wait()
	again, _ := newSwitch(t, keep)
	same(t, again.State(now), e.State(now))
}

func TestEmergencyMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newSwitch(t, nil)
		reg := prometheus.NewPedanticRegistry()
		reg.MustRegister(e)
		gauges := func() map[string]float64 {
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]float64)
			for _, f := range families {
				got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
			}
			return got
		}
		want := func(on, until float64) {
			t.Helper()
			if diff := cmp.Diff(map[string]float64{"spillway_admission_emergency": on, "spillway_admission_emergency_until_seconds": until}, gauges()); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
		}
		want(0, 0)
		if _, err := e.On(time.Now(), alice, "", time.Hour); err != nil {
			t.Fatal(err)
		}
		want(1, float64(time.Now().Add(time.Hour).Unix()))
		time.Sleep(time.Hour)
		want(0, 0)
	})
}

// FuzzEmergencyFile starts a switch from any file: it never panics, an emergency
// ends within a day, and the next restart knows what this one knew.
func FuzzEmergencyFile(f *testing.F) {
	soon := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	for _, text := range []string{
		"", "{", `{"version":1}`, `{"version":1,"since":"2000-01-01T00:00:00Z","until":"2000-01-01T01:00:00Z"}`,
		`{"version":1,"since":"2000-01-01T00:00:00Z","until":"` + soon + `","by":"alice","from":"x","reason":"y"}`,
		`{"version":1,"since":"2000-01-01T00:00:00Z","until":"9999-12-31T23:59:59Z"}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		keep := &memoryKeeper{files: map[string]string{"emergency.json": text}}
		e, _ := newSwitch(t, keep)
		now := time.Now()
		first := e.State(now)
		if first.Until.After(now.Add(admission.MaxExpiry)) || first.On != (e.Profile(now) != nil) {
			t.Errorf("got %+v", first)
		}
		settle(t, e)
		second, _ := newSwitch(t, keep)
		if got := second.State(now); got.On != first.On || got.By != first.By || got.Reason != first.Reason {
			t.Errorf("got %+v, then %+v", first, got)
		}
	})
}

// BenchmarkEmergencyProfile is what each request pays.
func BenchmarkEmergencyProfile(b *testing.B) {
	e, _ := newSwitch(b, nil)
	now := time.Now()
	for name, on := range map[string]bool{"off": false, "on": true} {
		b.Run(name, func(b *testing.B) {
			if on {
				if _, err := e.On(now, alice, "", 0); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if p := e.Profile(now); (p != nil) != on {
					b.Fatal("wrong")
				}
			}
		})
	}
}

func TestEmergencyProfileDoesNotAllocate(t *testing.T) {
	e, _ := newSwitch(t, nil)
	now := time.Now()
	if _, err := e.On(now, alice, "", 0); err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(100, func() { e.Profile(now) }); got != 0 {
		t.Errorf("got %v allocations, want none", got)
	}
}

func ExampleEmergency() {
	e, err := admission.NewEmergency(admission.DefaultEmergency(), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	now := time.Now()
	if _, err := e.On(now, admission.Operator{Name: "alice"}, "half of the GPUs are gone", 30*time.Minute); err != nil {
		panic(err)
	}
	fmt.Println(e.Profile(now).Sheds(inference.Batch), e.Profile(now).Sheds(inference.VIP))
	fmt.Println(e.Profile(now.Add(time.Hour)) == nil)
	// Output:
	// true false
	// true
}
