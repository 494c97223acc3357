package main

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// conf holds the configurations, rig the C programs' sources; embedding both makes the bench independent of the
// directory it is started in.
//
//go:embed conf/*.tmpl
var conf embed.FS

//go:embed rig/*.c rig/*.h
var rigSources embed.FS

// benchKey is the API key every request of the client programs carries; systems that check keys find its digest in the
// keys file.
const benchKey = "sk-bench-0123456789abcdef"

// Place is where one start of a system under test lives: what its configuration template can use.
type Place struct {
	Listen string   // host:port for clients
	Admin  string   // host:port for operators, where a system has such a listener
	Up     []string // the mock's three addresses, host:port
	Dir    string   // a directory of its own, removed when it stops
	Keys   string   // the keys file
	Log    string   // the access log
	Config string   // the rendered configuration

	Root        bool // the bench runs as root
	Files       int  // the limit of open files
	Connections int  // nginx: connections of one worker
	MaxConn     int  // HAProxy: client connections; it needs two files for each
	KeyDigest   string
}

// NewPlace lays out dir for one start. files is the process's limit of open files, from which the connection limits
// follow.
func NewPlace(dir, listen, admin string, up []string, files int) Place {
	digest := sha256.Sum256([]byte(benchKey))
	return Place{
		Listen: listen, Admin: admin, Up: up, Dir: dir,
		Keys:   filepath.Join(dir, "keys"),
		Log:    filepath.Join(dir, "access.log"),
		Config: filepath.Join(dir, "config"),
		Root:   os.Geteuid() == 0, Files: files,
		Connections: min(16384, files-100),
		MaxConn:     min(12000, (files-200)/2),
		KeyDigest:   hex.EncodeToString(digest[:]),
	}
}

// Render fills the named template of conf with a place.
func Render(name string, p Place) (string, error) {
	t, err := template.New(name).Option("missingkey=error").ParseFS(conf, "conf/"+name)
	if err != nil {
		return "", fmt.Errorf("parse %s: %w", name, err)
	}
	var b strings.Builder
	if err := t.Execute(&b, p); err != nil {
		return "", fmt.Errorf("render %s: %w", name, err)
	}
	return b.String(), nil
}

// System is one thing to measure.
type System struct {
	Name string
	// Template names the configuration in conf; empty when the command needs none.
	Template string
	// Command is the command line with its placeholders, split at blanks; empty for the mock itself.
	Command string
	// Judged systems get verdicts; the others are what they are compared with.
	Judged bool
}

// Argv replaces the placeholders of the command: {listen} {admin} {up1} {up2} {up3} {config} {dir} {keys} {key} {log}.
func (s System) Argv(p Place) []string {
	pairs := []string{
		"{listen}", p.Listen, "{admin}", p.Admin, "{config}", p.Config, "{dir}", p.Dir,
		"{keys}", p.Keys, "{key}", benchKey, "{log}", p.Log,
	}
	for i, up := range p.Up {
		pairs = append(pairs, fmt.Sprintf("{up%d}", i+1), up)
	}
	r := strings.NewReplacer(pairs...)
	argv := strings.Fields(s.Command)
	for i := range argv {
		argv[i] = r.Replace(argv[i])
	}
	return argv
}

// ParseSystem reads the value of -sut, name=command.
func ParseSystem(v string) (System, error) {
	name, command, ok := strings.Cut(v, "=")
	if !ok || name == "" || strings.TrimSpace(command) == "" {
		return System{}, errors.New("want name=command")
	}
	switch name {
	case direct, nginx, haproxy:
		return System{}, fmt.Errorf("the name %s is taken", name)
	}
	return System{Name: name, Template: "spillway.yaml.tmpl", Command: command, Judged: true}, nil
}

// The systems that are always there. direct is the mock without a proxy.
const (
	direct  = "direct"
	nginx   = "nginx"
	haproxy = "haproxy"
)

// peers are the systems to compare with, the baseline of all ratios (nginx) among them.
func peers() []System {
	return []System{
		{Name: direct},
		{Name: nginx, Template: "nginx.conf.tmpl", Command: "nginx -p {dir} -c {config}"},
		{Name: haproxy, Template: "haproxy.cfg.tmpl", Command: "haproxy -db -q -f {config}"},
	}
}
