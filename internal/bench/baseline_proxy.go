package bench

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
)

// proxyFiles are the configurations of the proxies that the gateway is compared
// with.
//
//go:embed conf/nginx.conf.tmpl conf/haproxy.cfg.tmpl
var proxyFiles embed.FS

// proxyPlace is what a proxy's configuration is made of.
type proxyPlace struct {
	Proxy
	Listen      string   // host:port
	Engines     []string // host:port
	Dir         string   // of its own
	Root        bool     // the bench runs as root
	Files       int      // bound of open files of a process
	Connections int      // bound of connections, of nginx those of a worker
}

// PerMinute is nginx's rate: it takes whole numbers only, and a minute has more
// of them than a second.
func (p proxyPlace) PerMinute() int { return int(math.Round(60 * p.Rate)) }

// QueueMillis is HAProxy's timeout queue.
func (p proxyPlace) QueueMillis() int64 { return p.Queue.Milliseconds() }

// Connections of the proxies: HAProxy needs two files for each, nginx's workers
// count both sides.
const (
	spareFiles       = 200
	usualFiles       = 1024    // where the system does not say
	mostFiles        = 1 << 20 // however many it allows
	nginxConnections = 16384
	haproxyClients   = 12000
)

// newProxyPlace lays out a proxy for a process with at most files open files.
func newProxyPlace(system string, p Proxy, listen string, engines []string, files int) proxyPlace {
	place := proxyPlace{Proxy: p, Listen: listen, Engines: engines, Files: files, Root: os.Geteuid() == 0}
	if system == SystemNginx {
		place.Connections = min(nginxConnections, files-spareFiles)
	} else {
		place.Connections = min(haproxyClients, (files-spareFiles)/2)
	}
	return place
}

// proxyFile is the name of a proxy's configuration in proxyFiles.
func proxyFile(system string) string {
	if system == SystemNginx {
		return "nginx.conf.tmpl"
	}
	return "haproxy.cfg.tmpl"
}

// proxyConfig writes a proxy's configuration.
func proxyConfig(system string, place proxyPlace) (string, error) {
	t, err := template.ParseFS(proxyFiles, "conf/"+proxyFile(system))
	if err != nil {
		return "", fmt.Errorf("configure %s: %w", system, err)
	}
	var b strings.Builder
	if err := t.Execute(&b, place); err != nil {
		return "", fmt.Errorf("configure %s: %w", system, err)
	}
	return b.String(), nil
}

// errMissing says how to get a program that is not there.
var errMissing = errors.New("not installed; tools/peers.sh installs it")

// proxyBinary finds a proxy's program, also where daemons are and ordinary users
// do not look.
func proxyBinary(system string) (string, error) {
	for _, name := range []string{system, filepath.Join("/usr/sbin", system), filepath.Join("/usr/local/sbin", system)} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", system, errMissing)
}

// proxyProcess is nginx or HAProxy in front of engines.
type proxyProcess struct {
	process
	url string
	dir string
}

// startProxy starts a proxy in front of the rig's engines.
func startProxy(ctx context.Context, r *rig, system string, settings Proxy) (*proxyProcess, error) {
	binary, err := proxyBinary(system)
	if err != nil {
		return nil, err
	}
	listen, err := freeAddr()
	if err != nil {
		return nil, err
	}
	p := &proxyProcess{url: "http://" + listen}
	if p.dir, err = os.MkdirTemp(r.dir, system+"-"); err != nil {
		return nil, err
	}
	place := newProxyPlace(system, settings, listen, r.engines.at, openFiles())
	place.Dir = p.dir
	text, err := proxyConfig(system, place)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(p.dir, "config")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	args := []string{"-c", file, "-p", p.dir}
	if system == SystemHAProxy {
		args = []string{"-db", "-q", "-f", file}
	}
	p.process = process{name: system, binary: binary, args: args, errors: r.Err}
	if err := p.start(ctx, ""); err != nil {
		return nil, err
	}
	if err := waitReady(ctx, p.url+"/health"); err != nil || !p.running() {
		p.stop()
		return nil, fmt.Errorf("start %s: %w", system, errors.Join(err, errEnded(err)))
	}
	return p, nil
}

// errEnded stands for a program that ended while another one answered in its place.
func errEnded(err error) error {
	if err != nil {
		return nil
	}
	return errors.New("it ended at once")
}
