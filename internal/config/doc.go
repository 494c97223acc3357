// Package config is the configuration file: it composes each mechanism's own
// Config in the order of a request's life, reads it strictly over the defaults,
// and tells everything that is wrong at once, with key paths and lines.
//
// Bytes become a File in four steps: YAML to a tree, environment variables into
// its values, a strict decode over the defaults, validation. Nothing is applied
// here: app builds the gateway from a File that has no mistake. The package has
// no state and no goroutine.
package config
