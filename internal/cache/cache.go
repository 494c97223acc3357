// Package cache keeps answers.
package cache
