package app_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/testkit"
)

// childConfig is the variable by which this test's binary is told to be a gateway
// with a configuration file, and nothing else.
const childConfig = "SPILLWAY_TEST_CHILD"

// child is such a gateway. It says where it listens, and runs until it is killed.
func child(path string) {
	err := func() error {
		file, err := config.Load(path)
		if err != nil {
			return err
		}
		a, err := app.New(file, app.Options{Version: "test", Stdout: io.Discard, Stderr: os.Stderr})
		if err != nil {
			return err
		}
		l, err := a.Listen(context.Background())
		if err != nil {
			return err
		}
		fmt.Println(l.API.Addr(), l.Admin.Addr())
		return a.Run(context.Background(), l, nil)
	}()
	fmt.Println(err)
	os.Exit(1)
}

// process is a gateway in a process of its own.
type process struct {
	*rig
	cmd *exec.Cmd
}

// newProcess runs one until the end of the test. A user other than 0 is whom root
// runs it as; anybody else runs it as themselves.
func newProcess(t *testing.T, text string, user uint32) *process {
	t.Helper()
	dir, binary := t.TempDir(), os.Args[0]
	p := &process{rig: &rig{t: t, path: filepath.Join(dir, "spillway.yaml")}}
	write(t, p.path, text)
	attributes := &syscall.SysProcAttr{}
	if user != 0 && os.Geteuid() == 0 {
		attributes.Credential = &syscall.Credential{Uid: user, Gid: user}
		binary = filepath.Join(dir, "gateway")
		program, err := os.ReadFile(os.Args[0])
		if err == nil {
			err = os.WriteFile(binary, program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		open(t, dir)
		if err := os.Chmod(p.path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.cmd = exec.Command(binary)
	p.cmd.Env = append(os.Environ(), childConfig+"="+p.path)
	p.cmd.Stderr, p.cmd.SysProcAttr = &p.errs, attributes
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	p.client = &http.Client{Transport: transport, Timeout: 15 * time.Second}
	t.Cleanup(func() {
		p.kill()
		transport.CloseIdleConnections()
		if t.Failed() {
			t.Logf("log of the process:\n%s", p.errs.String())
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	api, admin, ok := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || !ok {
		t.Fatalf("the process says %q, %v: %s", line, err, p.errs.String())
	}
	p.api, p.admin = "http://"+api, "http://"+admin
	testkit.Eventually(t, "the process serves", func() bool { status, _ := p.get(p.api + "/livez"); return status == 200 })
	return p
}

// kill ends the process as the system does when it has no memory left.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// fileLimit bounds the size to which the process may write any file, in bytes: a
// disk that is full.
func (p *process) fileLimit(size string) {
	p.t.Helper()
	if _, err := exec.LookPath("prlimit"); err != nil {
		testkit.Missing(p.t, "no prlimit on this machine (util-linux)")
	}
	out, err := exec.Command("prlimit", "--pid", strconv.Itoa(p.cmd.Process.Pid), "--fsize="+size+":unlimited").CombinedOutput()
	if err != nil {
		p.t.Fatalf("prlimit: %v: %s", err, out)
	}
}

// open lets everybody into a directory of a test.
func open(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
