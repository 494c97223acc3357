package app

import (
	"log/slog"

	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/consul"
	"github.com/spillway/spillway/internal/fleet/dns"
	"github.com/spillway/spillway/internal/fleet/file"
	"github.com/spillway/spillway/internal/fleet/kubernetes"
)

// sourceSettings is what makes the pool's source of discovery what it is, or nil when
// its instances are all written in the configuration. Every kind of source is listed
// here, and in newSource.
func sourceSettings(p *config.Pool) any {
	switch {
	case p.File != nil:
		return *p.File
	case p.DNS != nil:
		return *p.DNS
	case p.Consul != nil:
		return *p.Consul
	case p.Kubernetes != nil:
		return *p.Kubernetes
	}
	return nil
}

// newSource returns a source by its settings.
func newSource(settings any, log *slog.Logger) fleet.Source {
	switch s := settings.(type) {
	case file.Config:
		return file.New(s, log)
	case dns.Config:
		return dns.New(s, log)
	case consul.Config:
		return consul.New(s, log)
	case kubernetes.Config:
		return kubernetes.New(s, log)
	}
	panic("app: settings of no known source")
}
