package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	netutil "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/spillway/spillway/internal/fleet"
)

// Bounds on answers.
const (
	maxList     = 64 << 20         // bytes of a list; a watch has no end
	headerLimit = 30 * time.Second // until an answer begins
	dialLimit   = 10 * time.Second
	maxToken    = 64 << 10 // bytes
)

// Where the API server is, as every pod is told.
const (
	hostVariable = "KUBERNETES_SERVICE_HOST"
	portVariable = "KUBERNETES_SERVICE_PORT"
)

// connection is what it takes to ask an API server.
type connection struct {
	server    *rest.Config
	client    *http.Client
	namespace string
	door      *door
}

// connect reads where the API server is and who asks. It connects to nothing.
func (c *Config) connect() (*connection, error) {
	server, namespace, err := c.inCluster()
	if c.Kubeconfig != "" {
		server, namespace, err = c.kubeconfig()
	}
	if err != nil {
		return nil, err
	}
	server.UserAgent, server.QPS, server.WarningHandler = "spillway", -1, rest.NoWarnings{} // reflectors pace themselves
	n := &connection{server: server, namespace: cmp.Or(c.Namespace, namespace, "default")}
	var rt http.RoundTripper
	n.door = &door{build: func() (*http.Transport, error) { return newTransport(server) }}
	rt = n.door
	if file := server.BearerTokenFile; file != "" {
		// client-go keeps a token for a minute; requests are rare enough to read it
		// before each.
		server.BearerToken, server.BearerTokenFile = "", ""
		rt = tokens{file, rt}
	}
	if rt, err = rest.HTTPWrappersForConfig(server, rt); err != nil {
		return nil, err
	}
	n.client = &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return n, nil
}

// inCluster is what a service account is told.
func (c *Config) inCluster() (*rest.Config, string, error) {
	host, port := os.Getenv(hostVariable), os.Getenv(portVariable)
	if host == "" || port == "" {
		return nil, "", fmt.Errorf("not in a cluster: %s and %s are not set, and there is no kubeconfig", hostVariable, portVariable)
	}
	namespace, err := os.ReadFile(filepath.Join(c.ServiceAccount, "namespace"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, "", err
	}
	return &rest.Config{
		Host:            "https://" + net.JoinHostPort(host, port),
		BearerTokenFile: filepath.Join(c.ServiceAccount, "token"),
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(c.ServiceAccount, "ca.crt")},
	}, strings.TrimSpace(string(namespace)), nil
}

// kubeconfig is what a kubeconfig says.
func (c *Config) kubeconfig() (*rest.Config, string, error) {
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: c.Kubeconfig}
	loaded, err := rules.Load()
	if err != nil {
		return nil, "", err
	}
	reader := clientcmd.NewNonInteractiveClientConfig(*loaded, c.Context, &clientcmd.ConfigOverrides{}, rules)
	server, err := reader.ClientConfig()
	if err != nil {
		return nil, "", err
	}
	namespace, _, err := reader.Namespace()
	return server, namespace, err
}

// newTransport reads the certificates and makes a transport.
func newTransport(server *rest.Config) (*http.Transport, error) {
	tls, err := rest.TLSConfigFor(server)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: tls, TLSHandshakeTimeout: dialLimit, ResponseHeaderTimeout: headerLimit,
		DialContext: (&net.Dialer{Timeout: dialLimit, KeepAlive: headerLimit}).DialContext,
	}
	if server.Proxy != nil {
		t.Proxy = server.Proxy
	}
	return netutil.SetTransportDefaults(t), nil // HTTP/2 with pings, that a dead server is noticed
}

// clientFor makes a client for an API group's version.
func (n *connection) clientFor(path string, gv schema.GroupVersion) (*rest.RESTClient, error) {
	cfg := rest.CopyConfig(n.server)
	cfg.APIPath, cfg.GroupVersion, cfg.NegotiatedSerializer = path, &gv, serializer()
	cfg.AcceptContentTypes, cfg.ContentType = "application/json", "application/json"
	return rest.RESTClientForConfigAndClient(cfg, n.client)
}

// close closes the connections that are idle.
func (n *connection) close() { n.door.shut(nil) }

// door is a transport that is made anew after a failure, so that certificates
// that were replaced are read again, and that bounds the bodies of lists. It is
// safe for concurrent use.
type door struct {
	build func() (*http.Transport, error)
	mu    struct {
		sync.Mutex
		transport *http.Transport // nil: not made
	}
}

// RoundTrip implements http.RoundTripper.
func (d *door) RoundTrip(req *http.Request) (*http.Response, error) {
	t, err := d.open()
	if err != nil {
		return nil, err
	}
	res, err := t.RoundTrip(req)
	if a, ok := req.Context().Value(attemptKey{}).(*attempt); ok {
		a.err = err
	}
	if err != nil {
		if req.Context().Err() == nil {
			d.shut(t)
		}
		return nil, err
	}
	if !req.URL.Query().Has("watch") {
		res.Body = fleet.Bounded(res.Body, maxList)
	}
	return res, nil
}

// attempt is what became of a request's connection: of a watch whose connection
// breaks before the answer client-go makes a watch that ends, which is no error.
type attempt struct{ err error }

// attemptKey is the key of a request's attempt in its context.
type attemptKey struct{}

// open is the transport.
func (d *door) open() (*http.Transport, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.transport == nil {
		t, err := d.build()
		if err != nil {
			return nil, err
		}
		d.mu.transport = t
	}
	return d.mu.transport, nil
}

// shut forgets a transport, nil for whichever there is. What it has under way goes
// on.
func (d *door) shut(t *http.Transport) {
	d.mu.Lock()
	if t == nil {
		t = d.mu.transport
	}
	if d.mu.transport == t {
		d.mu.transport = nil
	}
	d.mu.Unlock()
	if t != nil {
		t.CloseIdleConnections()
	}
}

// tokens adds the token of a file, as it is now.
type tokens struct {
	file string
	http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t tokens) RoundTrip(req *http.Request) (*http.Response, error) {
	data, err := os.ReadFile(t.file)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || len(token) > maxToken {
		return nil, fmt.Errorf("token: %s is empty or too long", t.file)
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	return t.RoundTripper.RoundTrip(req)
}
