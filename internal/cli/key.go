package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/identity"
	keysql "github.com/spillway/spillway/internal/identity/sql"
	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/store"
	storesql "github.com/spillway/spillway/internal/store/sql"
)

// keyTime bounds a change of keys.
const keyTime = time.Minute

// register is where a command finds the keys.
type register struct {
	env    Env
	config string
	file   string
	pepper string
	sql    bool
}

// newKey is the command `key`, with one subcommand for each thing to do with API keys.
func newKey(env Env) *cobra.Command {
	c := &cobra.Command{
		Use:   "key",
		Short: "Make, list, revoke and replace API keys",
		Long: `Works on the keys file, or on the database of identity.sql, whether a gateway runs
or not; gateways follow by themselves. Keys are kept as digests alone: a key is
printed once, when it is made.`,
		Example: `  spillway key create --keys-file keys.txt --tenant acme --class vip
  spillway key list -c spillway.yaml
  spillway key rotate -c spillway.yaml 5b1f0c7d2a9b --grace 24h
  spillway key revoke -c spillway.yaml 5b1f0c7d2a9b`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: unknown command%s; give create, list, revoke or rotate", errUsage, named(args[0]))
			}
			return c.Help()
		},
	}
	c.AddCommand(newKeyCreate(env), newKeyList(env), newKeyRevoke(env), newKeyRotate(env))
	return c
}

// named repeats a word that was given, unless it may be a key.
func named(arg string) string {
	if len(arg) > 8 {
		return ""
	}
	return " " + strconv.Quote(arg)
}

// flags adds the flags that say where the keys are.
func (r *register) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&r.config, "config", "c", "", "configuration `file`, whose section identity says where keys are")
	f.StringVar(&r.file, "keys-file", "", "keys `file`, instead of a configuration; create makes it")
	f.StringVar(&r.pepper, "pepper-file", "", "`file` with the pepper for new keys; with a configuration, its own counts")
	f.BoolVar(&r.sql, "sql", false, "the database, where the configuration has a keys file too")
}

// with opens the keys and works on them.
func (r *register) with(ctx context.Context, do func(ctx context.Context, in identity.Register, cfg *identity.Config) error) error {
	ctx, cancel := context.WithTimeout(ctx, keyTime)
	defer cancel()
	switch {
	case (r.config == "") == (r.file == ""):
		return fmt.Errorf("%w: give a configuration with -c, or a keys file with --keys-file", errUsage)
	case r.file != "" && r.sql:
		return fmt.Errorf("%w: --sql needs a configuration, which says where the database is", errUsage)
	case r.config != "" && r.pepper != "":
		return fmt.Errorf("%w: the pepper is the configuration's: identity.pepper_file", errUsage)
	case r.file != "":
		return do(ctx, identity.NewFile(r.file), &identity.Config{KeysFile: r.file, PepperFile: r.pepper})
	}
	file, err := config.Load(r.config)
	if err != nil {
		return mistakes(r.env, err)
	}
	cfg := &file.Identity
	switch {
	case cfg.KeysFile != "" && !r.sql:
		return do(ctx, identity.NewFile(cfg.KeysFile), cfg)
	case cfg.SQL:
		return inDatabase(ctx, file, func(ctx context.Context, t *keysql.Table) error { return do(ctx, t, cfg) })
	case r.sql:
		return fmt.Errorf("%s: identity.sql is not set", r.config)
	}
	return fmt.Errorf("%s: neither identity.keys_file nor identity.sql is set, so there is no place for keys", r.config)
}

// inDatabase connects to the database for as long as do takes.
func inDatabase(ctx context.Context, file *config.File, do func(context.Context, *keysql.Table) error) error {
	keep, err := store.Open(file.Store.Config)
	if err != nil {
		return err
	}
	databases, err := storesql.Open(file.Store.SQL, keep.Directory(), slog.New(slog.DiscardHandler), keysql.Migrations())
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan error, 1)
	go func() { done <- databases.Run(run) }() // ends below
	err = do(ctx, keysql.New(databases))
	stop()
	return errors.Join(err, <-done)
}

// terms are what a new key is given.
type terms struct {
	id, tenant, class, models, expires string
	quota                              inference.Quota
}

// newKeyCreate is the command `key create`.
func newKeyCreate(env Env) *cobra.Command {
	r, t := register{env: env}, terms{}
	c := &cobra.Command{
		Use:   "create",
		Short: "Make a key; print it once",
		Long: `Makes a key of 256 random bits, keeps its digest, and prints the key to standard
output and its id to standard error. The key cannot be shown again.`,
		Example: `  spillway key create --keys-file keys.txt --tenant acme --class vip
  spillway key create -c spillway.yaml --tenant beta --models 'llama-*' --expires 2160h --rps 5 --tokens-per-day 1000000`,
		Args: noWords,
		RunE: func(c *cobra.Command, _ []string) error {
			k, err := t.key(time.Now())
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return r.with(c.Context(), func(ctx context.Context, in identity.Register, cfg *identity.Config) error {
				secret, err := seal(cfg, &k, t.id)
				if err != nil {
					return err
				}
				if err := in.Add(ctx, k); err != nil {
					return err
				}
				return tell(env, secret, &k, in)
			})
		},
	}
	r.flags(c)
	f := c.Flags()
	f.StringVar(&t.tenant, "tenant", "", "who pays")
	f.StringVar(&t.class, "class", "normal", "how urgent its requests may be: vip, normal or batch")
	f.StringVar(&t.models, "models", "", "`patterns` of the models that it may ask for, between commas; empty: all")
	f.StringVar(&t.expires, "expires", "", "when it ends: a `time` such as 2027-01-01T00:00:00Z, or from now, such as 720h; empty: never")
	f.StringVar(&t.id, "id", "", "its public name; empty: 12 digits of its digest")
	f.Int64Var(&t.quota.RequestsPerSecond, "rps", 0, "most requests a second; 0 is no limit")
	f.Int64Var(&t.quota.RequestsPerMinute, "rpm", 0, "most requests a minute")
	f.Int64Var(&t.quota.TokensPerMinute, "tpm", 0, "most tokens a minute")
	f.Int64Var(&t.quota.Concurrent, "concurrent", 0, "most requests at a time")
	f.Int64Var(&t.quota.TokensPerDay, "tokens-per-day", 0, "most tokens in a day, UTC")
	f.Int64Var(&t.quota.TokensPerMonth, "tokens-per-month", 0, "most tokens in a calendar month, UTC")
	return c
}

// key is the new key, without its digest.
func (t *terms) key(now time.Time) (k identity.Key, err error) {
	k = identity.Key{ID: t.id, Tenant: t.tenant, Quota: t.quota}
	if t.tenant == "" {
		return k, errors.New("--tenant: say who pays")
	}
	var ok bool
	if k.Class, ok = inference.ParseClass(t.class); !ok {
		return k, fmt.Errorf("--class: must be vip, normal or batch, got %q", t.class)
	}
	if t.models != "" {
		if k.Models, err = identity.ParseModels(t.models); err != nil {
			return k, fmt.Errorf("--%w", err)
		}
	}
	if k.Expires, err = ending(t.expires, now); err != nil {
		return k, err
	}
	whole := k
	if whole.ID == "" {
		whole.ID = "x" // it gets one with its digest
	}
	return k, whole.Check()
}

// ending reads when a key ends; zero is never.
func ending(text string, now time.Time) (at time.Time, err error) {
	if text == "" {
		return at, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		at = now.Add(d)
	} else if at, err = time.Parse(time.RFC3339, text); err != nil {
		return at, fmt.Errorf("--expires: want a time such as 2027-01-01T00:00:00Z or a duration such as 720h, got %q", text)
	}
	if !at.After(now) {
		return at, fmt.Errorf("--expires: %q is in the past", text)
	}
	return at.UTC().Truncate(time.Second), nil
}

// seal makes the secret of a key, and gives the key its digest and an id.
func seal(cfg *identity.Config, k *identity.Key, id string) (secret string, err error) {
	secret = identity.NewSecret()
	if k.Digest, err = cfg.DigestOf(secret); err != nil {
		return "", err
	}
	if k.ID = id; id == "" {
		k.ID = k.Digest.ID()
	}
	return secret, nil
}

// tell prints a new key, and warns when a gateway would not take the file that it
// stands in.
func tell(env Env, secret string, k *identity.Key, in identity.Register) error {
	if _, err := fmt.Fprintln(env.Stdout, secret); err != nil {
		return fmt.Errorf("the key %s was made but cannot be printed; revoke it: %w", k.ID, err)
	}
	fmt.Fprintf(env.Stderr, "id %s, tenant %s, class %s%s\n", k.ID, k.Tenant, k.Class, until(k))
	if f, ok := in.(*identity.File); ok {
		if _, err := f.List(context.Background()); err != nil {
			fmt.Fprintln(env.Stderr, "the key is kept, but a gateway refuses the file until this is put right:", err)
		}
	}
	return nil
}

// until words the end of a key.
func until(k *identity.Key) string {
	if k.Expires.IsZero() {
		return ""
	}
	return ", until " + k.Expires.UTC().Format(time.RFC3339)
}

// newKeyRevoke is the command `key revoke`.
func newKeyRevoke(env Env) *cobra.Command {
	r := register{env: env}
	c := &cobra.Command{
		Use:     "revoke ID",
		Short:   "End a key at once, for good",
		Long:    "Ends a key for good. It stays in the list. Gateways follow within a second of the file's change, or identity.refresh of the database's.",
		Example: "  spillway key revoke -c spillway.yaml 5b1f0c7d2a9b",
		Args:    keyID,
		RunE: func(c *cobra.Command, args []string) error {
			return r.with(c.Context(), func(ctx context.Context, in identity.Register, _ *identity.Config) error {
				var since time.Time
				err := in.Update(ctx, args[0], func(k *identity.Key) (*identity.Key, error) {
					if k.Revoked.IsZero() {
						k.Revoked = time.Now().UTC().Truncate(time.Second)
					}
					since = k.Revoked
					return nil, nil
				})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(env.Stdout, "%s is revoked since %s\n", args[0], since.UTC().Format(time.RFC3339))
				return err
			})
		},
	}
	r.flags(c)
	return c
}

// keyID wants one id. What else is given may be a key, so it is not repeated.
func keyID(_ *cobra.Command, args []string) error {
	switch {
	case len(args) != 1:
		return errors.New("give the id of one key; key list has them")
	case strings.HasPrefix(args[0], "sw-"):
		return errors.New("this is a key; give its id, which key list has")
	}
	return nil
}

// noWords wants flags alone. What else is given may be a key, so it is not repeated.
func noWords(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("key %s takes flags alone, and got %d words more", c.Name(), len(args))
	}
	return nil
}

// newKeyRotate is the command `key rotate`.
func newKeyRotate(env Env) *cobra.Command {
	r := register{env: env}
	var grace time.Duration
	c := &cobra.Command{
		Use:   "rotate ID",
		Short: "Make a key in the place of another, which ends after a while",
		Long: `Makes a key with the settings of another, prints it once, and lets the old one end
after --grace, so that there is time to put the new one in its place.`,
		Example: "  spillway key rotate -c spillway.yaml 5b1f0c7d2a9b --grace 72h",
		Args:    keyID,
		RunE: func(c *cobra.Command, args []string) error {
			if grace < 0 {
				return fmt.Errorf("%w: --grace: must not be negative, got %v", errUsage, grace)
			}
			return r.with(c.Context(), func(ctx context.Context, in identity.Register, cfg *identity.Config) error {
				var made identity.Key
				secret, err := seal(cfg, &made, "")
				if err != nil {
					return err
				}
				var old identity.Key
				err = in.Update(ctx, args[0], func(k *identity.Key) (*identity.Key, error) {
					more, err := succeed(k, made, time.Now(), grace)
					old, made = *k, more
					return &more, err
				})
				if err != nil {
					return err
				}
				if err := tell(env, secret, &made, in); err != nil {
					return err
				}
				_, err = fmt.Fprintf(env.Stderr, "%s ends at %s\n", old.ID, old.Expires.UTC().Format(time.RFC3339))
				return err
			})
		},
	}
	r.flags(c)
	c.Flags().DurationVar(&grace, "grace", 24*time.Hour, "how long the old key works on")
	return c
}

// succeed makes a key the successor of another, whose end it sets.
func succeed(old *identity.Key, next identity.Key, now time.Time, grace time.Duration) (identity.Key, error) {
	switch {
	case !old.Revoked.IsZero():
		return next, fmt.Errorf("%s is revoked; create a new key", old.ID)
	case !old.Expires.IsZero() && !old.Expires.After(now):
		return next, fmt.Errorf("%s has expired; create a new key", old.ID)
	}
	digest, id := next.Digest, next.ID
	next = *old
	next.Digest, next.ID = digest, id
	if end := now.Add(grace).UTC().Truncate(time.Second); old.Expires.IsZero() || end.Before(old.Expires) {
		old.Expires = end
	}
	return next, nil
}

// newKeyList is the command `key list`.
func newKeyList(env Env) *cobra.Command {
	r := register{env: env}
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the keys, without anything that could be used as one",
		Example: "  spillway key list -c spillway.yaml\n  spillway key list --keys-file keys.txt --json",
		Args:    noWords,
		RunE: func(c *cobra.Command, _ []string) error {
			return r.with(c.Context(), func(ctx context.Context, in identity.Register, _ *identity.Config) error {
				keys, err := in.List(ctx)
				if errors.Is(err, fs.ErrNotExist) {
					return err
				}
				slices.SortStableFunc(keys, func(a, b identity.Key) int { return strings.Compare(a.Tenant, b.Tenant) })
				return errors.Join(printKeys(env, keys, asJSON), err)
			})
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// listed is a key as it is listed.
type listed struct {
	ID      string          `json:"id"`
	Tenant  string          `json:"tenant"`
	Class   string          `json:"class"`
	State   string          `json:"state"` // active, expired or revoked
	Digest  string          `json:"digest"`
	Models  []string        `json:"models,omitempty"`
	Quota   inference.Quota `json:"quota,omitzero"`
	Expires time.Time       `json:"expires,omitzero"`
	Revoked time.Time       `json:"revoked,omitzero"`
}

// printKeys prints keys as a table or JSON.
func printKeys(env Env, keys []identity.Key, asJSON bool) error {
	list := make([]listed, len(keys))
	for i := range keys {
		k := &keys[i]
		list[i] = listed{
			ID: k.ID, Tenant: k.Tenant, Class: k.Class.String(), State: stateOf(k, time.Now()), Digest: k.Digest.String(),
			Models: k.Models, Quota: k.Quota, Expires: k.Expires, Revoked: k.Revoked,
		}
	}
	if asJSON {
		e := json.NewEncoder(env.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(list)
	}
	w := tabwriter.NewWriter(env.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tTENANT\tCLASS\tSTATE\tEXPIRES\tMODELS\tLIMITS")
	for _, k := range list {
		expires, models := "never", "all"
		if !k.Expires.IsZero() {
			expires = k.Expires.UTC().Format(time.RFC3339)
		}
		if k.Models != nil {
			models = strings.Join(k.Models, ",")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Tenant, k.Class, k.State, expires, models, limitsOf(&k.Quota))
	}
	return w.Flush()
}

// stateOf is whether a key works.
func stateOf(k *identity.Key, now time.Time) string {
	switch {
	case !k.Revoked.IsZero():
		return "revoked"
	case !k.Expires.IsZero() && !k.Expires.After(now):
		return "expired"
	}
	return "active"
}

// limitsOf is a key's limits in a line.
func limitsOf(q *inference.Quota) string {
	var parts []string
	for _, one := range []struct {
		n    int64
		unit string
	}{
		{q.RequestsPerSecond, "requests/s"}, {q.RequestsPerMinute, "requests/min"}, {q.TokensPerMinute, "tokens/min"},
		{q.Concurrent, "at a time"}, {q.TokensPerDay, "tokens/day"}, {q.TokensPerMonth, "tokens/month"},
	} {
		if one.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", one.n, one.unit))
		}
	}
	if len(parts) == 0 {
		return "none"
	}
	return strings.Join(parts, ", ")
}
