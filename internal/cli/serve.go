package cli

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/app"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
)

// source is where a command's configuration comes from: a file, or flags that
// stand for a small one.
type source struct {
	file        string
	upstreams   []string
	listen      string
	adminListen string
}

// flags adds the flags that choose a configuration.
func (s *source) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&s.file, "config", "c", "", "configuration file")
	f.StringSliceVar(&s.upstreams, "upstream", nil, "base URL of a model server, instead of a file; repeatable")
	f.StringVar(&s.listen, "listen", "", "address for clients; replaces api.listen")
	f.StringVar(&s.adminListen, "admin-listen", "", "address for operators; replaces admin.listen")
}

// load reads or makes the configuration, with the flags put in.
func (s *source) load() (*config.File, error) {
	switch given := len(s.upstreams) > 0; {
	case s.file != "" && given:
		return nil, fmt.Errorf("%w: --config and --upstream exclude each other: a file says where its pools are", errUsage)
	case s.file == "" && !given:
		return nil, fmt.Errorf("%w: give a configuration file with -c, or at least one --upstream URL", errUsage)
	}
	var file *config.File
	if s.file != "" {
		var err error
		if file, err = config.Load(s.file); err != nil {
			return nil, err
		}
	} else {
		file = config.Default()
		pool := config.DefaultPool()
		pool.Name = "default"
		for _, u := range s.upstreams {
			pool.Instances = append(pool.Instances, config.Instance{Target: fleet.Target{URL: u}})
		}
		region := config.DefaultRegion()
		region.Name, region.Pools = "default", []config.Pool{pool}
		file.Fleet.Regions = []config.Region{region}
	}
	s.override(file)
	return file, file.Validate()
}

// override puts the flags' values into a configuration.
func (s *source) override(file *config.File) {
	if s.listen != "" {
		file.API.Listen = s.listen
		file.From("api.listen", "flag --listen")
	}
	if s.adminListen != "" {
		file.Admin.Listen = s.adminListen
		file.From("admin.listen", "flag --admin-listen")
	}
	if len(s.upstreams) > 0 {
		file.From("fleet", "flag --upstream")
	}
}

// newServe is the command `serve`.
func newServe(env Env) *cobra.Command {
	var src source
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: `Runs the gateway until it is interrupted; requests in progress are then given
api.drain_timeout to finish. SIGHUP, and a change of the file, reload the
configuration: all of it or nothing. A second interrupt ends the process at once.`,
		Example: `  spillway serve -c spillway.yaml
  spillway serve --upstream http://127.0.0.1:8000 --upstream http://127.0.0.1:8001 --listen :8080`,
		RunE: func(c *cobra.Command, _ []string) error {
			file, err := src.load()
			if err != nil {
				return mistakes(env, err)
			}
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			a, err := app.New(file, app.Options{Version: version, Path: src.file, Override: src.override, Stdout: env.Stdout, Stderr: env.Stderr})
			if err != nil {
				return err
			}
			l, err := a.Listen(c.Context())
			if err != nil {
				return err
			}
			defer l.Close()
			a.Log().Info("serving", "component", "app", "version", version, "api", l.API.Addr().String(), "admin", l.Admin.Addr().String())
			return a.Run(c.Context(), l, hangup)
		},
	}
	src.flags(c)
	return c
}

// mistakes prints every mistake of a configuration on its own line.
func mistakes(env Env, err error) error {
	all, ok := errors.AsType[config.Mistakes](err)
	if !ok {
		return err
	}
	for _, m := range all {
		fmt.Fprintln(env.Stderr, m)
	}
	noun := "mistakes"
	if len(all) == 1 {
		noun = "mistake"
	}
	fmt.Fprintf(env.Stderr, "spillway: %d %s in the configuration\n", len(all), noun)
	return errSaid
}

// newCheck is the command `check`.
func newCheck(env Env) *cobra.Command {
	var src source
	c := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration and print every mistake",
		Long: `Reads a configuration and everything that it names (keys, certificates, secrets),
and prints every mistake with its line. The exit status is 1 when there is one.`,
		Example: "  spillway check -c spillway.yaml",
		RunE: func(*cobra.Command, []string) error {
			file, err := src.load()
			if err != nil {
				return mistakes(env, err)
			}
			if _, err := app.New(file, app.Options{Version: version, Stdout: env.Stdout, Stderr: env.Stderr}); err != nil {
				return err
			}
			_, err = fmt.Fprintln(env.Stdout, "the configuration is good")
			return err
		},
	}
	src.flags(c)
	return c
}

// newExplain is the command `explain`.
func newExplain(env Env) *cobra.Command {
	var src source
	c := &cobra.Command{
		Use:     "explain",
		Short:   "Print the configuration in force with the origin of each value",
		Example: "  spillway explain -c spillway.yaml | grep retry",
		RunE: func(*cobra.Command, []string) error {
			file, err := src.load()
			if err != nil {
				return mistakes(env, err)
			}
			return file.Explain(env.Stdout)
		},
	}
	src.flags(c)
	return c
}
