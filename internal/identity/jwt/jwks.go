package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// Bounds of a set of keys.
const (
	maxSet  = 1 << 20 // bytes
	maxKeys = 256
	minRSA  = 2048 // bits
	maxRSA  = 8192 // beyond it, judging a token is an attack
)

// key is one public key of an issuer.
type key struct {
	id         string
	algorithms []string // that it may be used with
	public     any      // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// jwk is a JSON Web Key (RFC 7517, 7518, 8037) as far as it is public.
type jwk struct {
	Kty string   `json:"kty"`
	Kid string   `json:"kid"`
	Use string   `json:"use"`
	Alg string   `json:"alg"`
	Ops []string `json:"key_ops"`
	Crv string   `json:"crv"`
	N   string   `json:"n"`
	E   string   `json:"e"`
	X   string   `json:"x"`
	Y   string   `json:"y"`
}

// parseSet reads a JSON Web Key Set. Keys that no token can be judged by are passed
// over, as RFC 7517 has it; a set without any other is an error.
func parseSet(data []byte) ([]key, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New("not a JSON Web Key Set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	var keys []key
	var errs []error
	for i, raw := range set.Keys {
		var j jwk
		if err := json.Unmarshal(raw, &j); err != nil {
			errs = append(errs, fmt.Errorf("key %d: not a JSON Web Key", i))
			continue
		}
		k, err := j.key()
		if err != nil {
			errs = append(errs, fmt.Errorf("key %d: %w", i, err))
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.Join(append([]error{errors.New("no key in it that a token can be judged by")}, errs...)...)
	}
	return keys, nil
}

// key makes the public key.
func (j *jwk) key() (k key, err error) {
	if j.Use != "" && j.Use != "sig" || len(j.Ops) > 0 && !slices.Contains(j.Ops, "verify") {
		return k, errors.New("it is not for signatures")
	}
	k.id = j.Kid
	switch j.Kty {
	case "RSA":
		k.algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
		k.public, err = j.rsa()
	case "EC":
		k.public, k.algorithms, err = j.ec()
	case "OKP":
		k.algorithms = []string{"EdDSA"}
		k.public, err = j.okp()
	default:
		return k, errors.New("its kty is none of RSA, EC and OKP")
	}
	if err != nil {
		return k, err
	}
	if j.Alg != "" {
		if !slices.Contains(k.algorithms, j.Alg) {
			return k, errors.New("its alg does not fit its kty")
		}
		k.algorithms = []string{j.Alg}
	}
	return k, nil
}

// number reads an unsigned number of base64url.
func number(text string) ([]byte, error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil || len(b) == 0 {
		return nil, errors.New("a member of it is not base64url")
	}
	return b, nil
}

// rsa reads the members n and e.
func (j *jwk) rsa() (*rsa.PublicKey, error) {
	n, err := number(j.N)
	if err != nil {
		return nil, err
	}
	e, err := number(j.E)
	if err != nil {
		return nil, err
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	if bits := modulus.BitLen(); bits < minRSA || bits > maxRSA {
		return nil, fmt.Errorf("a modulus must have %d to %d bits, got %d", minRSA, maxRSA, bits)
	}
	if !exponent.IsInt64() || exponent.Int64() < 3 || exponent.Int64() > 1<<31-1 || exponent.Bit(0) == 0 {
		return nil, errors.New("its exponent is none that is used")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

// ec reads the members crv, x and y.
func (j *jwk) ec() (*ecdsa.PublicKey, []string, error) {
	var curve elliptic.Curve
	var algorithm string
	switch j.Crv {
	case "P-256":
		curve, algorithm = elliptic.P256(), "ES256"
	case "P-384":
		curve, algorithm = elliptic.P384(), "ES384"
	case "P-521":
		curve, algorithm = elliptic.P521(), "ES512"
	default:
		return nil, nil, errors.New("its curve is none of P-256, P-384 and P-521")
	}
	x, err := number(j.X)
	if err != nil {
		return nil, nil, err
	}
	y, err := number(j.Y)
	if err != nil {
		return nil, nil, err
	}
	size := (curve.Params().BitSize + 7) / 8
	if len(x) != size || len(y) != size {
		return nil, nil, fmt.Errorf("its coordinates must have %d bytes", size)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y))
	if err != nil {
		return nil, nil, errors.New("it is no point of its curve")
	}
	return public, []string{algorithm}, nil
}

// okp reads the members crv and x.
func (j *jwk) okp() (ed25519.PublicKey, error) {
	if j.Crv != "Ed25519" {
		return nil, errors.New("its curve is not Ed25519")
	}
	x, err := number(j.X)
	if err != nil {
		return nil, err
	}
	if len(x) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("its x must have %d bytes", ed25519.PublicKeySize)
	}
	return x, nil
}

// find returns the keys that may have signed a token: those with its key id that fit
// its algorithm. Without an id there must be one alone.
func find(keys []key, id, algorithm string) (found []key, knownID bool) {
	for _, k := range keys {
		if id != "" && k.id != id {
			continue
		}
		knownID = true
		if slices.Contains(k.algorithms, algorithm) {
			found = append(found, k)
		}
	}
	if id == "" && len(found) > 1 {
		return nil, true
	}
	return found, knownID
}
