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

// sourceOf returns the pool's source of discovery with the settings that make it
// what it is, or nil when its instances are all written in the configuration.
// Every kind of source is listed here.
func sourceOf(p *config.Pool, log *slog.Logger) (fleet.Source, any) {
	switch {
	case p.File != nil:
		return file.New(*p.File, log), *p.File
	case p.DNS != nil:
		return dns.New(*p.DNS, log), *p.DNS
	case p.Consul != nil:
		return consul.New(*p.Consul, log), *p.Consul
	case p.Kubernetes != nil:
		return kubernetes.New(*p.Kubernetes, log), *p.Kubernetes
	}
	return nil, nil
}
