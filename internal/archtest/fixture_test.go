package archtest_test

import (
	"fmt"
	"strings"
)

// lines is a function with n lines.
func lines(name string, n int) string {
	return fmt.Sprintf("func %s() {\n%s}\n", name, strings.Repeat("\t_ = 0\n", n-2))
}

// manyFunctions is a file of total functions, long of them with 50 lines.
func manyFunctions(total, long int) string {
	var b strings.Builder
	b.WriteString("package a\n")
	for i := range total {
		n := 5
		if i < long {
			n = 50
		}
		b.WriteString(lines(fmt.Sprintf("f%d", i), n))
	}
	return b.String()
}

// one is a repository of one file.
func one(name, text string) map[string]string { return map[string]string{name: text} }

// importing is a file that imports one package.
func importing(name, path string) string {
	return fmt.Sprintf("package %s\n\nimport _ %q\n", name, path)
}

// fixtures are small repositories with mistakes, and some without.
func fixtures() map[string]fixture {
	all := importFixtures()
	for _, more := range []map[string]fixture{budgetFixtures(), stateFixtures(), documentFixtures(), habitFixtures()} {
		for name, f := range more {
			all[name] = f
		}
	}
	return all
}

func importFixtures() map[string]fixture {
	return map[string]fixture{
		"a higher ring": {"rings", one("internal/wire/wire.go", importing("wire", module+"/internal/gateway")), []string{"wire.go:3: internal/wire (ring 1) must not import internal/gateway (ring 3)"}},
		"its own ring":  {"rings", one("internal/route/route.go", importing("route", module+"/internal/health")), []string{"must not import internal/health"}},
		"a sister":      {"rings", one("internal/fleet/dns/dns.go", importing("dns", module+"/internal/fleet/file")), []string{"must not import internal/fleet/file"}},
		"a child":       {"rings", one("internal/fleet/fleet.go", importing("fleet", module+"/internal/fleet/file")), []string{"must not import internal/fleet/file"}},
		"no ring":       {"rings", one("internal/news/news.go", "package news\n"), []string{"internal/news has no ring"}},
		"good rings": {"rings", map[string]string{
			"internal/fleet/dns/dns.go": importing("dns", module+"/internal/fleet"),
			"internal/route/route.go":   importing("route", module+"/internal/fleet"),
			"internal/fleet/f_test.go":  importing("fleet_test", module+"/internal/cli"),
		}, nil},
		"a stranger":        {"third parties", one("internal/inference/a.go", importing("inference", prom)), []string{"internal/inference must not import " + prom}},
		"yaml elsewhere":    {"third parties", one("internal/gateway/a.go", importing("gateway", yamlPath)), []string{"must not import " + yamlPath}},
		"an sdk":            {"third parties", one("internal/usage/a.go", importing("usage", otel+"/sdk/trace")), []string{"must not import " + otel}},
		"known parties":     {"third parties", map[string]string{"internal/usage/a.go": importing("usage", prom), "internal/wire/a.go": importing("wire", jsontext)}, nil},
		"testkit in code":   {"test-only packages", one("internal/app/a.go", importing("app", module+"/internal/testkit")), []string{"internal/testkit is for tests only"}},
		"a suite in code":   {"test-only packages", one("internal/app/a.go", importing("app", module+"/internal/route/routetest")), []string{"is for tests only"}},
		"testing in code":   {"test-only packages", one("internal/app/a.go", importing("app", "testing")), []string{"testing is for tests only"}},
		"testkit in a test": {"test-only packages", one("internal/app/a_test.go", importing("app_test", module+"/internal/testkit")), nil},
	}
}

func budgetFixtures() map[string]fixture {
	return map[string]fixture{
		"71 lines":            {"function length", one("a/a.go", "package a\n"+lines("f", 71)), []string{"a.go:2: f has 71 lines"}},
		"70 lines":            {"function length", one("a/a.go", "package a\n"+lines("f", 70)), nil},
		"too many long ones":  {"function length", one("a/a.go", manyFunctions(20, 2)), []string{"f0 has 50 lines", "f1 has 50 lines"}},
		"a few long ones":     {"function length", one("a/a.go", manyFunctions(41, 2)), nil},
		"71 lines of a test":  {"function length", one("a/a_test.go", "package a_test\n"+lines("f", 71)), nil},
		"a long file":         {"file length", one("a/a.go", "package a\n"+strings.Repeat("\n", 500)), []string{"501 lines"}},
		"a file of 500 lines": {"file length", one("a/a.go", "package a\n"+strings.Repeat("\n", 499)), nil},
		"six parameters":      {"parameters", one("a/a.go", "package a\nfunc f(a, b, c int, d string, e, g bool) {}\n"), []string{"f has 6 parameters"}},
		"five parameters":     {"parameters", one("a/a.go", "package a\nfunc f(a, b, c int, d string, e bool) {}\n"), nil},
		"a method's six":      {"parameters", one("a/a.go", "package a\ntype I interface{ M(a, b, c, d, e, f int) }\n"), []string{"M has 6 parameters"}},
		"five methods":        {"interface size", one("a/a.go", "package a\ntype I interface{ A(); B(); C(); D(); E() }\n"), []string{"interface I has 5 methods"}},
		"four methods":        {"interface size", one("a/a.go", "package a\ntype I interface{ A(); B(); C(); D() }\n"), nil},
	}
}

func stateFixtures() map[string]fixture {
	return map[string]fixture{
		"an init":          {"init", one("a/a.go", "package a\nfunc init() {}\n"), []string{"no init functions"}},
		"a method init":    {"init", one("a/a.go", "package a\ntype T int\nfunc (T) init() {}\n"), nil},
		"live state":       {"package variables", one("a/a.go", "package a\nvar (\n\tmu sync.Mutex\n\tn = 3\n\tc = make(chan int)\n\tp = &T{}\n\ta = atomic.Int64{}\n)\n"), []string{"mu is neither", "n is neither", "c is neither", "p is neither", "a is neither"}},
		"an assigned map":  {"package variables", one("a/a.go", "package a\nvar m = map[string]int{}\nfunc f() { m[\"a\"] = 1; delete(m, \"a\") }\n"), []string{"m is changed", "m is changed"}},
		"an address taken": {"package variables", one("a/a.go", "package a\nvar s = struct{ n int }{1}\nfunc f() *int { return &s.n }\n"), []string{"s is changed"}},
		"another file":     {"package variables", map[string]string{"a/a.go": "package a\nvar s = [...]int{1}\n", "a/b.go": "package a\nfunc f() { s[0]++ }\n"}, []string{"b.go:2: package variable s is changed"}},
		"constants in spirit": {"package variables", one("a/a.go", `package a

import "errors"

// ErrNo is one.
var ErrNo = errors.New("no")

var (
	table = map[string]int{"a": 1}
	pool  = sync.Pool{New: func() any { return 1 }}
	made  = func() []int { return []int{1} }()
	bytes = []byte("x")
)

//go:embed x
var files embed.FS

var _ error = (*T)(nil)

func f() int { table := map[string]int{}; table["b"] = 2; return pool.Get().(int) }
`), nil},
	}
}

func documentFixtures() map[string]fixture {
	return map[string]fixture{
		"no package doc":    {"package docs", one("a/a.go", "package a\n"), []string{"package a has no doc"}},
		"a doc elsewhere":   {"package docs", one("a/b.go", "// Package a is.\npackage a\n"), []string{"package a has no doc in doc.go or a.go"}},
		"a package doc":     {"package docs", map[string]string{"a/b.go": "package a\n", "a/doc.go": "// Package a is.\npackage a\n"}, nil},
		"bare exports":      {"export docs", one("a/a.go", "package a\nfunc F() {}\ntype T int\nfunc (*T) M() {}\nconst C = 1\ntype I interface { A(); B() }\n"), []string{"F is exported", "T is exported", "M is exported", "C is exported", "I is exported", "method A", "method B"}},
		"documented":        {"export docs", one("a/a.go", "package a\n\n// F does.\nfunc F() {}\n\n// The kinds.\nconst (\n\tA = 1\n\tB = 2\n)\n\ntype t int\n\nfunc (t) M() {}\n\n// I is one.\ntype I interface{ A() }\n"), nil},
		"a vague package":   {"names", one("util/a.go", "package util\n"), []string{"package util"}},
		"a getter":          {"names", one("a/a.go", "package a\nfunc GetName() {}\n"), []string{"no Get prefix"}},
		"a stutter":         {"names", one("fleet/a.go", "package fleet\ntype FleetNode int\n"), []string{"fleet.FleetNode stutters"}},
		"names that are ok": {"names", one("route/a.go", "package route\ntype Router int\nfunc (Router) Getaway() {}\n"), nil},
	}
}

// habitTest is a test file with a body.
func habitTest(body string) map[string]string {
	return one("a/a_test.go", "package a_test\n\nfunc TestA(t *testing.T) {\n"+body+"\n}\n")
}

func habitFixtures() map[string]fixture {
	return map[string]fixture{
		"a real sleep":     {"sleeps", habitTest("\ttime.Sleep(1)"), []string{"a_test.go:4: TestA sleeps in real time"}},
		"a poll for ever":  {"sleeps", habitTest("\tfor !done() { time.Sleep(1) }"), []string{"TestA sleeps in real time"}},
		"a sleep in a row": {"sleeps", habitTest("\tfor i := 0; i < 3; i++ { time.Sleep(1) }"), []string{"TestA sleeps in real time"}},
		"a bubble":         {"sleeps", habitTest("\tsynctest.Test(t, func(t *testing.T) { time.Sleep(1) })"), nil},
		"a poll":           {"sleeps", habitTest("\tfor end := time.Now().Add(9); !done(); time.Sleep(1) { if time.Now().After(end) { t.Fatal() } }"), nil},
		"a bubble's helper": {"sleeps", one("a/a_test.go", `package a_test

func TestA(t *testing.T) { bubble(t, func() { after(1) }) }

func bubble(t *testing.T, f func()) { synctest.Test(t, func(*testing.T) { f() }) }

func after(d int) { pause(d) }

func pause(d int) { time.Sleep(d) }
`), nil},
		"a helper of both": {"sleeps", one("a/a_test.go", `package a_test

func TestA(t *testing.T) { synctest.Test(t, func(*testing.T) { pause(1) }); pause(2) }

func pause(d int) { time.Sleep(d) }
`), []string{"pause sleeps in real time"}},
		"a skip":        {"skips", habitTest("\tt.Skip()"), []string{"TestA may skip"}},
		"a skipf":       {"skips", habitTest("\tt.Run(\"b\", func(t *testing.T) { t.Skipf(\"x\") })"), []string{"TestA may skip"}},
		"a passed fuzz": {"skips", one("a/a_test.go", "package a_test\n\nfunc FuzzA(f *testing.F) { f.Fuzz(func(t *testing.T, b []byte) { t.Skip() }) }\n"), nil},
		"a mark":        {"marks", one("a/a.go", "package a\n\n// "+marks[0]+": more\n"), []string{marks[0]}},
		"no mark":       {"marks", one("a/a.go", "package a\n\n// Everything is done.\nconst s = \""+marks[0]+"\"\n"), nil},
		"an inner test": {"external tests", one("a/a_test.go", "package a\n"), []string{"package a, want a_test"}},
		"a door":        {"external tests", one("a/export_test.go", "package a\n"), nil},
	}
}
