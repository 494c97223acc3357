package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a child in a process group of its own, so that it and its workers end together.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the child was waited for
	out  string        // file with its output
}

// group puts a command into its own process group and ties its life to this program's main thread: when the bench is
// killed, the kernel ends the children.
func group(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// startProcess starts argv with its output in a file. It must be called from the main goroutine, which is locked to its
// thread: the death signal belongs to the thread that forks.
func startProcess(dir string, argv []string) (*process, error) {
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	group(cmd)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	p := &process{cmd: cmd, done: make(chan struct{}), out: out.Name()}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop ends the group: SIGTERM, and after 3 s SIGKILL.
func (p *process) stop() {
	pid := p.cmd.Process.Pid
	_ = syscall.Kill(-pid, syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(3 * time.Second):
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	<-p.done
}

// tail is the end of the child's output, for error messages.
func (p *process) tail() string {
	b, _ := os.ReadFile(p.out)
	return strings.TrimSpace(string(b[max(0, len(b)-2000):]))
}

// pids lists the processes of the group, comma-separated.
func (p *process) pids() string {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	var pids []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it ended meanwhile
		}
		// pid (name) state ppid pgrp: the name may hold blanks and parentheses.
		after := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(after) > 2 && after[2] == strconv.Itoa(p.cmd.Process.Pid) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return strings.Join(pids, ",")
}

// run executes argv to its end and returns its standard output; the context's end kills it.
func run(ctx context.Context, limit time.Duration, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	group(cmd)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", filepath.Base(argv[0]), errors.Join(err, ctx.Err()), strings.TrimSpace(stderr.String()))
	}
	return out, err
}

// ports hands out free ports of 127.0.0.1 below the range the kernel takes for outgoing connections, each once, so that no
// listener meets a connection that lingers from an earlier measurement.
type ports struct{ next int }

func (p *ports) take() (string, error) {
	if p.next == 0 {
		p.next = 15000 + os.Getpid()%5000
	}
	for range 10000 {
		if p.next++; p.next >= 32000 {
			p.next = 15000
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(p.next))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		return addr, nil
	}
	return "", errors.New("no free port on 127.0.0.1")
}

func portOf(addr string) string {
	_, port, _ := net.SplitHostPort(addr)
	return port
}

// raiseFiles raises the limit of open files as far as allowed, at most to 65,536, and returns it. Children inherit it.
func raiseFiles() int {
	const wanted = 65536
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 1024
	}
	if r.Max < wanted && syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: wanted, Max: wanted}) == nil {
		return wanted
	}
	r.Cur = min(r.Max, wanted)
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r)
	return int(r.Cur)
}
