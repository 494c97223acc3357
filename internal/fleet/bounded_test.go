package fleet_test

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/fleet"
)

func TestBounded(t *testing.T) {
	for text, want := range map[string]error{"": nil, "four": nil, "fives": fleet.ErrTooLong, strings.Repeat("x", 100): fleet.ErrTooLong} {
		got, err := io.ReadAll(fleet.Bounded(io.NopCloser(strings.NewReader(text)), 4))
		if string(got) != text[:min(4, len(text))] || !errors.Is(err, want) {
			t.Errorf("%q: got %q, %v, want %v", text, got, err, want)
		}
	}
}
