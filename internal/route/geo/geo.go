// Package geo finds the place of an address in databases in MaxMind's format, which
// the operator supplies.
//
// A database is read into memory as a whole, so that a file that is replaced or cut
// under a running gateway harms nobody, and looked up behind an atomic pointer. Run
// looks at the files from time to time and swaps in what has changed, if it can be
// read: a broken file leaves the old one in use. Without a database no address has a
// place, which is a warning and not an error.
//
// Run owns the one goroutine. Look-ups take no lock: records are decoded once, by their
// place in the database, and kept, which their number bounds.
package geo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/spillway/spillway/internal/route"
)

// Config is the section `route.geo` of the configuration.
type Config struct {
	// Database of cities or countries, in MaxMind's format, such as GeoLite2-City.mmdb; empty is none.
	CityFile string `yaml:"city_file"`
	// Database of networks (autonomous systems), such as GeoLite2-ASN.mmdb; empty is none.
	ASNFile string `yaml:"asn_file"`
	// How often the files are looked at for a change.
	Refresh time.Duration `yaml:"refresh"`
	// Region to prefer for clients whose country and continent are not known, when no rule that is true has a region or pools; empty is what the policy of regions says.
	DefaultRegion string `yaml:"default_region"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config { return Config{Refresh: 10 * time.Second} }

// Validate returns every mistake in the section. A database that is not there is none.
func (c *Config) Validate() error {
	var errs []error
	if c.Refresh < time.Second {
		errs = append(errs, fmt.Errorf("refresh: must be at least 1s, got %v", c.Refresh))
	}
	if c.DefaultRegion != "" && c.CityFile == "" {
		errs = append(errs, errors.New("default_region: needs city_file"))
	}
	return errors.Join(errs...)
}

// Largest database that is read. GeoLite2-City is about 65 MB.
const maxSize = 1 << 30

// Databases finds places. It is safe for concurrent use.
type Databases struct {
	log  *slog.Logger
	city atomic.Pointer[database]
	asn  atomic.Pointer[database]

	mu struct {
		sync.Mutex
		cfg Config
	}
	changed chan struct{} // of capacity 1: Apply was called
}

// database is one file in memory. It never changes, but for the records that are
// decoded already.
type database struct {
	file    string
	stamp   stamp
	reader  *maxminddb.Reader
	records sync.Map // uintptr -> route.Place
}

// stamp tells whether a file has changed.
type stamp struct {
	at   time.Time
	size int64
}

// record is what is read of a record, of cities, countries and networks alike.
type record struct {
	Continent struct {
		Code string `maxminddb:"code"`
	} `maxminddb:"continent"`
	Country struct {
		Code string `maxminddb:"iso_code"`
	} `maxminddb:"country"`
	Subdivisions []struct {
		Code string `maxminddb:"iso_code"`
	} `maxminddb:"subdivisions"`
	City struct {
		Names struct {
			English string `maxminddb:"en"`
		} `maxminddb:"names"`
	} `maxminddb:"city"`
	ASN          uint32 `maxminddb:"autonomous_system_number"`
	Organization string `maxminddb:"autonomous_system_organization"`
}

// New returns databases as configured, read. What cannot be read is logged.
func New(cfg Config, log *slog.Logger) *Databases {
	d := &Databases{log: log.With("component", "route"), changed: make(chan struct{}, 1)}
	d.Apply(cfg)
	return d
}

// Apply replaces the configuration and reads the files that are new or have changed.
func (d *Databases) Apply(cfg Config) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.cfg = cfg
	d.refresh()
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// Run follows the files until ctx ends.
func (d *Databases) Run(ctx context.Context) error {
	for {
		d.mu.Lock()
		wait := d.mu.cfg.Refresh
		d.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-d.changed: // the time may be another one
			timer.Stop()
		case <-timer.C:
			d.mu.Lock()
			d.refresh()
			d.mu.Unlock()
		}
	}
}

// refresh reads what has changed. The caller holds the lock.
func (d *Databases) refresh() {
	for _, one := range []struct {
		file string
		in   *atomic.Pointer[database]
	}{{d.mu.cfg.CityFile, &d.city}, {d.mu.cfg.ASNFile, &d.asn}} {
		old := one.in.Load()
		if one.file == "" {
			one.in.Store(nil)
			continue
		}
		now, err := stampOf(one.file)
		if err == nil && old != nil && old.file == one.file && old.stamp == now {
			continue
		}
		var next *database
		if err == nil {
			next, err = open(one.file, now)
		}
		switch {
		case err == nil:
			one.in.Store(next)
			d.log.Info("database of addresses read", "file", one.file, "type", next.reader.Metadata.DatabaseType, "built", next.reader.Metadata.BuildTime())
		case old == nil:
			d.log.Warn("no database of addresses: clients have no place", "file", one.file, "err", err)
			one.in.Store(&database{file: one.file, stamp: now})
		case old.file != one.file || old.stamp != now:
			d.log.Warn("the database of addresses cannot be read; the old one stays in use", "file", one.file, "err", err)
			one.in.Store(&database{file: one.file, stamp: now, reader: old.reader})
		}
	}
}

// stampOf looks at a file.
func stampOf(file string) (stamp, error) {
	info, err := os.Stat(file)
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.ModTime(), info.Size()}, nil
}

// open reads a database and makes sure that it is whole.
func open(file string, at stamp) (*database, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("larger than %d bytes", maxSize)
	}
	reader, err := maxminddb.OpenBytes(data)
	if err != nil {
		return nil, err
	}
	return &database{file: file, stamp: at, reader: reader}, nil
}

// Readable says which of the databases cannot be read, and leave places unknown.
func (c Config) Readable() error {
	var errs []error
	for _, one := range []struct{ key, file string }{{"city_file", c.CityFile}, {"asn_file", c.ASNFile}} {
		if one.file == "" {
			continue
		}
		if _, err := open(one.file, stamp{}); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", one.key, err))
		}
	}
	return errors.Join(errs...)
}

// Locate implements route.Locator.
func (d *Databases) Locate(ip netip.Addr) route.Place {
	ip = ip.Unmap().WithZone("")
	place := d.city.Load().find(ip)
	if network := d.asn.Load().find(ip); network.ASN != 0 {
		place.ASN, place.Organization = network.ASN, network.Organization
	}
	return place
}

// find looks an address up. What is broken or not there has no place.
func (d *database) find(ip netip.Addr) route.Place {
	if d == nil || d.reader == nil || !ip.IsValid() {
		return route.Place{}
	}
	result := d.reader.Lookup(ip)
	if result.Err() != nil || !result.Found() {
		return route.Place{}
	}
	if place, ok := d.records.Load(result.Offset()); ok {
		return place.(route.Place)
	}
	var r record
	if result.Decode(&r) != nil {
		return route.Place{}
	}
	place := route.Place{
		Continent: r.Continent.Code, Country: r.Country.Code, City: r.City.Names.English,
		ASN: int(r.ASN), Organization: r.Organization,
	}
	if len(r.Subdivisions) > 0 {
		place.Region = r.Subdivisions[0].Code
	}
	d.records.Store(result.Offset(), place)
	return place
}
