package app

import (
	"net/http"

	"github.com/spillway/spillway/internal/identity"
	"github.com/spillway/spillway/internal/inference"
)

// callers adapts identity to what api calls.
type callers struct{ *identity.Keys }

// Identify implements api.Identity.
func (c callers) Identify(h http.Header) (inference.Caller, error) {
	tenant, class, err := c.Keys.Identify(h)
	return inference.Caller{Tenant: tenant, Class: class}, err
}
