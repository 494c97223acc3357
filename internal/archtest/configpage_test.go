package archtest_test

import (
	"cmp"
	"fmt"
	"go/ast"
	"os"
	"path"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spillway/spillway/internal/cache"
	"github.com/spillway/spillway/internal/config"
	"github.com/spillway/spillway/internal/fleet"
	"github.com/spillway/spillway/internal/fleet/consul"
	"github.com/spillway/spillway/internal/fleet/dns"
	"github.com/spillway/spillway/internal/fleet/file"
	"github.com/spillway/spillway/internal/fleet/kubernetes"
	"github.com/spillway/spillway/internal/health"
	"github.com/spillway/spillway/internal/limit"
	"github.com/spillway/spillway/internal/route"
	"github.com/spillway/spillway/internal/route/experiment"
	routerule "github.com/spillway/spillway/internal/route/rule"
	"github.com/spillway/spillway/internal/store/sql"
	"github.com/spillway/spillway/internal/upstream"
)

// comments are the docs of the fields of structs, by "pkg.Type.Field".
type comments map[string]string

// readComments collects them from the code.
func readComments(t *testing.T) comments {
	t.Helper()
	code, err := parseTree(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	c := make(comments)
	code.each(isCode, func(f *folder, s *source) {
		ast.Inspect(s.ast, func(n ast.Node) bool {
			d, ok := n.(*ast.GenDecl)
			if !ok {
				return true
			}
			for _, spec := range d.Specs {
				ts, ok := spec.(*ast.TypeSpec)
				if !ok {
					continue
				}
				if st, ok := ts.Type.(*ast.StructType); ok {
					c.fields(module+"/"+f.path+"."+ts.Name.Name, st)
				}
			}
			return true
		})
	})
	return c
}

// fields collects the comments of a struct's fields.
func (c comments) fields(name string, st *ast.StructType) {
	for _, f := range st.Fields.List {
		text := cmp.Or(f.Doc.Text(), f.Comment.Text())
		for _, id := range f.Names {
			c[name+"."+id.Name] = text
		}
	}
}

// page is one page of the reference.
type page struct {
	t        *testing.T
	comments comments
	name     string
	b        strings.Builder
}

// homes says which page describes a type that stands in several sections.
var homes = map[reflect.Type]string{
	reflect.TypeFor[upstream.Config]():      "upstream",
	reflect.TypeFor[health.Config]():        "health",
	reflect.TypeFor[health.Metrics]():       "health",
	reflect.TypeFor[route.HashConfig]():     "route",
	reflect.TypeFor[route.PrefixConfig]():   "route",
	reflect.TypeFor[route.LatencyConfig]():  "route",
	reflect.TypeFor[route.AffinityConfig](): "route",
	reflect.TypeFor[route.Action]():         "route",
}

// elements are the defaults of what stands in a list, or behind a pointer that
// is nil until its key is written.
var elements = map[reflect.Type]any{
	reflect.TypeFor[config.Region]():   config.DefaultRegion(),
	reflect.TypeFor[config.Pool]():     config.DefaultPool(),
	reflect.TypeFor[config.Instance](): config.Instance{Target: fleet.Target{}},
	reflect.TypeFor[file.Config]():     file.Default(),
	reflect.TypeFor[dns.Config]():      dns.Default(),
	reflect.TypeFor[consul.Config]():   consul.Default(),
	reflect.TypeFor[health.Rule]():     health.Rule{},
	reflect.TypeFor[cache.Rule]():      cache.Rule{},
	reflect.TypeFor[limit.Rule]():      limit.Rule{},
	reflect.TypeFor[routerule.Rule]():  routerule.Rule{},

	reflect.TypeFor[kubernetes.Config](): kubernetes.Default(),

	reflect.TypeFor[experiment.Config](): experiment.Default(),
	reflect.TypeFor[experiment.Arm]():    experiment.Arm{Weight: 1},
	reflect.TypeFor[experiment.Step]():   experiment.Step{},

	reflect.TypeFor[sql.DatabaseConfig](): sql.DatabaseConfig{},
}

// configPages makes one page for each section, and for the sections of a pool
// that are a mechanism's own.
func configPages(t *testing.T) map[string]string {
	t.Helper()
	c := readComments(t)
	pages := make(map[string]string)
	var index strings.Builder
	index.WriteString("# Configuration\n\nA configuration is one YAML file. Unknown keys are mistakes, `${NAME}` and `${NAME:-default}` in a value are replaced from the environment, " +
		"durations are written `30s`. `spillway check -c FILE` lists every mistake with its line, `spillway explain -c FILE` prints what is in force.\n\n" +
		"| section | what |\n| --- | --- |\n")
	add := func(name, where string, build func(p *page)) {
		p := &page{t: t, comments: c, name: name}
		fmt.Fprintf(&p.b, "# `%s`\n\n%s\n\n", name, where)
		build(p)
		pages["config/"+name+".md"] = p.b.String()
	}
	defaults := reflect.ValueOf(*config.Default())
	for i := range defaults.NumField() {
		f := defaults.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		name, value := yamlName(f), defaults.Field(i)
		text := c[defaults.Type().PkgPath()+".File."+f.Name]
		fmt.Fprintf(&index, "| [`%s`](%s.md) | %s |\n", name, name, cell(text))
		add(name, "Section `"+name+"` of the configuration. "+strings.Join(strings.Fields(text), " "), func(p *page) { p.table(value) })
	}
	pool := reflect.ValueOf(config.DefaultPool())
	add("upstream", "Key `fleet.regions[].pools[].upstream`.", func(p *page) { p.table(pool.FieldByName("Upstream")) })
	add("health", "Keys `health` and `metrics` of `fleet.regions[].pools[]`.", func(p *page) {
		p.table(pool.FieldByName("Health"))
		p.b.WriteString("\n## `metrics`\n\n")
		p.table(pool.FieldByName("Metrics"))
	})
	index.WriteString("| [`fleet.regions[].pools[].upstream`](upstream.md) | How instances are reached. |\n" +
		"| [`fleet.regions[].pools[].health`](health.md), `metrics` | How instances are judged. |\n")
	pages["config/README.md"] = index.String()
	return pages
}

// table writes the keys of a struct.
func (p *page) table(v reflect.Value) {
	p.b.WriteString("| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
	p.rows("", v)
}

// rows writes the keys below a prefix.
func (p *page) rows(prefix string, v reflect.Value) {
	t := v.Type()
	for i := range t.NumField() {
		f, value := t.Field(i), v.Field(i)
		if !f.IsExported() {
			continue
		}
		if f.Anonymous {
			p.rows(prefix, value)
			continue
		}
		key := prefix + yamlName(f)
		text := p.comments[t.PkgPath()+"."+t.Name()+"."+f.Name]
		if strings.TrimSpace(text) == "" {
			p.t.Errorf("%s.%s has no comment: it is what docs/config/%s.md says", t, f.Name, p.name)
		}
		p.row(key, value, text)
	}
}

// row writes one key and what is below it.
func (p *page) row(key string, v reflect.Value, text string) {
	t := v.Type()
	inner, suffix := v, "."
	switch {
	case t.Kind() == reflect.Slice && known(t.Elem()):
		inner, suffix = reflect.ValueOf(elements[t.Elem()]), "[]."
	case t.Kind() == reflect.Pointer && known(t.Elem()):
		inner = reflect.ValueOf(elements[t.Elem()])
	}
	if home := homes[inner.Type()]; home != "" && home != p.name {
		fmt.Fprintf(&p.b, "| `%s` | | | %s See [`%s`](%s.md). |\n", key, cell(text), home, home)
		return
	}
	if inner.Kind() != reflect.Struct || written(inner.Type()) {
		fmt.Fprintf(&p.b, "| `%s` | %s | %s | %s |\n", key, typeName(t), value(v), cell(text))
		return
	}
	fmt.Fprintf(&p.b, "| `%s` | | | %s |\n", strings.TrimSuffix(key+suffix, "."), cell(text))
	p.rows(key+suffix, inner)
}

// known says whether the default of a list's member or a pointer's target is known.
func known(t reflect.Type) bool { _, ok := elements[t]; return ok }

// written says whether a type is written as one word.
func written(t reflect.Type) bool {
	_, ok := reflect.New(t).Interface().(interface{ UnmarshalText([]byte) error })
	return ok
}

// yamlName is a field's key.
func yamlName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	return name
}

// typeName is a type in the words of a reader of YAML.
func typeName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t.Kind() == reflect.Slice:
		return "list of " + typeName(t.Elem())
	case t.Kind() == reflect.Map:
		return "mapping to " + typeName(t.Elem())
	case t.Kind() == reflect.Struct, t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	}
	return "number"
}

// value is a default as it would be written; empty values are left out.
func value(v reflect.Value) string {
	switch {
	case (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0, v.Kind() == reflect.String && v.Len() == 0:
		return ""
	case v.Type() == reflect.TypeFor[time.Duration]():
		s := v.Interface().(time.Duration).String()
		if strings.HasSuffix(s, "m0s") {
			s = strings.TrimSuffix(s, "0s")
		}
		return "`" + s + "`"
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

func TestEverySectionHasAPage(t *testing.T) {
	pages := configPages(t)
	for _, want := range []string{"api", "admin", "identity", "route", "gateway", "usage", "telemetry", "fleet", "upstream", "health"} {
		text := pages[path.Join("config", want+".md")]
		if strings.Count(text, "\n| `") == 0 {
			t.Errorf("config/%s.md: no key in %q", want, text)
		}
	}
	if got := pages["config/gateway.md"]; !strings.Contains(got, "| `retry.budget` | number | `0.2` | Share of the requests") {
		t.Errorf("config/gateway.md does not describe retry.budget:\n%s", got)
	}
}
