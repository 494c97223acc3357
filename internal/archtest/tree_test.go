package archtest_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// module is the path of this module.
const module = "github.com/spillway/spillway"

// source is one Go file.
type source struct {
	path  string // from the repository's root, with slashes
	text  string
	ast   *ast.File
	lines int
}

// test says whether the file is compiled for tests only.
func (s *source) test() bool { return strings.HasSuffix(s.path, "_test.go") }

// folder is one package with the tests beside it.
type folder struct {
	path  string
	name  string
	files []*source
}

// code returns the files that are not tests.
func (f *folder) code() []*source {
	return slices.DeleteFunc(slices.Clone(f.files), (*source).test)
}

// tree is all Go code of a repository.
type tree struct {
	fset    *token.FileSet
	folders []*folder
}

// finding is one breach of a rule.
type finding struct {
	path string
	line int
	in   string // the function, where a rule allows exceptions by function
	text string
}

// String is the finding as editors read it.
func (f finding) String() string { return fmt.Sprintf("%s:%d: %s", f.path, f.line, f.text) }

// at makes a finding.
func (t *tree) at(pos token.Pos, format string, args ...any) finding {
	p := t.fset.Position(pos)
	return finding{path: p.Filename, line: p.Line, text: fmt.Sprintf(format, args...)}
}

// find returns the folder of a path, or nil.
func (t *tree) find(dir string) *folder {
	for _, f := range t.folders {
		if f.path == dir {
			return f
		}
	}
	return nil
}

// each calls do for every file that want takes.
func (t *tree) each(want func(*source) bool, do func(*folder, *source)) {
	for _, f := range t.folders {
		for _, s := range f.files {
			if want(s) {
				do(f, s)
			}
		}
	}
}

// isTest and isCode choose files.
func isTest(s *source) bool { return s.test() }
func isCode(s *source) bool { return !s.test() }

// parseTree reads all Go code below a root. Folders that the go tool leaves out
// are left out too, and modules of their own.
func parseTree(root fs.FS) (*tree, error) {
	t := &tree{fset: token.NewFileSet()}
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != "." && (strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") || d.Name() == "testdata" || d.Name() == "node_modules") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(root, path.Join(p, "go.mod")); p != "." && err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		return t.add(root, p)
	})
	return t, err
}

// add parses one file.
func (t *tree) add(root fs.FS, p string) error {
	text, err := fs.ReadFile(root, p)
	if err != nil {
		return err
	}
	file, err := parser.ParseFile(t.fset, p, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	f := t.find(path.Dir(p))
	if f == nil {
		f = &folder{path: path.Dir(p)}
		t.folders = append(t.folders, f)
	}
	s := &source{path: p, text: string(text), ast: file, lines: strings.Count(string(text), "\n")}
	if !s.test() {
		f.name = file.Name.Name
	}
	f.files = append(f.files, s)
	return nil
}

// root is the repository's root.
func root(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// functions calls do for every function and method with a body.
func functions(s *source, do func(*ast.FuncDecl)) {
	for _, d := range s.ast.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
			do(f)
		}
	}
}

// called names the function of a call written as pkg.Name; "" is any other.
func called(n ast.Node) string {
	c, ok := n.(*ast.CallExpr)
	if !ok {
		return ""
	}
	return selector(c.Fun)
}

// selector is an expression written as x.Name; "" is any other.
func selector(e ast.Expr) string {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := sel.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return x.Name + "." + sel.Sel.Name
}
