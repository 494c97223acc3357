package sql_test

import (
	"bufio"
	"bytes"
	"context"
	database "database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/store"
	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/testkit"
)

// soon is the time that a caller without patience has.
const soon = 100 * time.Millisecond

func TestNothingIsCreatedBeforeTheFirstWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b%", "state")
	s, stop := open(t, sql.Default(), dir)
	if _, err := get(t.Context(), s.Shard(0), 1); !errors.Is(err, sql.ErrAbsent) {
		t.Errorf("got %v, want %v", err, sql.ErrAbsent)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a read has made %s: %v", dir, err)
	}
	for n := range sql.Shards {
		if err := put(t.Context(), s.Shard(n), n, "hello"); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "spillway.db"))
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("got mode %o, want 600: answers are nobody else's business", got)
	}
	stop()
	if _, err := get(t.Context(), s.Shard(0), 0); !errors.Is(err, sql.ErrClosed) {
		t.Errorf("got %v after the end, want %v", err, sql.ErrClosed)
	}
	if err := put(t.Context(), s.Shard(0), 0, "x"); !errors.Is(err, sql.ErrClosed) {
		t.Errorf("got %v after the end, want %v", err, sql.ErrClosed)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("got %v after the end, want the database alone", left)
	}
	again, _ := open(t, sql.Default(), dir)
	for n := range sql.Shards {
		if got, err := get(t.Context(), again.Shard(n), n); got != "hello" || err != nil {
			t.Errorf("shard %d: got %q and %v, want what was written", n, got, err)
		}
	}
}

func TestNowhereToKeepThings(t *testing.T) {
	s, _ := open(t, sql.Default(), "")
	if _, err := get(t.Context(), s.Shard(0), 1); !errors.Is(err, sql.ErrAbsent) {
		t.Errorf("got %v, want %v", err, sql.ErrAbsent)
	}
	if err := put(t.Context(), s.Shard(0), 1, "x"); !errors.Is(err, store.ErrNoDirectory) {
		t.Errorf("got %v, want %v", err, store.ErrNoDirectory)
	}
}

func TestReadersCannotWrite(t *testing.T) {
	s, _ := open(t, sql.Default(), t.TempDir())
	if err := put(t.Context(), s.Shard(0), 1, "x"); err != nil {
		t.Fatal(err)
	}
	err := s.Shard(0).Read(t.Context(), func(ctx context.Context, c *sql.Conn) error {
		_, err := c.ExecContext(ctx, "DELETE FROM "+s.Shard(0).Table("notes"))
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("got %v, want that a reader cannot write", err)
	}
}

func TestFailureOfOneWriteIsNotItsNeighbours(t *testing.T) {
	s, _ := open(t, sql.Default(), t.TempDir())
	shard := s.Shard(0)
	if err := put(t.Context(), shard, 0, "first"); err != nil {
		t.Fatal(err)
	}
	mistake := errors.New("a mistake")
	bad := map[int]func(context.Context, *sql.Conn) error{
		7:  func(context.Context, *sql.Conn) error { return mistake },
		13: func(context.Context, *sql.Conn) error { panic(mistake) },
		21: func(ctx context.Context, c *sql.Conn) error {
			_, err := c.Bound.ExecContext(ctx, "INSERT INTO "+shard.Table("notes")+" (id, body) VALUES (0, 'again')")
			return err
		},
	}
	// The first one holds the writer until the others wait behind it.
	hold, held := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	var wg sync.WaitGroup
	wg.Go(func() {
		err := shard.Write(t.Context(), func(context.Context, *sql.Conn) error { close(held); <-hold; return nil })
		if err != nil {
			t.Error(err)
		}
	})
	<-held
	for i := range 30 {
		wg.Go(func() {
			err := shard.Write(t.Context(), func(ctx context.Context, c *sql.Conn) error {
				if err := insert(ctx, shard, c, i+1, "x"); err != nil {
					return err
				}
				if fail := bad[i]; fail != nil {
					return fail(ctx, c)
				}
				return nil
			})
			if (err != nil) != (bad[i] != nil) {
				t.Errorf("write %d: got %v", i, err)
			}
			if i == 7 && err != mistake { //nolint:errorlint // as it is
				t.Errorf("got %v, want the caller's own error", err)
			}
		})
	}
	testkit.Eventually(t, "all wait", func() bool { return queued(s) == 30 })
	release()
	wg.Wait()
	if got, err := count(t.Context(), shard); got != 28 || err != nil {
		t.Errorf("got %d notes and %v, want 28: the first, and all that did not fail", got, err)
	}
}

// queued is the number of writes that wait.
func queued(s *sql.Store) (n int) {
	for _, one := range s.Stats() {
		n += one.Queue
	}
	return n
}

func TestQueueIsBounded(t *testing.T) {
	s, stop := open(t, only("", func(c *sql.Config) { c.Queue = 3 }), t.TempDir())
	shard := s.Shard(0)
	if err := put(t.Context(), shard, 0, "first"); err != nil {
		t.Fatal(err)
	}
	hold, held := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = shard.Write(t.Context(), func(context.Context, *sql.Conn) error { close(held); <-hold; return nil })
	})
	<-held
	errs := make(chan error, 3)
	for i := range 3 {
		wg.Go(func() { errs <- put(t.Context(), shard, i+1, "x") })
	}
	testkit.Eventually(t, "the queue is full", func() bool { return queued(s) == 3 })
	if err := put(t.Context(), shard, 9, "x"); !errors.Is(err, sql.ErrBusy) {
		t.Errorf("got %v, want %v", err, sql.ErrBusy)
	}
	// Those who waited get their writes done, even when it ends meanwhile.
	wg.Go(stop)
	close(hold)
	wg.Wait()
	for range 3 {
		if err := <-errs; err != nil {
			t.Errorf("got %v for a write that waited", err)
		}
	}
}

func TestCallerWithoutPatienceGoes(t *testing.T) {
	s, _ := open(t, sql.Default(), t.TempDir())
	shard := s.Shard(0)
	if err := put(t.Context(), shard, 0, "first"); err != nil {
		t.Fatal(err)
	}
	hold, held := make(chan struct{}), make(chan struct{})
	defer close(hold)
	go func() {
		_ = shard.Write(context.Background(), func(context.Context, *sql.Conn) error { close(held); <-hold; return nil })
	}()
	<-held
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := put(ctx, shard, 1, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestLockedByAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, only("", func(c *sql.Config) { c.LockTimeout = 300 * time.Millisecond }), dir)
	if err := put(t.Context(), s.Shard(0), 1, "x"); err != nil {
		t.Fatal(err)
	}
	other, _ := open(t, sql.Default(), dir) // locks are between connections, whoever has them
	hold, held, gone := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		_ = other.Shard(0).Write(context.Background(), func(context.Context, *sql.Conn) error { close(held); <-hold; return nil })
	}()
	<-held
	if got, err := get(t.Context(), s.Shard(0), 1); got != "x" || err != nil {
		t.Errorf("got %q and %v, want that reads go on", got, err)
	}
	err := put(t.Context(), s.Shard(0), 2, "y")
	if err == nil || !strings.Contains(err.Error(), "another process holds it") {
		t.Errorf("got %v, want who holds it", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := put(ctx, s.Shard(0), 2, "y"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
	close(hold)
	<-gone
	if err := put(t.Context(), s.Shard(0), 2, "y"); err != nil {
		t.Errorf("got %v once the other has gone", err)
	}
	if got := faultsOf(s, sql.FaultLocked); got == 0 {
		t.Error("the failure is not counted")
	}
}

// faultsOf counts the failures of a kind.
func faultsOf(s *sql.Store, f sql.Fault) (n int64) {
	for _, one := range s.Stats() {
		n += one.Faults[f]
	}
	return n
}

func TestExclusiveLockCostsACallerItsContext(t *testing.T) {
	dir := t.TempDir()
	first, end := open(t, sql.Default(), dir)
	if err := put(t.Context(), first.Shard(0), 1, "x"); err != nil {
		t.Fatal(err)
	}
	end()
	other, err := database.Open("sqlite", filepath.Join(dir, "spillway.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.SetMaxOpenConns(1)
	for _, text := range []string{"PRAGMA locking_mode=EXCLUSIVE", "DELETE FROM notes_01"} {
		if _, err := other.Exec(text); err != nil {
			t.Fatal(err)
		}
	}
	s, _ := open(t, only("", func(c *sql.Config) { c.LockTimeout = time.Minute }), dir)
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	began := time.Now()
	if _, err := get(ctx, s.Shard(0), 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("read: got %v, want %v", err, context.DeadlineExceeded)
	}
	if err := put(ctx, s.Shard(0), 1, "y"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("write: got %v, want %v", err, context.DeadlineExceeded)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v of those who had %v", took, soon)
	}
	other.Close()
	if got, err := get(t.Context(), s.Shard(0), 1); got != "x" || err != nil {
		t.Errorf("got %q and %v once the other has gone", got, err)
	}
}

func TestDiskFull(t *testing.T) {
	s, _ := open(t, sql.Default(), t.TempDir())
	shard := s.Shard(0)
	if err := put(t.Context(), shard, 1, "small"); err != nil {
		t.Fatal(err)
	}
	pages := func(text string) {
		t.Helper()
		if err := shard.Write(t.Context(), func(ctx context.Context, c *sql.Conn) error {
			_, err := c.ExecContext(ctx, text)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	pages("PRAGMA max_page_count=60") // of the writer's connection
	body := strings.Repeat("x", 10_000)
	var err error
	wrote := 0
	for i := 2; err == nil && i < 1000; i++ {
		if err = put(t.Context(), shard, i, body); err == nil {
			wrote++
		}
	}
	if err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Fatalf("got %v, want that the disk is full", err)
	}
	for i := 2; i < wrote+2; i++ {
		if got, err := get(t.Context(), shard, i); got != body || err != nil {
			t.Errorf("note %d: got %d bytes and %v, want all of what was written", i, len(got), err)
		}
	}
	if n, err := count(t.Context(), shard); int(n) != wrote+1 || err != nil {
		t.Errorf("got %d notes and %v, want %d: nothing of the one that failed", n, err, wrote+1)
	}
	if faultsOf(s, sql.FaultFull) == 0 {
		t.Error("the failure is not counted")
	}
	pages("PRAGMA max_page_count=100000")
	if err := put(t.Context(), shard, 2000, body); err != nil {
		t.Errorf("got %v once there is room", err)
	}
}

func TestDamagedFileIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "spillway.db")
	garbage := bytes.Repeat([]byte("not a database "), 1000)
	if err := os.WriteFile(path, garbage, 0o600); err != nil {
		t.Fatal(err)
	}
	s, stop := open(t, sql.Default(), dir)
	for what, err := range map[string]error{"write": put(t.Context(), s.Shard(0), 1, "x"), "read": func() error { _, err := get(t.Context(), s.Shard(0), 1); return err }()} {
		if err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "spillway.db") {
			t.Errorf("%s: got %v, want that the file is damaged", what, err)
		}
	}
	stop()
	if got, err := os.ReadFile(path); !bytes.Equal(got, garbage) || err != nil {
		t.Errorf("the file was changed: %v", err)
	}
}

func TestFileIsTakenAway(t *testing.T) {
	dir := t.TempDir()
	s, _ := open(t, sql.Default(), dir)
	if err := put(t.Context(), s.Shard(0), 1, "x"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), s.Shard(0), 2, "y"); err != nil {
		t.Fatal(err)
	}
	if got, err := get(t.Context(), s.Shard(0), 2); got != "y" || err != nil {
		t.Errorf("got %q and %v, want what is in the new file", got, err)
	}
	if n, err := count(t.Context(), s.Shard(0)); n != 1 || err != nil {
		t.Errorf("got %d notes and %v, want 1: the old ones have gone with their file", n, err)
	}
}

func TestDirectoryThatCannotBe(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := open(t, sql.Default(), filepath.Join(dir, "file"))
	if err := put(t.Context(), s.Shard(0), 1, "x"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("got %v, want %v", err, syscall.ENOTDIR)
	}
	if _, err := get(t.Context(), s.Shard(0), 1); err == nil {
		t.Error("got a note from nowhere")
	}
	if err := os.Remove(filepath.Join(dir, "file")); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), s.Shard(0), 1, "x"); err != nil {
		t.Errorf("got %v once the directory can be made", err)
	}
}

// command runs this test's binary as a child.
func command(t *testing.T, binary, job, dir, dsn string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = append(os.Environ(), "SPILLWAY_TEST_CHILD="+job, "SPILLWAY_TEST_DIR="+dir, "SPILLWAY_TEST_DSN="+dsn)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestReadOnlyFile(t *testing.T) {
	dir := t.TempDir()
	s, stop := open(t, sql.Default(), dir)
	if err := put(t.Context(), s.Shard(0), 1, "kept"); err != nil {
		t.Fatal(err)
	}
	stop()
	path := filepath.Join(dir, "spillway.db")
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	binary := os.Args[0]
	var credential *syscall.Credential
	if os.Geteuid() == 0 { // whom no mode stops: somebody else does it
		credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		binary = filepath.Join(t.TempDir(), "test")
		program, err := os.ReadFile(os.Args[0])
		if err == nil {
			err = os.WriteFile(binary, program, 0o755)
		}
		for d := dir; err == nil && d != filepath.Dir(os.TempDir()) && d != os.TempDir(); d = filepath.Dir(d) {
			err = os.Chmod(d, 0o755)
		}
		if err == nil {
			err = os.Chmod(dir, 0o777)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := command(t, binary, "read-only", dir, "")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := "read \"kept\" <nil>\n"; !strings.Contains(string(out), want) {
		t.Errorf("got %s, want %s", out, want)
	}
	if want := "it is read-only"; !strings.Contains(string(out), want) {
		t.Errorf("got %s, want %s", out, want)
	}
}

func TestKilledWhileWriting(t *testing.T) {
	dir := t.TempDir()
	last := -1
	for range 3 {
		cmd := command(t, os.Args[0], "write", dir, "")
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(pipe)
		said := -1
		for lines.Scan() {
			if said, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatalf("the child says %q", lines.Text())
			}
			if said == 200 {
				_ = cmd.Process.Kill()
			}
		}
		_, _ = io.Copy(io.Discard, pipe)
		_ = cmd.Wait()
		last = max(last, said)
	}
	if last < 200 {
		t.Fatalf("the child wrote %d notes only", last)
	}
	s, _ := open(t, sql.Default(), dir)
	for i := range last + 1 {
		if got, err := get(t.Context(), s.Shard(i%sql.Shards), i); got != fmt.Sprint("note ", i) || err != nil {
			t.Fatalf("note %d: got %q and %v, want what was written before the process was killed", i, got, err)
		}
	}
}

func TestProcessesMigrateAtOnce(t *testing.T) {
	dir := t.TempDir()
	together(t, dir, "")
	s, _ := open(t, sql.Default(), dir)
	if n, err := count(t.Context(), s.Shard(3)); n != 4 || err != nil {
		t.Errorf("got %d notes and %v, want one of each process", n, err)
	}
	steps(t, s)
}

func TestStepThatAnotherDidMeanwhileIsNotDoneAgain(t *testing.T) {
	slow := sql.Migrations{Name: "notes", Steps: []sql.Step{
		func(sql.Dialect) []string {
			<-time.After(30 * time.Millisecond) // with the lock, so that the others have seen that it is not done
			return []string{"CREATE TABLE notes_00 (id INTEGER)"}
		},
		func(sql.Dialect) []string { return []string{"ALTER TABLE notes_00 ADD COLUMN n BIGINT"} },
	}}
	for range 3 {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		var running, writing sync.WaitGroup
		var last *sql.Store
		for range 10 {
			s, err := sql.Open(sql.Default(), dir, testkit.Discard(), slow)
			if err != nil {
				t.Fatal(err)
			}
			last = s
			running.Go(func() { _ = s.Run(ctx) })
			writing.Go(func() {
				if err := s.Shard(0).Write(ctx, func(context.Context, *sql.Conn) error { return nil }); err != nil {
					t.Error(err)
				}
			})
		}
		writing.Wait()
		steps(t, last)
		cancel()
		running.Wait()
	}
}

// steps checks that each step of the migrations is noted once.
func steps(t *testing.T, s *sql.Store) {
	t.Helper()
	var n, different int
	err := s.Shard(0).ReadLatest(t.Context(), func(ctx context.Context, c *sql.Conn) error {
		return c.Bound.QueryRowContext(ctx, "SELECT COUNT(*), COUNT(DISTINCT version_id) FROM spillway_notes_migrations").Scan(&n, &different)
	})
	if n != 3 || different != 3 || err != nil {
		t.Errorf("got %d steps, %d different, and %v, want 3 (none, one and two)", n, different, err)
	}
}

// together starts four processes that migrate at the same instant.
func together(t *testing.T, dir, dsn string) {
	t.Helper()
	var wg sync.WaitGroup
	var ready sync.WaitGroup
	for range 4 {
		cmd := command(t, os.Args[0], "migrate", dir, dsn)
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ready.Add(1)
		wg.Go(func() {
			r := bufio.NewReader(pipe)
			_, _ = r.ReadString('\n')
			ready.Done()
			rest, _ := io.ReadAll(r)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v: %s", err, rest)
			}
		})
	}
	ready.Wait()
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

func TestDurabilityOfWrites(t *testing.T) {
	s, _ := open(t, sql.Default(), t.TempDir())
	type write = func(context.Context, sql.Work) error
	shard := s.Shard(0)
	for i, tt := range []struct {
		write write
		want  string // synchronous: 1 is NORMAL, 2 is FULL
	}{{shard.Write, "2"}, {shard.WriteRelaxed, "1"}, {shard.WriteRelaxed, "1"}, {shard.Write, "2"}} {
		var got string
		err := tt.write(t.Context(), func(ctx context.Context, c *sql.Conn) error {
			return c.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&got)
		})
		if got != tt.want || err != nil {
			t.Errorf("write %d: got %q and %v, want %q", i, got, err, tt.want)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	for name, relaxed := range map[string]bool{"durable": false, "relaxed": true} {
		for _, callers := range []int{2, 32} {
			b.Run(fmt.Sprint(name, "/", callers), func(b *testing.B) {
				s, _ := open(b, sql.Default(), b.TempDir())
				shard := s.Shard(0)
				body := strings.Repeat("x", 1000)
				if err := put(b.Context(), shard, 0, body); err != nil {
					b.Fatal(err)
				}
				b.SetParallelism(callers / 2)
				b.ReportAllocs()
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					id := 0
					for pb.Next() {
						id++
						write := shard.Write
						if relaxed {
							write = shard.WriteRelaxed
						}
						if err := write(b.Context(), func(ctx context.Context, c *sql.Conn) error { return insert(ctx, shard, c, id%1000, body) }); err != nil {
							b.Error(err)
						}
					}
				})
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	s, _ := open(b, sql.Default(), b.TempDir())
	if err := put(b.Context(), s.Shard(0), 0, strings.Repeat("x", 1000)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := get(b.Context(), s.Shard(0), 0); err != nil {
			b.Fatal(err)
		}
	}
}

// TestDamagedFileIsMovedAway as the error asks for: nobody writes, because reads fail,
// and it is noticed all the same.
func TestDamagedFileIsMovedAway(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "spillway.db")
	s, _ := open(t, sql.Default(), dir)
	if err := put(t.Context(), s.Shard(0), 1, "x"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".damaged"); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "readers know that there is no file", func() bool {
		_, err := get(t.Context(), s.Shard(0), 1)
		return errors.Is(err, sql.ErrAbsent)
	})
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a file was made for a read: %v", err)
	}
	if err := put(t.Context(), s.Shard(0), 1, "y"); err != nil {
		t.Fatal(err)
	}
	if got, err := get(t.Context(), s.Shard(0), 1); got != "y" || err != nil {
		t.Errorf("got %q and %v, want what is in the new file", got, err)
	}
}
