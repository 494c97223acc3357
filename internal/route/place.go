package route

import "net/netip"

// Place is where an address is, as a database of addresses says. Empty fields are not
// known.
type Place struct {
	Continent    string `expr:"continent"`    // two letters: EU
	Country      string `expr:"country"`      // ISO 3166-1: DE
	Region       string `expr:"region"`       // ISO 3166-2 without the country: BY
	City         string `expr:"city"`         // in English: Munich
	ASN          int    `expr:"asn"`          // of the network: 3320
	Organization string `expr:"organization"` // that runs it
}

// Locator finds the place of an address. It is called from many goroutines at once,
// does not wait, and returns the zero Place for an address that it does not know.
type Locator interface {
	Locate(ip netip.Addr) Place
}
