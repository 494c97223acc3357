// Package redis keeps the connections to a Redis or Valkey that gateways share: a
// single server, one found by sentinels, or a cluster.
//
// A Client is opened by app and used by whoever keeps something in Redis, through
// Do. A gateway starts and works while Redis is away: until Run has a connection,
// and while the server is gone, every call fails at once.
//
// Calls of many goroutines share few connections and are sent together
// (pipelining). Three rules keep a server that is slow or gone from holding anybody
// up. A call ends with its context at the latest, even where the library under it
// waits for room in its queue or for another goroutine that connects. Calls under
// way are bounded; what is too much fails at once. And a caller with little time
// does not connect: its few milliseconds would end before the handshake, again and
// again, so Run connects, and looks after every server once a second.
//
// What is no answer of a Redis ends its connection before the library sees it.
//
// Run owns one goroutine for its loop and a few for each round of pings; Do one for
// each call. All of them have ended when Run returns; of the library's, a few of a
// cluster that changed sleep for 5 s more.
package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
)

// How Run looks after the connections.
const (
	checkEvery = time.Second            // a round of pings
	leastPause = 100 * time.Millisecond // between rounds, and after the first failure to connect
	mostPause  = 5 * time.Second        // between attempts to connect
)

// Bounds of a connection's buffers. The library's own of 512 KiB each would be
// reserved for every connection.
const bufferSize = 64 << 10

// Errors of calls that did not reach a server.
var (
	ErrNotConnected = errors.New("not connected to Redis")
	ErrBusy         = errors.New("too many calls to Redis are under way")
)

// Client is the way to the servers. All methods are safe for concurrent use.
type Client struct {
	option  rueidis.ClientOption
	prefix  string
	timeout time.Duration // to connect
	log     *slog.Logger

	live    atomic.Pointer[connected]
	trouble atomic.Pointer[error] // of the last attempt to connect, or round of pings; nil: it went well
	slots   chan struct{}         // one an unfinished call
	wake    chan struct{}         // a caller had not the time to connect
}

// connected is a client of the library that has reached a server once.
type connected struct{ rueidis.Client }

// New returns a client that is not connected. It reads the files that the
// configuration names.
func New(c Config, log *slog.Logger) (*Client, error) {
	if !c.Enabled() {
		return nil, errors.New("addresses: none")
	}
	secret, err := password(c.PasswordEnv, c.PasswordFile)
	if err != nil {
		return nil, err
	}
	sentinelSecret, err := password(c.Sentinel.PasswordEnv, c.Sentinel.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("sentinel.%w", err)
	}
	encryption, err := c.TLS.config()
	if err != nil {
		return nil, fmt.Errorf("tls.%w", err)
	}
	dialer := net.Dialer{Timeout: c.ConnectTimeout, KeepAlive: c.Timeout}
	option := rueidis.ClientOption{
		InitAddress: c.Addresses, Username: c.Username, Password: secret, SelectDB: c.DB, TLSConfig: encryption, Dialer: dialer,
		ClientName: "spillway", ClientSetInfo: rueidis.DisableClientSetInfo,
		ForceSingleClient: !c.Cluster && c.Sentinel.Master == "",
		ClusterOption:     rueidis.ClusterOption{ShardsRefreshInterval: 30 * time.Second, MaxMovedRedirections: 5},

		DisableCache: true, // level 1 does that, and old servers cannot
		DisableRetry: true, // who calls knows better whether there is time
		// Otherwise a lone call whose context ends closes the connection.
		AlwaysPipelining:  true,
		PipelineMultiplex: multiplex(c.Connections), BlockingPoolSize: c.BlockingConnections,
		// Calls that were given up keep their place until they are answered or the
		// connection is: room for two generations of them.
		RingScaleEachConn:  max(8, bits.Len(uint(c.Queue))+1),
		ReadBufferEachConn: bufferSize, WriteBufferEachConn: bufferSize,
		ConnWriteTimeout: c.Timeout,
	}
	if c.Sentinel.Master != "" {
		option.Sentinel = rueidis.SentinelOption{
			Dialer: dialer, TLSConfig: encryption, MasterSet: c.Sentinel.Master, Username: c.Sentinel.Username,
			Password: sentinelSecret, ClientName: "spillway", TopologyRefreshInterval: 5 * time.Second,
		}
	}
	return &Client{
		option: option, prefix: c.Prefix, timeout: c.ConnectTimeout, log: log.With("component", "store"),
		slots: make(chan struct{}, c.Queue), wake: make(chan struct{}, 1),
	}, nil
}

// multiplex is the library's way to say how many connections are shared: a power of
// two, where 0 means its own choice and less than 0 one.
func multiplex(connections int) int {
	if n := bits.Len(uint(connections)) - 1; n > 0 {
		return n
	}
	return -1
}

// Prefix is what the name of every key begins with.
func (c *Client) Prefix() string { return c.prefix }

// Err is nil while every server answers, and otherwise says why not. It wraps
// ErrNotConnected until one has.
func (c *Client) Err() error {
	err := c.trouble.Load()
	switch {
	case c.live.Load() == nil && err == nil:
		return ErrNotConnected
	case c.live.Load() == nil:
		return fmt.Errorf("%w: %w", ErrNotConnected, *err)
	case err == nil:
		return nil
	}
	return *err
}

// Do calls f with the library's client and returns what f does, or the context's
// error if that ends first: f then goes on for as long as the library takes, so it
// must own what it touches. Without a connection, or with too many calls under way,
// f is not called. Errors of the server are *rueidis.RedisError; nothing under a key
// is rueidis.Nil.
func Do[T any](ctx context.Context, c *Client, f func(ctx context.Context, r rueidis.Client) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	r := c.live.Load()
	if r == nil {
		return none, c.Err()
	}
	if err := ctx.Err(); err != nil {
		return none, err
	}
	select {
	case c.slots <- struct{}{}:
	default:
		return none, ErrBusy
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-c.slots }()
		v, err := f(ctx, r.Client)
		done <- result{v, err}
	}()
	select {
	case got := <-done:
		return got.value, got.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// Run connects, however long that takes, keeps the connections up, and closes them
// when ctx ends. Then it waits for calls that are under way, which the library ends.
func (c *Client) Run(ctx context.Context) error {
	r := c.connect(ctx)
	if r == nil {
		return nil
	}
	c.live.Store(&connected{r})
	c.log.Info("connected to Redis", "mode", string(r.Mode()))
	c.keep(ctx, r)
	c.live.Store(nil)
	r.Close()
	for range cap(c.slots) {
		c.slots <- struct{}{}
	}
	for range cap(c.slots) {
		<-c.slots
	}
	return nil
}

// connect tries until it succeeds or ctx ends; then it returns nil.
func (c *Client) connect(ctx context.Context) rueidis.Client {
	option := c.option
	option.DialCtxFn = c.dialer(ctx)
	for pause := leastPause; ; pause = min(2*pause, mostPause) {
		r, err := rueidis.NewClient(option)
		if err == nil {
			c.trouble.Store(nil)
			return r
		}
		if r != nil {
			r.Close()
		}
		if c.trouble.Swap(&err) == nil && ctx.Err() == nil {
			c.log.Warn("cannot connect to Redis; trying on", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// dialer returns what connects to a server: within the bounds of the one who needs
// the connection and of the life of the client.
func (c *Client) dialer(life context.Context) func(context.Context, string, *net.Dialer, *tls.Config) (net.Conn, error) {
	return func(ctx context.Context, addr string, d *net.Dialer, encryption *tls.Config) (net.Conn, error) {
		if end, ok := ctx.Deadline(); ok && time.Until(end) < c.timeout {
			select {
			case c.wake <- struct{}{}:
			default:
			}
			return nil, ErrNotConnected
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		network := "tcp"
		if strings.HasPrefix(addr, "/") {
			network = "unix"
		}
		dial := d.DialContext
		if encryption != nil {
			dial = (&tls.Dialer{NetDialer: d, Config: encryption}).DialContext
		}
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return check(conn, c.option.Sentinel.MasterSet != ""), nil
	}
}

// keep sends rounds of pings until ctx ends. A ping connects again where a
// connection is gone.
func (c *Client) keep(ctx context.Context, r rueidis.Client) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		err := c.ping(ctx, r)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if c.trouble.Swap(nil) != nil {
				c.log.Info("contact with Redis again")
			}
		} else if c.trouble.Swap(&err) == nil {
			c.log.Warn("no answer from Redis", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(leastPause):
		}
		if err != nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-tick.C:
		}
	}
}

// ping asks every server, over every connection to it as chance has it.
func (c *Client) ping(ctx context.Context, r rueidis.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 2*c.timeout) // more than a dial takes
	defer cancel()
	nodes := r.Nodes()
	pings := 2 * max(1, 1<<max(0, c.option.PipelineMultiplex))
	problems := make(chan error, len(nodes)*pings)
	var wg sync.WaitGroup
	for addr, node := range nodes {
		for range pings {
			wg.Go(func() {
				// With a key, the library sends it over any of its connections.
				command := node.B().Arbitrary("PING").Keys(c.prefix).Build()
				if err := node.Do(ctx, command).Error(); err != nil {
					problems <- fmt.Errorf("ping %s: %w", addr, err)
				}
			})
		}
	}
	wg.Wait()
	select {
	case err := <-problems:
		return err
	default:
		return nil
	}
}
