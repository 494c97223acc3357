package redistest_test

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/testkit"
	"github.com/spillway/spillway/internal/testkit/redistest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServer(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "4mb")
	s.Do("SET", "a", "x\r\ny\x00")
	if got := s.Do("GET", "a"); got != "x\r\ny\x00" {
		t.Errorf("GET = %q", got)
	}
	if got := s.Do("GET", "nothing"); got != "" {
		t.Errorf("GET of nothing = %q", got)
	}
	if got := s.Do("CONFIG", "GET", "maxmemory"); got != "maxmemory\n4194304" {
		t.Errorf("CONFIG GET = %q", got)
	}
	var refused redistest.Error
	if _, err := s.Try("LPUSH", "a", "x"); !errors.As(err, &refused) || !strings.HasPrefix(err.Error(), "WRONGTYPE") {
		t.Errorf("LPUSH = %v, want WRONGTYPE", err)
	}

	s.Stop()
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	c.Write([]byte("PING\r\n"))
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a stopped server answers %d bytes", n)
	}
	s.Continue()
	s.Do("PING")

	s.Kill()
	if _, err := s.Try("PING"); err == nil {
		t.Error("a killed server answers")
	}
	s.Kill()
	s.Restart()
	if got := s.Do("DBSIZE"); got != "0" {
		t.Errorf("after a restart: %s keys", got)
	}
}

func TestReplica(t *testing.T) {
	s := redistest.Start(t)
	r := s.Replica()
	s.Do("SET", "a", "1")
	testkit.Eventually(t, "the replica has the key", func() bool { return r.Do("GET", "a") == "1" })
	if _, err := r.Try("SET", "a", "2"); err == nil || !strings.HasPrefix(err.Error(), "READONLY") {
		t.Errorf("SET at a replica = %v", err)
	}
	r.Promote()
	r.Do("SET", "a", "2")
	s.Follow(r)
	testkit.Eventually(t, "the old master follows", func() bool { return s.Do("GET", "a") == "2" })
}

func TestCluster(t *testing.T) {
	c := redistest.StartCluster(t)
	if got := len(c.Addrs()); got != 3 {
		t.Fatalf("%d nodes", got)
	}
	moved := 0
	for _, n := range c.Nodes {
		if _, err := n.Try("GET", "a"); err != nil && strings.HasPrefix(err.Error(), "MOVED") {
			moved++
		} else if err != nil {
			t.Error(err)
		}
	}
	if moved != 2 {
		t.Errorf("%d nodes say that a key is elsewhere, want 2", moved)
	}
}
