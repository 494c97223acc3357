package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// startTimeout is how long a process may take until it listens.
const startTimeout = 10 * time.Second

// process is a child of the scenario.
type process struct {
	name   string
	binary string
	args   []string
	errors io.Writer

	mu struct {
		sync.Mutex
		cmd  *exec.Cmd
		done chan struct{}
	}
}

// start runs the program and waits until it prints a line with the given word;
// an empty word is not waited for.
func (p *process) start(ctx context.Context, ready string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := exec.Command(p.binary, p.args...)
	cmd.Stderr = p.errors
	cmd.SysProcAttr = dieWithParent()
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	seen, done := make(chan bool, 1), make(chan struct{})
	go func() { // ends with the process, whose standard output it reads to the end
		defer close(done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if strings.Contains(lines.Text(), ready) {
				select {
				case seen <- true:
				default:
				}
			}
		}
		_ = cmd.Wait() // how it ended is the scenario's own doing
	}()
	p.mu.cmd, p.mu.done = cmd, done
	if ready == "" {
		return nil
	}
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case <-seen:
		return nil
	case <-done:
		return fmt.Errorf("start %s: it ended at once", p.name)
	case <-timer.C:
		err = errors.New("it does not listen")
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = cmd.Process.Kill()
	<-done
	return fmt.Errorf("start %s: %w", p.name, err)
}

// signal sends a signal.
func (p *process) signal(s os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return fmt.Errorf("%s does not run", p.name)
	}
	return p.mu.cmd.Process.Signal(s)
}

// kill ends the process at once, as SIGKILL does, and waits for its end.
func (p *process) kill() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return nil
	}
	err := p.mu.cmd.Process.Kill()
	<-p.mu.done
	p.mu.cmd = nil
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// stop ends the process gently and waits.
func (p *process) stop() {
	if p.signal(syscall.SIGTERM) != nil {
		return
	}
	p.mu.Lock()
	done := p.mu.done
	p.mu.Unlock()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
	}
	_ = p.kill() // it has ended, or has had its time
}

// Ports of the scenarios' processes: below those that systems take for outgoing
// connections (from 32768 on Linux), so that no connection has taken an engine's
// port by the time it is started again.
const (
	lowestPort  = 12000
	highestPort = 32000
)

// freeAddr is a loopback address that nobody listens on now.
func freeAddr() (string, error) {
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", lowestPort+rand.IntN(highestPort-lowestPort))
		if ln, err := net.Listen("tcp", addr); err == nil {
			return addr, ln.Close()
		}
	}
	return "", errors.New("no free port on 127.0.0.1")
}

// running says whether the process has not ended.
func (p *process) running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.cmd == nil {
		return false
	}
	select {
	case <-p.mu.done:
		return false
	default:
		return true
	}
}

// waitReady polls a URL until it answers 200.
func waitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", url, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
