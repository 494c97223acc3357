package testkit

import (
	"os"
	"testing"
)

// Missing ends a test whose real server cannot be had on this machine: it says so,
// and with CI=true the test fails.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
