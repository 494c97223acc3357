// Package sqltest gives tests real servers: PostgreSQL, with a replica where one is
// asked for, and MariaDB.
//
// A server is started by the first test of a process that asks for it, from the
// distribution's programs, in a temporary directory and on a free port of loopback;
// every call makes a database of its own, which ends with its test. Where the
// programs are missing the test says so (testkit.Missing). Servers do not run as
// root, which they refuse: root's tests start them as the user postgres or mysql.
//
// Main, called by TestMain, ends the servers and removes what they kept. When the
// test process dies without it, the system ends them (Linux), and the directories
// stay.
package sqltest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/testkit"
)

// Password is that of all users of all servers.
const Password = "hunter2-sqltest"

// startTime bounds what a server takes to start, on a machine that does other
// things too.
const startTime = 60 * time.Second

// Main runs the tests of a package, ends the servers, does what comes after and fails
// when goroutines are left. It does not return.
func Main(m *testing.M, after ...func()) {
	code := m.Run()
	for _, do := range after {
		do()
	}
	for _, s := range []*server{&replica, &postgres, &maria} {
		s.stop()
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// server is a program that listens on a port.
type server struct {
	program string // to look for
	pkg     string // that has it
	user    string // whom root runs it as
	prepare func(*server) error
	args    func(*server) []string
	driver  string
	admin   func(*server) string // DSN that may create databases
	end     syscall.Signal       // that ends it at once

	once    sync.Once
	missing bool
	err     error
	dir     string // all it keeps
	port    int
	cmd     *exec.Cmd
	done    chan struct{} // closed when it has ended
}

// databases counts the databases of this process.
var databases atomic.Int64

// need starts the server, once.
func (s *server) need(t testing.TB) {
	t.Helper()
	s.once.Do(s.start)
	switch {
	case s.missing:
		testkit.Missing(t, "%s is not there: apt-get install %s, or make deps", s.program, s.pkg)
	case s.err != nil:
		t.Fatal(s.err)
	}
}

// start prepares the server's directory, runs it and waits until it answers.
func (s *server) start() {
	if s.find(s.program) == "" {
		s.missing = true
		return
	}
	s.err = s.launch()
	if s.err == nil {
		s.err = s.answers()
	}
	if s.err != nil {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
		s.err = fmt.Errorf("start %s: %w\n%s", s.program, s.err, log[max(0, len(log)-4000):])
		s.stop()
	}
}

// find is the path of a program of the distribution.
func (s *server) find(program string) string {
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + program); len(found) > 0 {
		return found[len(found)-1]
	}
	for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/"} {
		if path, err := exec.LookPath(dir + program); err == nil {
			return path
		}
	}
	return ""
}

// launch prepares and runs the server.
func (s *server) launch() (err error) {
	if s.dir, err = os.MkdirTemp("", "spillway-sqltest-"); err != nil {
		return err
	}
	attributes, err := s.as()
	if err != nil {
		return err
	}
	if c := attributes.Credential; c != nil {
		if err := os.Chown(s.dir, int(c.Uid), int(c.Gid)); err != nil {
			return err
		}
	}
	if s.port, err = freePort(); err != nil {
		return err
	}
	if err := s.prepare(s); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.find(s.program), s.args(s)...)
	s.cmd.Dir, s.cmd.SysProcAttr, s.cmd.Stdout, s.cmd.Stderr = s.dir, attributes, log, log
	s.cmd.Env = append(os.Environ(), "LC_ALL=C")
	s.done = make(chan struct{})
	started := make(chan error)
	go func() { // ends with the server
		// The death signal comes when the thread ends that started the server.
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait()
		}
		close(s.done)
	}()
	return <-started
}

// as is whom the server runs as, and that it ends with this process.
func (s *server) as() (*syscall.SysProcAttr, error) {
	a := attributes(s.end)
	if os.Geteuid() != 0 {
		return a, nil
	}
	u, err := user.Lookup(s.user)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	a.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return a, errors.Join(err, err2)
}

// run runs a program that prepares the server, as its user.
func (s *server) run(program string, args ...string) error {
	path := s.find(program)
	if path == "" {
		return fmt.Errorf("no %s", program)
	}
	a, err := s.as()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.SysProcAttr, cmd.Env = s.dir, a, append(os.Environ(), "LC_ALL=C", "PGPASSWORD="+Password)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return nil
}

// path is a file of the server.
func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// answers waits until the server answers.
func (s *server) answers() (err error) {
	for deadline := time.Now().Add(startTime); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if err = s.exec("SELECT 1"); err == nil {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("it has ended: %w", err)
		default:
		}
	}
	return err
}

// exec runs statements as the administrator.
func (s *server) exec(statements ...string) error {
	db, err := sql.Open(s.driver, s.admin(s))
	if err != nil {
		return err
	}
	defer db.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	for _, text := range statements {
		if _, err := db.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
	}
	return nil
}

// database makes one for a test.
func (s *server) database(t testing.TB, drop string) string {
	t.Helper()
	name := fmt.Sprintf("test_%d", databases.Add(1))
	if err := s.exec("CREATE DATABASE " + name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.exec(fmt.Sprintf(drop, name)); err != nil {
			t.Error(err)
		}
	})
	return name
}

// stop ends the server and removes what it kept.
func (s *server) stop() {
	if s.cmd != nil && s.cmd.Process != nil {
		_ = s.cmd.Process.Signal(s.end)
		<-s.done
	}
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
}

// freePort is a port of loopback that nobody listens on.
func freePort() (int, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}
