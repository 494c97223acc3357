package redistest

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/testkit"
)

// masters and slots are those of a cluster.
const (
	masters = 3
	slots   = 16384
)

// Cluster is a Redis cluster of three masters without replicas.
type Cluster struct {
	Nodes []*Server
}

// StartCluster starts a cluster and waits until all of it serves.
func StartCluster(t testing.TB, args ...string) *Cluster {
	t.Helper()
	c := &Cluster{}
	for range masters {
		_, bus, _ := net.SplitHostPort(free(t))
		c.Nodes = append(c.Nodes, Start(t, append([]string{
			"--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "2000",
			"--cluster-port", bus, "--cluster-require-full-coverage", "no",
		}, args...)...))
	}
	for i, n := range c.Nodes {
		n.Do("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		n.Do("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*slots/masters), strconv.Itoa((i+1)*slots/masters-1))
		host, port, _ := net.SplitHostPort(n.Addr())
		c.Nodes[0].Do("CLUSTER", "MEET", host, port, n.Do("CONFIG", "GET", "cluster-port")[len("cluster-port\n"):])
	}
	testkit.Eventually(t, "every node knows the others and serves", func() bool {
		for _, n := range c.Nodes {
			info := n.Do("CLUSTER", "INFO")
			if !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_slots_ok:"+strconv.Itoa(slots)) ||
				!strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(masters)) {
				return false
			}
		}
		return true
	})
	return c
}

// Addrs are host:port of all nodes.
func (c *Cluster) Addrs() []string {
	var all []string
	for _, n := range c.Nodes {
		all = append(all, n.Addr())
	}
	return all
}

// StartSentinel starts a sentinel that watches a master by a name, and decides
// alone.
func StartSentinel(t testing.TB, name string, master *Server) *Server {
	t.Helper()
	host, port, _ := net.SplitHostPort(master.Addr())
	file := filepath.Join(t.TempDir(), "sentinel.conf") // it keeps its state there
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, []string{file, "--sentinel"}, nil)
	s.Do("SENTINEL", "MONITOR", name, host, port, "1")
	s.Do("SENTINEL", "SET", name, "down-after-milliseconds", "500")
	return s
}
