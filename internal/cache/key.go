package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"net/textproto"
	"slices"
	"strings"
	"sync"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

// SharedScope is the Entry.Scope of answers that tenants share.
const SharedScope = "shared"

// TenantScope is the Entry.Scope of a tenant's own answers.
func TenantScope(tenant string) string { return "tenant:" + tenant }

// ScopeOf returns whose answers a request may get and whose its own becomes: its
// tenant's alone, or everybody's where a rule shares.
func ScopeOf(req *inference.Request, shared bool) string {
	if shared {
		return SharedScope
	}
	return TenantScope(req.Tenant)
}

// credentials lists what tells clients apart that have no key here, since it may
// be passed on to the servers: every field that may carry a credential, and cookies but
// Spillway's own. It is part of their keys. The mere name of a session is none, since
// affinity and experiments go by it, and neither is that of a try.
func credentials(req *inference.Request, scope string) (list []string) {
	if strings.HasPrefix(scope, SharedScope) || req.Key != "" {
		return nil
	}
	for name, values := range req.Header {
		if name == "Cookie" || name == "Idempotency-Key" || !wire.Credential(strings.ReplaceAll(name, "Session", ""), values) {
			continue
		}
		for _, v := range values {
			list = append(list, name+":"+v)
		}
	}
	slices.Sort(list)
	for _, line := range req.Header["Cookie"] {
		for cookie := range strings.SplitSeq(line, ";") {
			if cookie = strings.TrimSpace(cookie); cookie != "" && !strings.HasPrefix(cookie, ownCookies) {
				list = append(list, "Cookie:"+cookie)
			}
		}
	}
	return list
}

// ownCookies is how the names of Spillway's own cookies begin.
const ownCookies = "spillway"

// Forms of an answer: which readers one entry can serve.
const (
	formEvents   = 'e' // kept as events; the answer in one piece is put together from them
	formStream   = 's' // a stream, and only that
	formOnePiece = 'p' // an answer in one piece, and only that
)

// formOf is the form in which a request's answer is kept.
func formOf(req *inference.Request) byte {
	switch {
	case req.Assemble:
		return formEvents
	case req.Stream:
		return formStream
	}
	return formOnePiece
}

// canonical holds the buffers in which bodies are brought into one form.
var canonical = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// keptBuffer is the largest of those buffers that is used again, in bytes: twice a
// body's size is needed.
const keptBuffer = 512 << 10

// version is hashed into every key: what changes the meaning of a key changes it.
const version = "spillway answer 4"

// KeyOf hashes everything that may change a request's answer: whose it is (its scope,
// and of a shared one the tenants that share), with the credentials of clients without
// a key, the surface, the arm of an experiment that it is
// part of, the model by the name that it is asked for upstream, the form, the URL's
// query, the header fields that servers read, and the canonical body. vary lists
// further fields, in canonical form. The error says why a body has no key.
func KeyOf(req *inference.Request, scope string, arm inference.Arm, model string, vary []string) (Key, error) {
	bp := canonical.Get().(*[]byte)
	defer canonical.Put(bp)
	b := (*bp)[:0]
	text := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	text(version)
	text(scope)
	for _, c := range credentials(req, scope) {
		text(c)
	}
	text("")
	text(req.Surface.String())
	text(arm.Experiment)
	text(arm.Arm)
	text(model)
	b = append(b, formOf(req))
	text(req.RawQuery)
	for _, name := range varying(req, vary) {
		text(name)
		b = binary.AppendUvarint(b, uint64(len(req.Header[name])))
		for _, v := range req.Header[name] {
			text(v)
		}
	}
	text("")
	b, err := wire.AppendCanonical(b, req)
	if cap(b) <= keptBuffer {
		*bp = b
	}
	if err != nil {
		return Key{}, err
	}
	return sha256.Sum256(b), nil
}

// varying lists the request's header fields that may change its answer, in order:
// versions and switches of the two APIs, and those that the configuration names.
func varying(req *inference.Request, vary []string) (names []string) {
	for name := range req.Header {
		if varies(name, vary) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// varies says whether a header field may change the answer.
func varies(name string, vary []string) bool {
	return strings.HasPrefix(name, "Anthropic-") || strings.HasPrefix(name, "Openai-") || slices.Contains(vary, name)
}

// canonicalNames brings the names of header fields into the form that requests
// have them in.
func canonicalNames(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = textproto.CanonicalMIMEHeaderKey(n)
	}
	return out
}
