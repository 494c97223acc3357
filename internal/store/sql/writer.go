package sql

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/uptrace/bun"

	"github.com/spillway/spillway/internal/store"
)

// Bounds of the writer of a SQLite file.
const (
	maxGroup    = 128              // pieces of work in one transaction
	idle        = 2 * time.Second  // after which the write-ahead log is moved into the file
	lastWrites  = 10 * time.Second // for the writes that wait when the database is closed
	maxLog      = 64 << 20         // bytes that the write-ahead log keeps on the disk
	driverWait  = 10               // ms that SQLite itself waits for a lock; more is waited for with a context
	readerCache = 8 << 10          // KiB of pages that each connection keeps
	writerConns = 2                // one holds the transaction, one prepares statements
)

// What the writer says beside what SQLite says.
var (
	errMoved = errors.New("the file was taken away")
	errPanic = errors.New("panic")
)

// writer is the one that changes a SQLite file.
type writer struct {
	*Database

	requests chan *request
	pool     atomic.Pointer[pool]

	// Of the goroutine of run alone.
	conn  *bun.Conn   // all transactions are on this one
	sync  string      // how its commits are synced; "" is not known
	file  os.FileInfo // when it was opened
	dirty bool        // the log has what the file has not
}

// request is a piece of work that waits.
type request struct {
	ctx     context.Context //nolint:containedctx // of the caller, who waits for the answer
	do      Work
	relaxed bool
	taken   atomic.Bool // by the writer, or back by a caller that has no more time
	done    chan error
}

// newWriter prepares the writer of a database.
func newWriter(d *Database) *writer {
	return &writer{Database: d, requests: make(chan *request, d.cfg.Queue)}
}

// write has the writer do work, and waits.
func (w *writer) write(ctx context.Context, do Work, relaxed bool) error {
	r := &request{ctx: ctx, do: do, relaxed: relaxed, done: make(chan error, 1)}
	if w.gate.closed() {
		w.queue.leave()
		return ErrClosed
	}
	w.requests <- r // has room for as many as are let in; the writer gives the place back
	select {
	case err := <-r.done:
		return err
	case <-ctx.Done():
		r.taken.Store(true)
		return ctx.Err()
	}
}

// run writes until ctx ends, and then what waits.
func (w *writer) run(ctx context.Context) {
	w.begin(ctx)
	tick := time.NewTicker(idle)
	defer tick.Stop()
	quiet := true
	for ctx.Err() == nil {
		select {
		case r := <-w.requests:
			w.group(ctx, r)
			quiet = false
		case <-tick.C:
			if quiet {
				w.rest(ctx)
			}
			quiet = true
		case <-ctx.Done():
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrites)
	defer cancel()
	w.gate.set(fmt.Errorf("%s: %w", w.name, ErrClosed), true)
	for w.queue.n.Load() > 0 { // all that were let in get an answer
		select {
		case r := <-w.requests:
			w.group(last, r)
		case <-time.After(time.Millisecond):
		}
	}
	w.rest(last)
	w.shut()
}

// begin opens the file when there is one.
func (w *writer) begin(ctx context.Context) {
	if w.path == "" || !exists(w.path) {
		w.gate.set(fmt.Errorf("%s: %w", w.name, ErrAbsent), false)
		return
	}
	if err := w.ready(ctx); err != nil {
		w.log.WarnContext(ctx, "database cannot be used yet", "error", explain(w.name, err))
	}
}

// exists says whether there is something at a path.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// group does a piece of work, together with those that wait behind it.
func (w *writer) group(ctx context.Context, first *request) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.LockTimeout+w.cfg.Timeout)
	defer cancel()
	list := make([]*request, 0, 8)
	for r := first; r != nil; {
		w.queue.leave()
		if r.ctx.Err() == nil && !r.taken.Swap(true) {
			list = append(list, r)
		} else {
			r.done <- r.ctx.Err()
		}
		if r = nil; len(list) < maxGroup {
			select {
			case r = <-w.requests:
			default:
			}
		}
	}
	if len(list) == 0 {
		return
	}
	err := w.ready(ctx)
	if err == nil {
		err = w.together(ctx, list)
	}
	if err != nil { // no transaction to be had: all fail alike
		for _, r := range list {
			r.done <- err
		}
	}
}

// together does work in one transaction, or each piece in its own when one of them
// fails. It answers the requests, unless there is no transaction to be had: that is
// its error.
func (w *writer) together(ctx context.Context, list []*request) error {
	began, err := w.transaction(ctx, list)
	if !began {
		return err
	}
	if err == nil || len(list) == 1 {
		for _, r := range list {
			r.done <- err
		}
		return nil
	}
	for i, r := range list {
		began, err := w.transaction(ctx, list[i:i+1])
		if !began {
			for _, r := range list[i:] {
				r.done <- err
			}
			return nil
		}
		r.done <- err
	}
	return nil
}

// transaction does work in one transaction, and says whether it could begin.
func (w *writer) transaction(ctx context.Context, list []*request) (began bool, err error) {
	relaxed := true
	for _, r := range list {
		relaxed = relaxed && r.relaxed
	}
	tx, err := w.start(ctx, relaxed)
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			_ = tx.Rollback() // fails when SQLite has done so already
		}
		if fault := classify(err); fault != noFault && fault != FaultFull && fault != FaultLocked {
			w.discard()
		}
	}()
	w.dirty = true
	c := &Conn{IDB: tx, Bound: w.pool.Load().bound(tx.Tx)}
	for _, r := range list {
		if err := safely(ctx, r.do, c); err != nil {
			return true, err
		}
	}
	return true, tx.Commit()
}

// safely does work and turns its panic into an error, so that a mistake in one
// feature does not end the writer of all.
func safely(ctx context.Context, do Work, c *Conn) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, r, debug.Stack())
		}
	}()
	return do(ctx, c)
}

// start begins a transaction, and waits while another process has one.
func (w *writer) start(ctx context.Context, relaxed bool) (bun.Tx, error) {
	until := time.Now().Add(w.cfg.LockTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		tx, err := w.attempt(ctx, relaxed)
		if classify(err) != FaultLocked || time.Now().After(until) {
			return tx, err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return tx, err
		}
	}
}

// attempt begins a transaction.
func (w *writer) attempt(ctx context.Context, relaxed bool) (bun.Tx, error) {
	if w.conn == nil {
		conn, err := w.pool.Load().bun.Conn(ctx)
		if err != nil {
			return bun.Tx{}, err
		}
		w.conn, w.sync = &conn, ""
	}
	level := "FULL"
	if relaxed {
		level = "NORMAL"
	}
	if level != w.sync {
		if _, err := w.conn.Conn.ExecContext(ctx, "PRAGMA synchronous="+level); err != nil {
			return bun.Tx{}, err
		}
		w.sync = level
	}
	tx, err := w.conn.BeginTx(ctx, nil)
	if err != nil && classify(err) != FaultLocked {
		w.discard()
	}
	return tx, err
}

// discard closes the connection: what went wrong may be its own, as when the file
// could only be read at the time.
func (w *writer) discard() {
	if w.conn != nil {
		_ = w.conn.Conn.Raw(func(any) error { return driver.ErrBadConn })
		w.release()
	}
}

// release gives the connection back.
func (w *writer) release() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// ready opens the file, and makes it and its tables where they are missing.
func (w *writer) ready(ctx context.Context) error {
	if w.file != nil && !w.leaveMoved(ctx) {
		return nil
	}
	err := w.make(ctx)
	if err != nil {
		w.shut()
		w.gate.set(explain(w.name, err), false)
		return err
	}
	w.gate.set(nil, false)
	return nil
}

// leaveMoved closes a file that is not where it was, and says whether that is so.
func (w *writer) leaveMoved(ctx context.Context) bool {
	info, err := os.Stat(w.path)
	if err == nil && os.SameFile(info, w.file) {
		return false
	}
	w.log.WarnContext(ctx, "the database's file was taken away; the next write makes a new one where there is none", "error", err)
	w.shut()
	w.gate.set(fmt.Errorf("%s: %w", w.name, errMoved), false)
	return true
}

// make opens the file and makes what is missing.
func (w *writer) make(ctx context.Context) error {
	if w.path == "" {
		return store.ErrNoDirectory
	}
	if err := touch(w.path); err != nil {
		return err
	}
	info, err := os.Stat(w.path)
	if err != nil {
		return err
	}
	common := fmt.Sprintf("_busy_timeout=%d&_pragma=cache_size(-%d)", driverWait, readerCache)
	writer, err := newPool(w.source, w.cfg, writerConns, common+"&_txlock=immediate&_journal_mode=WAL&_synchronous=FULL&_pragma=journal_size_limit("+strconv.Itoa(maxLog)+")")
	if err != nil {
		return err
	}
	w.pool.Store(writer)
	// Two, as one may be busy with rows while another prepares a statement.
	readers, err := newPool(w.source, w.cfg, max(2, w.cfg.MaxOpen), common+"&_query_only=1")
	if err != nil {
		return err
	}
	w.primary.Store(readers)
	w.file = info
	if !w.cfg.Migrate {
		return nil
	}
	until := time.Now().Add(w.cfg.LockTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := migrate(ctx, writer, w.sets)
		if classify(err) != FaultLocked || time.Now().After(until) {
			return err
		}
		if pause(ctx, wait); ctx.Err() != nil {
			return err
		}
	}
}

// touch makes a file that only this user can read, as answers and jobs are nobody
// else's business; SQLite would make one for everybody. It must not open one that
// is there: to close it would take SQLite's locks away.
func touch(path string) error {
	if exists(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	return f.Close()
}

// rest uses a quiet time: the write-ahead log is moved into the file, which waits
// for nobody. A file that was taken away is noticed, as readers of the old one may
// fail, and keep those who would write away.
func (w *writer) rest(ctx context.Context) {
	if w.file != nil && w.leaveMoved(ctx) {
		w.begin(ctx)
		return
	}
	if w.file == nil {
		if exists(w.path) && w.path != "" {
			w.begin(ctx) // another process has made it, or what was wrong is not any more
		}
		return
	}
	if !w.dirty {
		return
	}
	if _, err := w.pool.Load().db.ExecContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
		w.result(ctx, err) //nolint:errcheck // counts it; the next commit tries again
		return
	}
	w.dirty = false
}

// shut closes the file.
func (w *writer) shut() {
	w.release()
	for _, p := range []*pool{w.primary.Load(), w.pool.Load()} { // the last one to close moves the log into the file
		if p != nil {
			p.close()
		}
	}
	w.file = nil
}
