package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/spillway/spillway/internal/bench/registry"
)

// The registries that instances are found in.
const (
	sourceConsul     = "consul"
	sourceKubernetes = "kubernetes"
)

// listedService is the name that the instances have in a registry.
const listedService = "sim"

// writers is how many writes are under way at once.
const writers = 4

// told keeps what a registry was told of each instance.
type told struct {
	said   []bool
	rounds int
}

// write calls do for each instance of which something new is to be said, several at
// once, with the number of the round. It returns the first error.
func (c *told) write(in []bool, do func(i, round int) error) error {
	c.rounds++
	var wg sync.WaitGroup
	slots, errs := make(chan struct{}, writers), make(chan error, len(in))
	for i := range in {
		if c.said[i] == in[i] {
			continue
		}
		c.said[i] = in[i]
		slots <- struct{}{}
		wg.Go(func() {
			if err := do(i, c.rounds); err != nil {
				errs <- err
			}
			<-slots
		})
	}
	wg.Wait()
	close(errs)
	return <-errs // or nil
}

// consulListing is a listing in Consul: one entry an instance, which is taken out,
// or critical.
type consulListing struct {
	told
	agent   *registry.Consul
	engines []*scripted
}

// startConsulListing starts an agent without instances.
func startConsulListing(ctx context.Context, dir string, engines []*scripted) (*consulListing, error) {
	a, err := registry.NewConsul(dir, "", "")
	if err != nil {
		return nil, err
	}
	if err := a.Start(ctx); err != nil {
		return nil, err
	}
	return &consulListing{told: told{said: make([]bool, len(engines))}, agent: a, engines: engines}, nil
}

// source implements listing.
func (l *consulListing) source() string {
	return fmt.Sprintf("consul: {address: %q, service: %s}", l.agent.URL(), listedService)
}

// write implements listing. Of those taken out every other is critical, and every
// other is gone.
func (l *consulListing) write(ctx context.Context, in []bool) error {
	return l.told.write(in, func(i, round int) error {
		id, status := strconv.Itoa(i), "passing"
		if !in[i] {
			if (i+round)%2 == 0 {
				return l.agent.Remove(ctx, id)
			}
			status = "critical"
		}
		host, port, err := splitAddr(l.engines[i].addr)
		if err != nil {
			return err
		}
		return l.agent.Set(ctx, registry.Service{ID: id, Service: listedService, Address: host, Port: port}, status)
	})
}

// close implements listing.
func (l *consulListing) close() { l.agent.Close() }

// slicesPath is where EndpointSlices are.
const slicesPath = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"

// kubernetesListing is a listing in Kubernetes: a slice an instance, because a slice
// has one set of ports for all its endpoints and the instances have one address.
// Those that are out have no slice, are not ready, or are ending.
type kubernetesListing struct {
	told
	server  *registry.Kubernetes
	file    string // kubeconfig
	engines []*scripted
}

// startKubernetesListing starts an API server without instances.
func startKubernetesListing(ctx context.Context, dir string, engines []*scripted) (*kubernetesListing, error) {
	s, err := registry.NewKubernetes(dir)
	if err != nil {
		return nil, err
	}
	l := &kubernetesListing{told: told{said: make([]bool, len(engines))}, server: s, file: filepath.Join(dir, "kubeconfig"), engines: engines}
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(registry.AdminToken), 0o600); err != nil {
		return nil, err
	}
	if err := s.Kubeconfig(l.file, s.Addr(), token, "default"); err != nil {
		return nil, err
	}
	return l, s.Start(ctx)
}

// write implements listing.
func (l *kubernetesListing) write(ctx context.Context, in []bool) error {
	return l.told.write(in, func(i, round int) error {
		name := fmt.Sprintf("%s-%d", listedService, i)
		conditions := map[string]bool{"ready": true}
		if !in[i] {
			switch (i + round) % 3 {
			case 0:
				return l.server.Delete(ctx, slicesPath, name)
			case 1:
				conditions = map[string]bool{"ready": false}
			default:
				conditions = map[string]bool{"ready": false, "serving": true, "terminating": true}
			}
		}
		host, port, err := splitAddr(l.engines[i].addr)
		if err != nil {
			return err
		}
		return l.server.Apply(ctx, slicesPath, name, map[string]any{
			"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
			"metadata":  map[string]any{"name": name, "labels": map[string]string{"kubernetes.io/service-name": listedService}},
			"ports":     []any{map[string]any{"name": "http", "port": port}},
			"endpoints": []any{map[string]any{"addresses": []string{host}, "conditions": conditions}},
		})
	})
}

// source implements listing.
func (l *kubernetesListing) source() string {
	return fmt.Sprintf("kubernetes: {kubeconfig: %q, service: %s, port: http}", l.file, listedService)
}

// close implements listing.
func (l *kubernetesListing) close() { l.server.Close() }

// splitAddr splits host:port.
func splitAddr(addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.Atoi(port)
	return host, n, err
}
