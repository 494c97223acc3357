package sqltest

import (
	"net/url"
	"testing"

	"github.com/spillway/spillway/internal/testkit/faultnet"
)

// Through returns a proxy in front of a database, and the DSN that goes through it.
func Through(t testing.TB, dsn string) (*faultnet.Proxy, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	p := faultnet.New(t, u.Host)
	u.Host = p.Addr()
	return p, u.String()
}
