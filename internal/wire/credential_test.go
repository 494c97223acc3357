package wire_test

import (
	"testing"

	"github.com/spillway/spillway/internal/wire"
)

func TestCredential(t *testing.T) {
	for name, want := range map[string]bool{
		"Authorization": true, "x-api-key": true, "Ocp-Apim-Subscription-Key": true, "X-Auth-Token": true, "X-Session": true, "sig": true, "PASSWORD": true,
		"X-Forwarded-Client-Cert": true, "User-Agent": false, "Content-Type": false, "Accept": false, "Openai-Organization": false,
		"Anthropic-Version": false, "X-Stainless-Package-Version": false, "api-version": false, "": false,
	} {
		if got := wire.Credential(name, []string{"a value"}); got != want {
			t.Errorf("%q: got %v", name, got)
		}
	}
	for value, want := range map[string]bool{
		"Bearer x": true, " bearer x": true, "BASIC x": true, "sk-x": true, "bearer": false, "a bearer x": false, "": false, "sk": false,
	} {
		if got := wire.Credential("X-Custom", []string{"ok", value}); got != want {
			t.Errorf("%q: got %v", value, got)
		}
	}
}
