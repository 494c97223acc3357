package sql

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"time"
)

// dialer opens connections for a pool. A caller with little time does not wait for
// longer than it has, and the connection that it asked for is there for the next
// one: otherwise a pool that is asked with 5 ms to spare would never fill when
// connecting takes 10 ms.
type dialer struct {
	driver.Connector

	timeout time.Duration
	slots   chan struct{}   // one for each connection that is being opened
	spare   chan connection // nobody waited for
	done    chan struct{}   // closed by Close
	wg      sync.WaitGroup
	once    sync.Once
}

// connection is an open connection, or why there is none.
type connection struct {
	conn driver.Conn
	err  error
	at   time.Time
}

// spareLife is how long a connection may wait for its first use. Servers close
// idle ones much later.
const spareLife = 30 * time.Second

// errClosedPool is what a closed dialer says.
var errClosedPool = errors.New("the pool is closed")

// newDialer opens at most n connections at once.
func newDialer(c driver.Connector, n int, timeout time.Duration) *dialer {
	return &dialer{Connector: c, timeout: timeout, slots: make(chan struct{}, n), spare: make(chan connection, n), done: make(chan struct{})}
}

// Connect implements driver.Connector.
func (d *dialer) Connect(ctx context.Context) (driver.Conn, error) {
	for ctx.Err() == nil {
		c := d.left()
		if c.conn == nil {
			break
		}
		if time.Since(c.at) < spareLife {
			return c.conn, nil
		}
		_ = c.conn.Close()
	}
	select {
	case c := <-d.spare:
		return c.conn, nil
	case d.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-d.done:
		return nil, errClosedPool
	}
	out := make(chan connection)
	d.wg.Go(func() { d.dial(ctx, out) })
	select {
	case c := <-out:
		return c.conn, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-d.done:
		return nil, errClosedPool
	}
}

// left takes a connection that nobody waited for, if there is one.
func (d *dialer) left() connection {
	select {
	case c := <-d.spare:
		return c
	default:
		return connection{}
	}
}

// dial opens one connection for the caller, or for the next one when it has gone.
func (d *dialer) dial(caller context.Context, out chan<- connection) {
	defer func() { <-d.slots }()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(caller), d.timeout)
	defer cancel()
	d.wg.Go(func() { // ends with cancel
		select {
		case <-d.done:
			cancel()
		case <-ctx.Done():
		}
	})
	conn, err := d.Connector.Connect(ctx)
	c := connection{conn, err, time.Now()}
	select {
	case out <- c:
		return
	case <-caller.Done():
	case <-d.done:
	}
	if err != nil {
		return
	}
	select {
	case <-d.done:
	default:
		select {
		case d.spare <- c:
			return
		default:
		}
	}
	_ = conn.Close()
}

// Close ends what is under way and closes what nobody waited for. The pool calls
// it when it is closed.
func (d *dialer) Close() error {
	d.once.Do(func() { close(d.done) })
	d.wg.Wait()
	for c := d.left(); c.conn != nil; c = d.left() {
		_ = c.conn.Close()
	}
	return nil
}
