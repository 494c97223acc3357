package geo_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/geo"
	"github.com/spillway/spillway/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is what a record of the JSON sources says that is used.
type source struct {
	Continent struct{ Code string }
	Country   struct {
		ISO string `json:"iso_code"`
	}
	Subdivisions []struct {
		ISO string `json:"iso_code"`
	}
	City         struct{ Names map[string]string }
	ASN          int    `json:"autonomous_system_number"`
	Organization string `json:"autonomous_system_organization"`
}

// sources reads a file of the JSON sources.
func sources(t testing.TB, name string) map[netip.Prefix]source {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]source
	if err := json.NewDecoder(z).Decode(&list); err != nil {
		t.Fatal(err)
	}
	all := make(map[netip.Prefix]source)
	for _, one := range list {
		for network, s := range one {
			all[netip.MustParsePrefix(network)] = s
		}
	}
	return all
}

// open reads databases of testdata.
func open(t testing.TB, city, asn string) (*geo.Databases, *testkit.Log) {
	t.Helper()
	var log testkit.Log
	cfg := geo.Default()
	if city != "" {
		cfg.CityFile = filepath.Join("testdata", city)
	}
	if asn != "" {
		cfg.ASNFile = filepath.Join("testdata", asn)
	}
	return geo.New(cfg, slog.New(slog.NewTextHandler(&log, nil))), &log
}

// narrowest reports whether no other network of the source is inside this one at its
// first address.
func narrowest(all map[netip.Prefix]source, p netip.Prefix) bool {
	for other := range all {
		if other != p && other.Bits() > p.Bits() && other.Contains(p.Addr()) {
			return false
		}
	}
	return true
}

func TestEveryNetworkOfTheSources(t *testing.T) {
	for file, c := range map[string]struct {
		city, asn string
		least     int
		want      func(source) route.Place
	}{
		"GeoLite2-City-Test.json.gz": {city: "GeoLite2-City-Test.mmdb", least: 200, want: func(s source) route.Place {
			p := route.Place{Continent: s.Continent.Code, Country: s.Country.ISO, City: s.City.Names["en"]}
			if len(s.Subdivisions) > 0 {
				p.Region = s.Subdivisions[0].ISO
			}
			return p
		}},
		"GeoLite2-ASN-Test.json.gz": {asn: "GeoLite2-ASN-Test.mmdb", least: 500, want: func(s source) route.Place {
			return route.Place{ASN: s.ASN, Organization: s.Organization}
		}},
	} {
		t.Run(file, func(t *testing.T) {
			d, _ := open(t, c.city, c.asn)
			all := sources(t, file)
			asked := 0
			for network, s := range all {
				if !narrowest(all, network) {
					continue
				}
				asked++
				for range 2 { // decoded, and kept
					if diff := cmp.Diff(c.want(s), d.Locate(network.Addr())); diff != "" {
						t.Fatalf("%s (-want +got):\n%s", network, diff)
					}
				}
			}
			if asked < c.least {
				t.Errorf("%d networks were asked for, want at least %d", asked, c.least)
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	d, _ := open(t, "GeoLite2-City-Test.mmdb", "GeoLite2-ASN-Test.mmdb")
	for ip, want := range map[string]string{
		"81.2.69.160": "GB", "::ffff:81.2.69.160": "GB", "2001:218::1": "JP", "2001:218::1%eth0": "JP", "127.0.0.1": "", "10.0.0.1": "", "::1": "",
	} {
		if got := d.Locate(netip.MustParseAddr(ip)).Country; got != want {
			t.Errorf("%s: got %q, want %q", ip, got, want)
		}
	}
	if got := d.Locate(netip.Addr{}); got != (route.Place{}) {
		t.Errorf("no address: got %+v", got)
	}
	country, _ := open(t, "GeoLite2-Country-Test.mmdb", "")
	if got := country.Locate(netip.MustParseAddr("81.2.69.160")); got.Country != "GB" || got.City != "" {
		t.Errorf("a database of countries: got %+v", got)
	}
}

func TestNoDatabaseIsAWarning(t *testing.T) {
	d, log := open(t, "nothing.mmdb", "")
	if got := d.Locate(netip.MustParseAddr("81.2.69.160")); got != (route.Place{}) {
		t.Errorf("got %+v", got)
	}
	if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "nothing.mmdb") {
		t.Errorf("the log says %q", log.String())
	}
	none, quiet := open(t, "", "")
	if got := none.Locate(netip.MustParseAddr("81.2.69.160")); got != (route.Place{}) || quiet.String() != "" {
		t.Errorf("nothing configured: got %+v and %q", got, quiet.String())
	}
}

// copyFile puts a file of testdata where it is watched, as of an instant.
func copyFile(t *testing.T, from, to string, at time.Time) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(to, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestAFileIsSwapped(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		file := filepath.Join(dir, "places.mmdb")
		var log testkit.Log
		cfg := geo.Default()
		cfg.CityFile = file
		d := geo.New(cfg, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- d.Run(ctx) }()
		city := func() string { return d.Locate(netip.MustParseAddr("2.125.160.216")).City }
		begin := time.Now()
		tick := func() { time.Sleep(cfg.Refresh + time.Millisecond); synctest.Wait() }

		if tick(); city() != "" {
			t.Errorf("without a file: got %q", city())
		}
		copyFile(t, "testdata/GeoLite2-City-Test.mmdb", file, begin)
		if tick(); city() != "Boxford" {
			t.Errorf("with a file: got %q", city())
		}
		if err := os.WriteFile(file, []byte("half of a data"), 0o600); err != nil {
			t.Fatal(err)
		}
		tick()
		tick()
		if city() != "Boxford" || strings.Count(log.String(), "the old one stays in use") != 1 {
			t.Errorf("with a broken file: got %q and %s", city(), log.String())
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if tick(); city() != "Boxford" {
			t.Errorf("when it is gone: got %q", city())
		}
		copyFile(t, "testdata/GeoLite2-Country-Test.mmdb", file, begin.Add(time.Hour))
		if tick(); city() != "" || d.Locate(netip.MustParseAddr("2.125.160.216")).Country != "GB" {
			t.Errorf("with another file: got %q", city())
		}
		cfg.CityFile = ""
		if d.Apply(cfg); d.Locate(netip.MustParseAddr("2.125.160.216")) != (route.Place{}) {
			t.Error("it is used although it is not configured any more")
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestValidate(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*geo.Config)
		want   string
	}{
		"default":       {func(*geo.Config) {}, ""},
		"refresh":       {func(c *geo.Config) { c.Refresh = time.Millisecond }, "refresh: must be at least 1s, got 1ms"},
		"a region only": {func(c *geo.Config) { c.DefaultRegion = "eu" }, "default_region: needs city_file"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := geo.Default()
			c.change(&cfg)
			got := ""
			if err := cfg.Validate(); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzLocate(f *testing.F) {
	d, _ := open(f, "GeoLite2-City-Test.mmdb", "GeoLite2-ASN-Test.mmdb")
	f.Add([]byte{81, 2, 69, 160})
	f.Add(bytes.Repeat([]byte{0xff}, 16))
	f.Fuzz(func(t *testing.T, b []byte) {
		ip, _ := netip.AddrFromSlice(b)
		if first := d.Locate(ip); first != d.Locate(ip) {
			t.Errorf("%s has two places", ip)
		}
	})
}

func BenchmarkLocate(b *testing.B) {
	d, _ := open(b, "GeoLite2-City-Test.mmdb", "GeoLite2-ASN-Test.mmdb")
	ip := netip.MustParseAddr("81.2.69.160")
	b.ReportAllocs()
	for b.Loop() {
		if d.Locate(ip).Country != "GB" {
			b.Fatal("it has another place")
		}
	}
}

func ExampleDatabases_Locate() {
	cfg := geo.Default()
	cfg.CityFile = "testdata/GeoLite2-City-Test.mmdb"
	places := geo.New(cfg, slog.New(slog.DiscardHandler))
	p := places.Locate(netip.MustParseAddr("2.125.160.216"))
	os.Stdout.WriteString(p.City + " " + p.Region + " " + p.Country + " " + p.Continent + "\n")
	// Output: Boxford ENG GB EU
}
