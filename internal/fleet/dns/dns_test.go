package dns_test

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/dns"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a small name server on UDP and TCP.
type server struct {
	addr string

	mu struct {
		sync.Mutex
		records  map[string][]dnsmessage.Resource // by type and name
		rcode    dnsmessage.RCode
		truncate bool // answers over UDP
		asked    map[string]int
	}
}

func serve(t *testing.T) *server {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	for range 20 { // both on the same port
		var err error
		if udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err == nil {
			break
		}
		udp.Close()
	}
	if tcp == nil {
		t.Fatal("no port that is free on UDP and TCP")
	}
	s := &server{addr: udp.LocalAddr().String()}
	s.mu.records = make(map[string][]dnsmessage.Resource)
	s.mu.asked = make(map[string]int)
	var wg sync.WaitGroup
	wg.Go(func() { s.datagrams(udp) })
	wg.Go(func() { s.streams(tcp) })
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
		wg.Wait()
	})
	return s
}

func (s *server) datagrams(c net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(s.answer(buf[:n], "udp"), from)
	}
}

func (s *server) streams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err == nil {
			question := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, question); err == nil {
				out := s.answer(question, "tcp")
				_, _ = c.Write(binary.BigEndian.AppendUint16(nil, uint16(len(out))))
				for len(out) > 0 { // in small pieces
					n := min(len(out), 7)
					_, _ = c.Write(out[:n])
					out = out[n:]
				}
			}
		}
		c.Close()
	}
}

func (s *server) answer(question []byte, network string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.asked[network]++
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil
	}
	q := m.Questions[0]
	out := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RecursionAvailable: true, RCode: s.mu.rcode},
		Questions: m.Questions,
	}
	if s.mu.rcode == dnsmessage.RCodeSuccess {
		out.Answers = s.mu.records[q.Type.String()+" "+strings.ToLower(q.Name.String())]
	}
	if network == "udp" && s.mu.truncate && len(out.Answers) > 0 {
		out.Truncated, out.Answers = true, nil
	}
	b, err := out.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

// set replaces the records of a name.
func (s *server) set(name string, ttl uint32, bodies ...dnsmessage.ResourceBody) {
	s.mu.Lock()
	defer s.mu.Unlock()
	byType := map[string][]dnsmessage.Resource{"TypeA " + name: nil, "TypeAAAA " + name: nil, "TypeSRV " + name: nil}
	for _, b := range bodies {
		h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}
		key := ""
		switch b.(type) {
		case *dnsmessage.AResource:
			h.Type, key = dnsmessage.TypeA, "TypeA "
		case *dnsmessage.AAAAResource:
			h.Type, key = dnsmessage.TypeAAAA, "TypeAAAA "
		case *dnsmessage.SRVResource:
			h.Type, key = dnsmessage.TypeSRV, "TypeSRV "
		}
		byType[key+name] = append(byType[key+name], dnsmessage.Resource{Header: h, Body: b})
	}
	for k, v := range byType {
		s.mu.records[k] = v
	}
}

func (s *server) fail(code dnsmessage.RCode) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.rcode = code
}

func (s *server) asked(network string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.asked[network]
}

func a(last byte) *dnsmessage.AResource { return &dnsmessage.AResource{A: [4]byte{10, 0, 0, last}} }

func srv(target string, port, priority, weight uint16) *dnsmessage.SRVResource {
	return &dnsmessage.SRVResource{Target: dnsmessage.MustNewName(target), Port: port, Priority: priority, Weight: weight}
}

// run starts a source and returns what it reports.
func run(t *testing.T, cfg dns.Config) (<-chan []fleet.Target, *testkit.Log) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	l := new(testkit.Log)
	src := dns.New(cfg, slog.New(slog.NewTextHandler(l, nil)))
	got := make(chan []fleet.Target, 16)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- src.Run(ctx, func(t []fleet.Target) { got <- t }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return got, l
}

func expect(t *testing.T, got <-chan []fleet.Target, want ...fleet.Target) {
	t.Helper()
	select {
	case targets := <-got:
		if diff := cmp.Diff(want, targets); diff != "" && len(want)+len(targets) > 0 {
			t.Fatalf("targets (-want +got):\n%s", diff)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing reported; want %v", want)
	}
}

func config(s *server) dns.Config {
	cfg := dns.Default()
	cfg.Name, cfg.Port, cfg.Server = "gpu.test.", 8000, s.addr
	return cfg
}

func TestAddressesFollowTheTimeToLive(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.set("gpu.test.", 1, a(2), a(1), &dnsmessage.AAAAResource{AAAA: [16]byte{0xfd, 15: 1}})
	got, _ := run(t, config(s))
	expect(t, got, fleet.Target{URL: "http://10.0.0.1:8000"}, fleet.Target{URL: "http://10.0.0.2:8000"}, fleet.Target{URL: "http://[fd00::1]:8000"})
	s.set("gpu.test.", 1, a(1), a(2), &dnsmessage.AAAAResource{AAAA: [16]byte{0xfd, 15: 1}}) // rotated: no change
	before := s.asked("udp")
	testkit.Eventually(t, "asked twice more", func() bool { return s.asked("udp") >= before+2 })
	s.set("gpu.test.", 1, a(3))
	expect(t, got, fleet.Target{URL: "http://10.0.0.3:8000"})
}

func TestLongTimeToLiveIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.set("gpu.test.", 300, a(1))
	got, _ := run(t, config(s))
	expect(t, got, fleet.Target{URL: "http://10.0.0.1:8000"})
	before := s.asked("udp")
	time.Sleep(1500 * time.Millisecond) // longer than the shortest time that any answer is held
	if n := s.asked("udp"); n != before {
		t.Errorf("asked %d times more within the time to live", n-before)
	}
}

func TestErrorsKeepTheSetAndEmptyAnswersArePassedOnOnce(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.set("gpu.test.", 1, a(1))
	got, l := run(t, config(s))
	expect(t, got, fleet.Target{URL: "http://10.0.0.1:8000"})
	s.fail(dnsmessage.RCodeServerFailure)
	testkit.Eventually(t, "an error is logged", func() bool { return l.Count("cannot be looked up") > 0 })
	before := s.asked("udp")
	testkit.Eventually(t, "looked up once more at least", func() bool { return s.asked("udp") >= before+4 })
	if n := l.Count("cannot be looked up"); n != 1 {
		t.Errorf("logged %d times, want once", n)
	}
	if len(got) != 0 {
		t.Errorf("an error was reported as %v", <-got)
	}
	s.fail(dnsmessage.RCodeSuccess)
	s.set("gpu.test.", 1)
	expect(t, got)
}

func TestNamesThatDoNotExistAreEmpty(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.fail(dnsmessage.RCodeNameError)
	got, _ := run(t, config(s))
	expect(t, got)
	s.fail(dnsmessage.RCodeSuccess)
	s.set("gpu.test.", 1, a(2))
	expect(t, got, fleet.Target{URL: "http://10.0.0.2:8000"})
}

func TestServices(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.set("_llm._tcp.test.", 1, srv("b.test.", 9000, 10, 60), srv("a.test.", 8000, 10, 0), srv("c.test.", 7000, 20, 5), srv("gone.test.", 1, 10, 1))
	s.set("a.test.", 60, a(1))
	s.set("b.test.", 60, a(2), a(3))
	s.set("c.test.", 60, a(4))
	cfg := config(s)
	cfg.Name, cfg.Type, cfg.Port, cfg.Scheme = "_llm._tcp.test.", dns.TypeSRV, 0, "https"
	got, _ := run(t, cfg)
	expect(t, got,
		fleet.Target{URL: "https://10.0.0.1:8000", Weight: 1},
		fleet.Target{URL: "https://10.0.0.2:9000", Weight: 60},
		fleet.Target{URL: "https://10.0.0.3:9000", Weight: 60},
		fleet.Target{URL: "https://10.0.0.4:7000", Weight: 5, Backup: true},
	)
	s.set("_llm._tcp.test.", 1, srv(".", 0, 0, 0)) // the shortest time to live was the record's own
	expect(t, got)
}

func TestTruncatedAnswersComeOverTCPWithTheirTimeToLive(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.mu.truncate = true
	var want []fleet.Target
	var bodies []dnsmessage.ResourceBody
	for i := byte(100); i < 200; i++ {
		bodies = append(bodies, a(i))
		want = append(want, fleet.Target{URL: "http://10.0.0." + string([]byte{'1', '0' + i/10%10, '0' + i%10}) + ":8000"})
	}
	s.set("gpu.test.", 1, bodies...)
	got, _ := run(t, config(s))
	expect(t, got, want...)
	if s.asked("tcp") == 0 {
		t.Error("not asked over TCP")
	}
	s.set("gpu.test.", 1, a(1))
	expect(t, got, fleet.Target{URL: "http://10.0.0.1:8000"})
}

func TestAddressesNeedNoServer(t *testing.T) {
	t.Parallel()
	cfg := dns.Default()
	cfg.Name, cfg.Port, cfg.Scheme = "127.0.0.1", 1, "https"
	got, _ := run(t, cfg)
	expect(t, got, fleet.Target{URL: "https://127.0.0.1:1"})
}

func TestValidate(t *testing.T) {
	cases := map[string]struct {
		change func(*dns.Config)
		want   string // part of the message; "" is valid
	}{
		"default":        {func(c *dns.Config) {}, ""},
		"no name":        {func(c *dns.Config) { c.Name = "" }, "name: "},
		"url":            {func(c *dns.Config) { c.Name = "http://x" }, "name: "},
		"type":           {func(c *dns.Config) { c.Type = "mx" }, "type: "},
		"no port":        {func(c *dns.Config) { c.Port = 0 }, "port: "},
		"srv with port":  {func(c *dns.Config) { c.Type = dns.TypeSRV }, "port: has no effect"},
		"scheme":         {func(c *dns.Config) { c.Scheme = "ftp" }, "scheme: "},
		"server":         {func(c *dns.Config) { c.Server = "a:b:c" }, "server: "},
		"server no port": {func(c *dns.Config) { c.Server = "10.0.0.1" }, ""},
		"server v6":      {func(c *dns.Config) { c.Server = "::1" }, ""},
		"server port":    {func(c *dns.Config) { c.Server = "10.0.0.1:x" }, "server: "},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			cfg := dns.Default()
			cfg.Name, cfg.Port = "gpu.test", 8000
			c.change(&cfg)
			err := cfg.Validate()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
