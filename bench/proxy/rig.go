package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// bench is one run: its directory, the mock, and the systems. It is used from the main goroutine only.
type bench struct {
	dir     string
	files   int
	log     io.Writer
	ports   ports
	mock    *process
	up      []string // the mock's addresses
	trials  int
	starts  int
	results Results
}

// BuildRig compiles the three C programs into dir.
func BuildRig(ctx context.Context, dir string) error {
	sub, err := fs.Sub(rigSources, "rig")
	if err != nil {
		return err
	}
	src := filepath.Join(dir, "rig")
	if err := os.CopyFS(src, sub); err != nil {
		return fmt.Errorf("unpack the rig: %w", err)
	}
	for _, name := range []string{"mock", "client", "leave"} {
		_, err := run(ctx, time.Minute, "cc", "-O2", "-Wall", "-o", filepath.Join(dir, name), filepath.Join(src, name+".c"))
		if err != nil {
			return fmt.Errorf("build the rig (a C compiler is needed): %w", err)
		}
	}
	return nil
}

// installPeers installs missing peers from Debian's packages. The services they would start are held back.
func installPeers(ctx context.Context, log io.Writer) error {
	var missing []string
	for _, name := range []string{nginx, haproxy} {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	what := strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil || os.Geteuid() != 0 {
		return fmt.Errorf("%s missing: install it, or run as root on Debian (apt-get install %s)", what, what)
	}
	fmt.Fprintf(log, "installing %s\n", what)
	const policy = "/usr/sbin/policy-rc.d" // Debian's switch: exit status 101 means do not start services
	if _, err := os.Lstat(policy); os.IsNotExist(err) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err != nil {
			return err
		}
		defer os.Remove(policy)
	}
	if _, err := run(ctx, 5*time.Minute, "apt-get", "update", "-q"); err != nil {
		return err
	}
	argv := append([]string{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qy", "--no-install-recommends"}, missing...)
	_, err := run(ctx, 10*time.Minute, argv...)
	return err
}

func (b *bench) startMock(ctx context.Context) error {
	var list []string
	for range 3 {
		addr, err := b.ports.take()
		if err != nil {
			return err
		}
		b.up = append(b.up, addr)
		list = append(list, portOf(addr))
	}
	dir := filepath.Join(b.dir, "mock-run")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var err error
	if b.mock, err = startProcess(dir, []string{filepath.Join(b.dir, "mock"), "-p", strings.Join(list, ",")}); err != nil {
		return err
	}
	return b.ready(ctx, b.mock, b.up[0])
}

// ready waits until the system answers three completions in a row, at most 20 s.
func (b *bench) ready(ctx context.Context, p *process, addr string) error {
	const body = `{"model":"bench","messages":[{"role":"user","content":"ready?"}]}`
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	last := "no answer"
	good := 0
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until) && good < 3; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.done:
			return fmt.Errorf("%s ended: %s", p.cmd.Path, p.tail())
		case <-time.After(20 * time.Millisecond):
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/chat/completions", strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+benchKey)
		resp, err := client.Do(req)
		good++
		if err != nil {
			good, last = 0, err.Error()
			continue
		}
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			good, last = 0, resp.Status+" "+string(text)
		}
	}
	if good < 3 {
		return fmt.Errorf("%s is not ready (%s): %s", p.cmd.Path, last, p.tail())
	}
	return nil
}

// startSystem renders a system's files into a new directory and starts it. The caller stops it and removes the directory.
func (b *bench) startSystem(ctx context.Context, s System) (*process, Place, error) {
	b.starts++
	dir := filepath.Join(b.dir, fmt.Sprintf("%s-%d", s.Name, b.starts))
	listen, err := b.ports.take()
	if err != nil {
		return nil, Place{}, err
	}
	admin, err := b.ports.take()
	if err != nil {
		return nil, Place{}, err
	}
	place := NewPlace(dir, listen, admin, b.up, b.files)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, place, err
	}
	for name, path := range map[string]string{s.Template: place.Config, "keys.tmpl": place.Keys} {
		text, err := Render(name, place)
		if err != nil {
			return nil, place, err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, place, err
		}
	}
	p, err := startProcess(dir, s.Argv(place))
	if err != nil {
		return nil, place, err
	}
	if err := b.ready(ctx, p, listen); err != nil {
		p.stop()
		return nil, place, err
	}
	return p, place, nil
}

// target is a running system as the client programs see it.
type target struct {
	System
	addr, admin string
	pids        string
}

// measure starts the system afresh, puts it under the load, and stops it: every measurement begins with the same memory
// and without the traces of another.
func (b *bench) measure(ctx context.Context, s System, l Load) (Sample, error) {
	t := target{System: s, addr: b.up[0], pids: strconv.Itoa(b.mock.cmd.Process.Pid)}
	if s.Command != "" {
		p, place, err := b.startSystem(ctx, s)
		defer os.RemoveAll(place.Dir)
		if err != nil {
			return nil, err
		}
		defer p.stop()
		t.addr, t.admin, t.pids = place.Listen, place.Admin, p.pids()
	}
	if l.Mode == "leave" {
		return b.leave(ctx, t)
	}
	return b.drive(ctx, t, l)
}

// leave runs the trials in which a client leaves.
func (b *bench) leave(ctx context.Context, t target) (Sample, error) {
	out, err := run(ctx, 5*time.Minute, filepath.Join(b.dir, "leave"), "-a", portOf(t.addr), "-M", portOf(b.up[0]),
		"-n", strconv.Itoa(b.trials), "-k", benchKey)
	if err != nil {
		return nil, err
	}
	var phases map[string]LeavePhase
	if err := json.Unmarshal(out, &phases); err != nil {
		return nil, fmt.Errorf("leave: %w", err)
	}
	return DeriveLeave(phases), nil
}

// drive runs the load client.
func (b *bench) drive(ctx context.Context, t target, l Load) (Sample, error) {
	client := filepath.Join(b.dir, "client")
	if _, err := b.control(ctx, l.Control); err != nil {
		return nil, err
	}
	if l.Memory {
		_, err := run(ctx, 30*time.Second, client, "-a", portOf(t.addr), "-m", "json", "-c", "16", "-d", "0.4", "-w", "0.1", "-k", benchKey)
		if err != nil {
			return nil, err
		}
	}
	before, err := b.holdings(ctx, t)
	if err != nil {
		return nil, err
	}
	argv := append([]string{client, "-a", portOf(t.addr), "-P", t.pids, "-Q", strconv.Itoa(b.mock.cmd.Process.Pid)},
		l.args(b.clients(t.System, l))...)
	out, err := run(ctx, time.Duration((l.window()+30)*float64(time.Second)), argv...)
	if err != nil {
		return nil, err
	}
	var r Report
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	s, err := l.Derive(r)
	if err == nil && l.Leftovers {
		err = b.leftovers(ctx, t, before, s)
	}
	return s, err
}

// holdings is what a system holds open: files, goroutines (-1 when it has no Prometheus metrics at its admin address), and
// connections to the mock, which a pool may rightly keep.
type holdings struct{ files, goroutines, upstream int }

func (b *bench) holdings(ctx context.Context, t target) (holdings, error) {
	stats, err := b.control(ctx, "")
	h := holdings{goroutines: -1, upstream: stats.Connections}
	if err != nil {
		return h, err
	}
	for pid := range strings.SplitSeq(t.pids, ",") {
		entries, err := os.ReadDir("/proc/" + pid + "/fd")
		if err != nil {
			return h, err
		}
		h.files += len(entries)
	}
	if t.admin == "" {
		return h, nil
	}
	text, err := fetch(ctx, "http://"+t.admin+"/metrics")
	if err != nil {
		return h, nil // peers have no such listener
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "go_goroutines "); ok {
			h.goroutines, _ = strconv.Atoi(strings.TrimSpace(v))
		}
	}
	return h, nil
}

// leftovers waits until the system holds no more than before, at most 10 s, and adds what is left to the sample: files, and
// goroutines, beyond those of connections kept to the upstream.
func (b *bench) leftovers(ctx context.Context, t target, before holdings, s Sample) error {
	for range 40 {
		h, err := b.holdings(ctx, t)
		if err != nil {
			return err
		}
		kept := max(0, h.upstream-before.upstream)
		s["files_left"] = float64(max(0, h.files-before.files-kept))
		if before.goroutines >= 0 && h.goroutines >= 0 {
			s["goroutines_left"] = float64(max(0, h.goroutines-before.goroutines-kept))
		}
		if s["files_left"] == 0 && s["goroutines_left"] == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(250 * time.Millisecond):
		}
	}
	return nil
}

// clients bounds the number of connections by what the limit of open files allows the system.
func (b *bench) clients(s System, l Load) int {
	limit := b.files - 1000
	if s.Name == haproxy {
		limit = NewPlace("", "", "", nil, b.files).MaxConn - 200
	}
	return max(1, min(l.Clients, limit))
}

// mockStats are the mock's counters that the bench itself reads.
type mockStats struct {
	Connections int `json:"connections"`
}

// control changes the mock's settings, if any are given, and returns its counters.
func (b *bench) control(ctx context.Context, settings string) (mockStats, error) {
	var s mockStats
	text, err := fetch(ctx, "http://"+b.up[0]+"/control?"+settings)
	if err != nil {
		return s, fmt.Errorf("set the mock: %w", err)
	}
	return s, json.Unmarshal(text, &s)
}

// fetch reads a small page on a connection of its own.
func fetch(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(io.LimitReader(resp.Body, 4<<20))
}
