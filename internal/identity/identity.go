// Package identity tells who sent a request: a credential becomes a tenant and
// a class.
//
// Keys are kept as SHA-256 digests only, in a file with one line per key:
//
//	# sha256 of the key                                              tenant  class
//	9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  acme    vip
//
// A request's key is hashed and looked up by its digest, so neither the file nor
// a memory dump of the table gives a key away, and the time of a look-up says
// nothing about the keys that exist. A missing key and a wrong one cost the same
// work and get the same answer. Without a file everybody is anonymous.
//
// Keys is one atomic pointer to an immutable table. Apply reads the whole file
// and swaps the pointer, or changes nothing. The package has no goroutine and no
// lock.
package identity

import (
	"crypto/sha256"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/spillway/spillway/internal/inference"
)

// Anonymous is the tenant of every request when there is no keys file.
const Anonymous = inference.Anonymous

// owner is whom a key belongs to.
type owner struct {
	tenant string
	class  inference.Class
}

// digest is the SHA-256 of a key.
type digest [sha256.Size]byte

// table is the parsed keys file. It never changes.
type table map[digest]owner

// Keys identifies requests. It is safe for concurrent use.
type Keys struct {
	table atomic.Pointer[table] // nil table: no keys file
}

// New reads the keys file, if one is configured.
func New(cfg Config) (*Keys, error) {
	k := new(Keys)
	if err := k.Apply(cfg); err != nil {
		return nil, err
	}
	return k, nil
}

// Apply reads the keys file again, which may have changed while the
// configuration did not. Its error lists every mistake of the file; then the
// keys stay as they were.
func (k *Keys) Apply(cfg Config) error {
	if cfg.KeysFile == "" {
		k.table.Store(nil)
		return nil
	}
	t, err := load(cfg.KeysFile)
	if err != nil {
		return err
	}
	k.table.Store(&t)
	return nil
}

// Len is the number of keys; 0 without a keys file.
func (k *Keys) Len() int {
	if t := k.table.Load(); t != nil {
		return len(*t)
	}
	return 0
}

// Identify returns the tenant and the class of a request. The key stands in
// Authorization (scheme Bearer) or in x-api-key. X-Spillway-Class lowers the
// class; asking for a higher one than the key has changes nothing. The error is
// an *inference.Error. A known key costs no allocation.
func (k *Keys) Identify(h http.Header) (tenant string, class inference.Class, err error) {
	o := owner{tenant: Anonymous}
	if t := k.table.Load(); t != nil {
		var known bool
		if o, known = (*t)[sum(credential(h))]; !known {
			return "", inference.Normal, unauthorized()
		}
	}
	for _, name := range h["X-Spillway-Class"] {
		asked, ok := inference.ParseClass(name)
		if !ok {
			e := inference.Errorf(inference.CodeInvalidRequest, "unknown class %q in X-Spillway-Class; known are vip, normal and batch", clip(name))
			e.Param = "X-Spillway-Class"
			return "", inference.Normal, e
		}
		if asked.Urgency() < o.class.Urgency() {
			o.class = asked
		}
	}
	return o.tenant, o.class, nil
}

// unauthorized is the one answer to a missing and to a wrong key.
func unauthorized() *inference.Error {
	e := inference.Errorf(inference.CodeUnauthorized, "the API key is missing or wrong; send it as \"Authorization: Bearer KEY\" or as \"x-api-key: KEY\"")
	e.Reason = "key"
	e.NoRetry = true
	return e
}

// credential finds the key of a request; "" is none. Authorization counts
// before x-api-key, and a field that is repeated counts as missing, because
// which of the two was meant cannot be known.
func credential(h http.Header) string {
	const scheme = "bearer "
	if v := h["Authorization"]; len(v) == 1 && len(v[0]) > len(scheme) && strings.EqualFold(v[0][:len(scheme)], scheme) {
		return strings.Trim(v[0][len(scheme):], " ")
	}
	if v := h["X-Api-Key"]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// sum hashes a key. Keys of common length are copied to the stack first, because
// turning a string into bytes allocates.
func sum(key string) digest {
	var buf [256]byte
	if len(key) <= len(buf) {
		return sha256.Sum256(buf[:copy(buf[:], key)])
	}
	return sha256.Sum256([]byte(key))
}

// clip shortens what a client sent before it is repeated in an answer.
func clip(s string) string {
	if len(s) > 32 {
		return s[:32] + "..."
	}
	return s
}
