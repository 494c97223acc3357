package faultnet_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/faultnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo is the address of a server that answers with what it is told.
func echo(t *testing.T) string {
	return testkit.NewRawListener(t, func(c io.ReadWriteCloser) {
		defer c.Close()
		io.Copy(c, c)
	})
}

// dial connects to the proxy.
func dial(t *testing.T, p *faultnet.Proxy) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// ask sends text and reads as many bytes within a time.
func ask(c net.Conn, text string, within time.Duration) (string, error) {
	c.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	b := make([]byte, len(text))
	n, err := io.ReadFull(c, b)
	return string(b[:n]), err
}

// long is more time than anything here needs.
const long = 10 * time.Second

// works checks that a connection passes bytes.
func works(t *testing.T, c net.Conn) {
	t.Helper()
	if got, err := ask(c, "hello", long); got != "hello" || err != nil {
		t.Fatalf("the answer is %q, %v", got, err)
	}
}

func TestWithoutFaults(t *testing.T) {
	p := faultnet.New(t, echo(t))
	c := dial(t, p)
	works(t, c)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go c.Write(big)
	got := make([]byte, len(big))
	c.SetDeadline(time.Now().Add(long))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, big) {
		t.Fatalf("a MiB does not come back as it was: %v", err)
	}
	c.(*net.TCPConn).CloseWrite()
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		t.Errorf("after the end: %q, %v", rest, err)
	}
	if p.Accepted() != 1 {
		t.Errorf("Accepted = %d, want 1", p.Accepted())
	}
}

func TestDelayAndBandwidth(t *testing.T) {
	for name, f := range map[string]faultnet.Faults{
		"delay":     {Delay: 100 * time.Millisecond}, // there and back
		"bandwidth": {Bandwidth: 50_000},             // 5 kB each way
		"both":      {Delay: 50 * time.Millisecond, Bandwidth: 100_000},
	} {
		t.Run(name, func(t *testing.T) {
			p := faultnet.New(t, echo(t))
			c := dial(t, p)
			works(t, c)
			p.Set(f)
			text := string(bytes.Repeat([]byte("x"), 5000))
			began := time.Now()
			if got, err := ask(c, text, long); got != text || err != nil {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			if took := time.Since(began); took < 190*time.Millisecond {
				t.Errorf("5 kB there and back took %v, want at least 200 ms", took)
			}
			p.Set(faultnet.Faults{})
			works(t, c)
		})
	}
}

func TestBlackHoleHoldsUntilItIsLifted(t *testing.T) {
	p := faultnet.New(t, echo(t))
	c := dial(t, p)
	works(t, c)
	p.Set(faultnet.Faults{BlackHole: true})
	for name, c := range map[string]net.Conn{"an open connection": c, "a new connection": dial(t, p)} {
		if got, err := ask(c, "lost?", 100*time.Millisecond); got != "" || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %q, %v, want no answer", name, got, err)
		}
	}
	p.Set(faultnet.Faults{})
	c.SetDeadline(time.Now().Add(long))
	b := make([]byte, 5)
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "lost?" {
		t.Errorf("after the fault: %q, %v, want what was held up", b, err)
	}
}

func TestGarbageStandsInForAnswers(t *testing.T) {
	p := faultnet.New(t, echo(t))
	c := dial(t, p)
	p.Set(faultnet.Faults{Garbage: []byte("\x00\xff-bad")})
	if got, err := ask(c, "hello!", long); got != "\x00\xff-bad" || err != nil {
		t.Errorf("the answer is %q, %v", got, err)
	}
}

// wantRefused checks that a new connection is reset, at once or when it is used.
func wantRefused(t *testing.T, p *faultnet.Proxy) {
	t.Helper()
	c, err := net.Dial("tcp", p.Addr())
	if err != nil {
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(long))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a refused connection reads %d, %v", n, err)
	}
}

// wantEnd checks that a connection is ended.
func wantEnd(t *testing.T, c net.Conn, want error) {
	t.Helper()
	c.SetDeadline(time.Now().Add(long))
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
		t.Errorf("Read = %d, %v, want %v", n, err, want)
	}
}

func TestConnectionsEnd(t *testing.T) {
	p := faultnet.New(t, echo(t))
	cut, reset, partial := dial(t, p), dial(t, p), dial(t, p)
	works(t, cut)
	p.Cut()
	wantEnd(t, cut, io.EOF)

	reset.Close()
	reset = dial(t, p)
	works(t, reset)
	p.Reset()
	wantEnd(t, reset, syscall.ECONNRESET)

	partial.Close()
	partial = dial(t, p)
	works(t, partial)
	p.Set(faultnet.Faults{CutAfter: 3})
	if got, err := ask(partial, "0123456", long); err == nil || len(got) > 3 {
		t.Errorf("the answer is %q, %v, want at most 3 bytes and an error", got, err)
	}

	p.Set(faultnet.Faults{Refuse: true})
	wantRefused(t, p)
	p.Set(faultnet.Faults{})
	works(t, dial(t, p))
}

func TestRetarget(t *testing.T) {
	other := testkit.NewRawListener(t, func(c io.ReadWriteCloser) {
		defer c.Close()
		io.ReadFull(c, make([]byte, len("hello")))
		io.WriteString(c, "other")
	})
	p := faultnet.New(t, echo(t))
	old := dial(t, p)
	works(t, old)
	p.Retarget(other)
	if got, err := ask(dial(t, p), "hello", long); got != "other" || err != nil {
		t.Errorf("a new connection: %q, %v", got, err)
	}
	works(t, old)
	p.Retarget("127.0.0.1:1")
	wantRefused(t, p) // the target is not there
}
