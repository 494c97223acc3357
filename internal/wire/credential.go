package wire

import "strings"

// private are the parts of names under which credentials, sessions and the like
// travel, in headers and in a URL's query. It names too much rather than too little.
var private = []string{
	"auth", "key", "token", "secret", "cookie", "session", "passw", "credential", "signature", "jwt", "bearer",
	"assertion", "saml", "csrf", "xsrf", "cert", "sig",
}

// schemes are what the values of HTTP credentials begin with.
var schemes = []string{"bearer ", "basic ", "digest ", "negotiate ", "aws4-", "sk-"}

// Credential says whether a header field, or a parameter of a query, may carry a
// credential: its name hints at one, or one of its values begins as one does.
func Credential(name string, values []string) bool {
	name = strings.ToLower(name)
	for _, p := range private {
		if strings.Contains(name, p) {
			return true
		}
	}
	for _, v := range values {
		v = strings.TrimSpace(v)
		for _, s := range schemes {
			if len(v) >= len(s) && strings.EqualFold(v[:len(s)], s) {
				return true
			}
		}
	}
	return false
}
