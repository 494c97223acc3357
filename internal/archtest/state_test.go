package archtest_test

import (
	"go/ast"
	"go/token"
	"go/types"
	"path"
	"strings"
)

// checkInit finds init functions: what they do happens in an order that nobody
// wrote down.
func checkInit(t *tree) (found []finding) {
	t.each(isCode, func(_ *folder, s *source) {
		functions(s, func(f *ast.FuncDecl) {
			if f.Name.Name == "init" && f.Recv == nil {
				found = append(found, t.at(f.Pos(), "no init functions: call it from where it is needed"))
			}
		})
	})
	return found
}

// makers are the calls whose result may be a package variable: sentinels, and
// values that would be constants if the language had them.
var makers = map[string]bool{
	"errors.New": true, "fmt.Errorf": true, "inference.Errorf": true,
	"regexp.MustCompile": true, "time.Unix": true, "time.Date": true,
	"netip.MustParsePrefix": true, "netip.MustParseAddr": true, "strings.NewReplacer": true,
}

// checkVariables finds package variables that hold state: they are not of an
// allowed kind, or something assigns to them.
func checkVariables(t *tree) (found []finding) {
	for _, f := range t.folders {
		if testOnly(f.path) {
			continue
		}
		for _, s := range f.code() {
			for _, d := range s.ast.Decls {
				if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR {
					found = append(found, t.kinds(g)...)
				}
			}
		}
		found = append(found, t.assignments(f)...)
	}
	return found
}

// kinds finds variables of a declaration that are not constants in spirit.
func (t *tree) kinds(g *ast.GenDecl) (found []finding) {
	for _, spec := range g.Specs {
		v := spec.(*ast.ValueSpec)
		for i, name := range v.Names {
			switch {
			case name.Name == "_":
			case len(v.Values) == 0 && embedded(g):
			case i < len(v.Values) && constant(v.Values[i]):
			default:
				found = append(found, t.at(name.Pos(), "package variable %s is neither a sentinel nor a constant in spirit", name.Name))
			}
		}
	}
	return found
}

// embedded says whether a declaration is filled by go:embed.
func embedded(g *ast.GenDecl) bool {
	if g.Doc == nil {
		return false
	}
	for _, c := range g.Doc.List {
		if strings.HasPrefix(c.Text, "//go:embed ") {
			return true
		}
	}
	return false
}

// constant says whether an initial value may stand in a package variable: a
// composite (of maps, slices, arrays, structs, a sync.Pool), a conversion, the
// result of one of the makers, or of a function literal called in place.
func constant(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.CompositeLit:
		kind := selector(e.Type)
		return !strings.HasPrefix(kind, "atomic.") && (!strings.HasPrefix(kind, "sync.") || kind == "sync.Pool")
	case *ast.CallExpr:
		switch fun := e.Fun.(type) {
		case *ast.FuncLit, *ast.ArrayType:
			return true
		case *ast.SelectorExpr:
			return makers[selector(fun)]
		}
	}
	return false
}

// assignments finds writes to the package variables of a folder.
func (t *tree) assignments(f *folder) (found []finding) {
	files := f.code()
	asts := make([]*ast.File, len(files))
	for i, s := range files {
		asts[i] = s.ast
	}
	info := &types.Info{Uses: make(map[*ast.Ident]types.Object)}
	conf := types.Config{Importer: hollow{}, Error: func(error) {}} // only names of this package are resolved
	pkg, _ := conf.Check(f.path, t.fset, asts, info)
	judge := func(e ast.Expr) {
		id := rootOf(e)
		if id == nil {
			return
		}
		if v, ok := info.Uses[id].(*types.Var); ok && pkg != nil && v.Parent() == pkg.Scope() {
			found = append(found, t.at(e.Pos(), "package variable %s is changed", id.Name))
		}
	}
	for _, file := range asts {
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, e := range n.Lhs {
					judge(e)
				}
			case *ast.IncDecStmt:
				judge(n.X)
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					judge(n.X)
				}
			case *ast.CallExpr:
				if fun, ok := n.Fun.(*ast.Ident); ok && (fun.Name == "delete" || fun.Name == "clear" || fun.Name == "copy") && len(n.Args) > 0 {
					judge(n.Args[0])
				}
			}
			return true
		})
	}
	return found
}

// rootOf is the variable at the beginning of x, x.f, x[i], *x and (x).
func rootOf(e ast.Expr) *ast.Ident {
	for {
		switch v := e.(type) {
		case *ast.Ident:
			return v
		case *ast.SelectorExpr:
			e = v.X
		case *ast.IndexExpr:
			e = v.X
		case *ast.StarExpr:
			e = v.X
		case *ast.ParenExpr:
			e = v.X
		default:
			return nil
		}
	}
}

// hollow imports every package without its contents.
type hollow struct{}

// Import implements types.Importer.
func (hollow) Import(p string) (*types.Package, error) {
	pkg := types.NewPackage(p, path.Base(p))
	pkg.MarkComplete()
	return pkg, nil
}
