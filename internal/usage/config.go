package usage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spillway/spillway/internal/inference"
)

// Destinations of the access log that are not files.
const (
	Stdout = "stdout"
	Stderr = "stderr"
	Off    = "off"
)

// Config is the section `usage` of the configuration.
type Config struct {
	// Where the access log goes: `stdout`, `stderr`, `off` or the path of a file, which is appended to and opened again on SIGHUP.
	AccessLog string `yaml:"access_log"`
	// Most of the access log that waits to be written; as many again may be under way. Lines beyond are dropped and counted.
	Buffer inference.Bytes `yaml:"buffer"`
	// Most combinations of surface, model and pool that have metrics of their own; the others count as `other`.
	MaxSeries int `yaml:"max_series"`
}

// Default returns the configuration of a file that says nothing.
func Default() Config {
	return Config{AccessLog: Stdout, Buffer: 4 << 20, MaxSeries: 1000}
}

// Validate returns every mistake in the section.
func (c *Config) Validate() error {
	var errs []error
	switch c.AccessLog {
	case Stdout, Stderr, Off:
	case "":
		errs = append(errs, errors.New("access_log: want stdout, stderr, off or a path, got nothing"))
	default:
		if i, err := os.Stat(filepath.Dir(c.AccessLog)); err != nil {
			errs = append(errs, fmt.Errorf("access_log: %w", err))
		} else if !i.IsDir() {
			errs = append(errs, fmt.Errorf("access_log: %s is not a folder", filepath.Dir(c.AccessLog)))
		}
	}
	if c.Buffer < 64<<10 || c.Buffer > 1<<30 {
		errs = append(errs, fmt.Errorf("buffer: must be 65536 to 1073741824, got %v", c.Buffer))
	}
	if c.MaxSeries < 1 || c.MaxSeries > 100_000 {
		errs = append(errs, fmt.Errorf("max_series: must be 1 to 100000, got %d", c.MaxSeries))
	}
	return errors.Join(errs...)
}
