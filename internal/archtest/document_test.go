package archtest_test

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"unicode"
)

// checkPackageDocs finds packages whose doc is missing or stands elsewhere than
// in doc.go or a file named after the package or its folder.
func checkPackageDocs(t *tree) (found []finding) {
	for _, f := range t.folders {
		files := f.code()
		if len(files) == 0 {
			continue
		}
		homes := []string{"doc.go", f.name + ".go", path.Base(f.path) + ".go"}
		documented := slices.ContainsFunc(files, func(s *source) bool {
			return s.ast.Doc.Text() != "" && slices.Contains(homes, path.Base(s.path))
		})
		if !documented {
			found = append(found, t.at(files[0].ast.Package, "package %s has no doc in %s", f.name, strings.Join(slices.Compact(homes), " or ")))
		}
	}
	return found
}

// checkExportDocs finds exports without a doc comment. The members of a group
// may share the group's; an interface with one method is its method's doc.
func checkExportDocs(t *tree) (found []finding) {
	t.each(isCode, func(_ *folder, s *source) {
		for _, d := range s.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) && d.Doc.Text() == "" {
					found = append(found, t.at(d.Pos(), "%s is exported and has no doc", d.Name.Name))
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					found = append(found, t.undocumented(d, spec)...)
				}
			}
		}
	})
	return found
}

// exportedReceiver says whether d is a function, or a method of an exported type.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	e := d.Recv.List[0].Type
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	if index, ok := e.(*ast.IndexExpr); ok {
		e = index.X
	}
	id, ok := e.(*ast.Ident)
	return ok && id.IsExported()
}

// undocumented finds the exports of one spec that have no doc.
func (t *tree) undocumented(d *ast.GenDecl, spec ast.Spec) (found []finding) {
	group := d.Doc.Text() != ""
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if !spec.Name.IsExported() {
			return nil
		}
		if spec.Doc.Text() == "" && !group {
			found = append(found, t.at(spec.Pos(), "type %s is exported and has no doc", spec.Name.Name))
		}
		if i, ok := spec.Type.(*ast.InterfaceType); ok && i.Methods.NumFields() > 1 {
			for _, m := range i.Methods.List {
				if len(m.Names) > 0 && m.Names[0].IsExported() && m.Doc.Text() == "" {
					found = append(found, t.at(m.Pos(), "method %s of interface %s has no doc", m.Names[0].Name, spec.Name.Name))
				}
			}
		}
	case *ast.ValueSpec:
		for _, name := range spec.Names {
			if name.IsExported() && !group && spec.Doc.Text() == "" && spec.Comment.Text() == "" {
				found = append(found, t.at(name.Pos(), "%s is exported and has no doc", name.Name))
			}
		}
	}
	return found
}

// vague are names of packages that say nothing about what is in them.
var vague = []string{"util", "utils", "common", "helpers", "helper", "types", "manager", "misc", "base", "shared"}

// checkNames finds vague packages, Get prefixes and exports that repeat their
// package's name.
func checkNames(t *tree) (found []finding) {
	t.each(isCode, func(f *folder, s *source) {
		if s == f.code()[0] && slices.Contains(vague, f.name) {
			found = append(found, t.at(s.ast.Name.Pos(), "package %s: name it after what it holds", f.name))
		}
		judge := func(id *ast.Ident, free bool) {
			if rest, ok := strings.CutPrefix(id.Name, "Get"); ok && beginsWord(rest) {
				found = append(found, t.at(id.Pos(), "%s: no Get prefix", id.Name))
			}
			if free && len(id.Name) > len(f.name) && strings.EqualFold(id.Name[:len(f.name)], f.name) && id.IsExported() && beginsWord(id.Name[len(f.name):]) {
				found = append(found, t.at(id.Pos(), "%s.%s stutters", f.name, id.Name))
			}
		}
		for _, d := range s.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				judge(d.Name, d.Recv == nil)
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok {
						judge(ts.Name, true)
					}
				}
			}
		}
	})
	return found
}

// beginsWord says whether s begins with a new word of a camel-case name.
func beginsWord(s string) bool { return s != "" && unicode.IsUpper([]rune(s)[0]) }
