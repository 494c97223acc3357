package kubernetes

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/spillway/spillway/internal/fleet"
)

// Config is the key `kubernetes` in a pool's section of the configuration.
type Config struct {
	// File that says where the API server is and who asks, as for kubectl. Empty means that the gateway runs in the cluster and asks as its service account.
	Kubeconfig string `yaml:"kubeconfig"`
	// Context of the kubeconfig; empty means its current one.
	Context string `yaml:"context"`
	// Folder of the service account's token, ca.crt and namespace, in the cluster. The token is read before each request.
	ServiceAccount string `yaml:"service_account"`
	// Namespace of the service; empty means that of the context or the service account.
	Namespace string `yaml:"namespace"`
	// Name of the service whose endpoints are the instances.
	Service string `yaml:"service"`
	// Port of the endpoints, by name or number. Empty means their only one, or the one that is called http.
	Port string `yaml:"port"`
	// How instances are reached: `http` or `https`. They are known by address: with https, set the name to expect in their certificates (tls_server_name).
	Scheme string `yaml:"scheme"`
	// Base path of the instances.
	Path string `yaml:"path"`
	// Take only endpoints in these zones. Empty means all, those without a zone too.
	Zones []string `yaml:"zones"`
	// Take only pods with these labels, a selector such as `gpu=h100,tier!=spot`. The gateway must be allowed to list and watch pods.
	PodLabels string `yaml:"pod_labels"`
	// Read the pods' annotations or labels spillway.dev/weight, spillway.dev/backup and spillway.dev/max-in-flight. The gateway must be allowed to list and watch pods.
	PodSettings bool `yaml:"pod_settings"`
	// Keep endpoints that end but still serve, as backups: they get work only when no other is there.
	Terminating bool `yaml:"terminating"`
	// Address to take of pods that have one of each family: `ipv4` or `ipv6`.
	Prefer string `yaml:"prefer"`
}

// Default returns the configuration of a section that says nothing.
func Default() Config {
	return Config{ServiceAccount: "/var/run/secrets/kubernetes.io/serviceaccount", Scheme: "http", Prefer: familyIPv4}
}

// The families of addresses.
const (
	familyIPv4 = "ipv4"
	familyIPv6 = "ipv6"
)

// names are the names of services, namespaces and ports (RFC 1123 labels).
var names = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Validate returns every mistake in the section. It reads and connects to nothing:
// what files hold may come later.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Service != "", "service: is missing")
	check(c.Service == "" || names.MatchString(c.Service), "service: must be a name of lower-case letters, digits and hyphens, got %q", c.Service)
	check(c.Namespace == "" || names.MatchString(c.Namespace), "namespace: must be a name of lower-case letters, digits and hyphens, got %q", c.Namespace)
	if n, err := strconv.Atoi(c.Port); err == nil {
		check(n >= 1 && n <= 65535, "port: must be 1 to 65535, or a name, got %d", n)
	} else {
		check(c.Port == "" || names.MatchString(c.Port), "port: must be 1 to 65535, or a name, got %q", c.Port)
	}
	check(c.Context == "" || c.Kubeconfig != "", "context: has no place without kubeconfig")
	check(c.Kubeconfig != "" || c.ServiceAccount != "", "service_account: is missing, and so is kubeconfig")
	check(c.Scheme == "http" || c.Scheme == "https", "scheme: want http or https, got %q", c.Scheme)
	check(c.Prefer == familyIPv4 || c.Prefer == familyIPv6, "prefer: want ipv4 or ipv6, got %q", c.Prefer)
	if c.Path != "" {
		_, err := fleet.ParseURL("http://host" + c.Path)
		check(strings.HasPrefix(c.Path, "/") && err == nil, "path: must begin with a slash and be a path, got %q", c.Path)
	}
	for i, z := range c.Zones {
		check(z != "", "zones[%d]: is empty", i)
	}
	if _, err := labels.Parse(c.PodLabels); err != nil {
		errs = append(errs, fmt.Errorf("pod_labels: %w", err))
	}
	return errors.Join(errs...)
}

// pods says whether the pods matter.
func (c *Config) pods() bool { return c.PodLabels != "" || c.PodSettings }
