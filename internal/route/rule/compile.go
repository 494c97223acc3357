package rule

import (
	"errors"
	"fmt"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/parser"
)

// Bounds of one expression.
const (
	maxSource = 4 << 10  // bytes
	maxNodes  = 300      // of its tree
	maxMemory = 64 << 10 // elements that it may make while it runs, as the library counts
)

// builtins are the functions that expressions may call: none of them repeats or
// loops.
var builtins = []string{"len", "lower", "upper", "trim", "int", "float", "string", "abs", "min", "max", "hasPrefix", "hasSuffix", "indexOf"}

// always is the form of expressions that are always true.
const always = "true"

// compile compiles an expression; nil is one that is always true. form is the same for
// expressions that differ in spelling alone, as plain has it.
func compile(source string) (c *Condition, form string, err error) {
	if strings.TrimSpace(source) == "" {
		return nil, always, nil
	}
	if len(source) > maxSource {
		return nil, "", fmt.Errorf("longer than %d bytes", maxSource)
	}
	options := []expr.Option{expr.Env(&Request{}), expr.AsBool(), expr.MaxNodes(maxNodes), expr.DisableAllBuiltins()}
	for _, name := range builtins {
		options = append(options, expr.EnableBuiltin(name))
	}
	program, err := expr.Compile(source, options...)
	if err != nil {
		return nil, "", worded(err)
	}
	tree, err := parser.Parse(source)
	if err != nil {
		return nil, "", worded(err)
	}
	ast.Walk(&tree.Node, plain{})
	v := &visitor{}
	ast.Walk(&tree.Node, v)
	if v.err != nil {
		return nil, "", v.err
	}
	switch truthOf(tree.Node) {
	case never:
		return nil, "", errors.New("is never true")
	case surely:
		return nil, always, nil
	}
	return &Condition{source: source, program: program, needs: v.needs}, tree.Node.String(), nil
}

// String is the expression as it was written.
func (c *Condition) String() string { return c.source }

// worded is the library's error in one line, with the names that exist where one does
// not.
func worded(err error) error {
	text, _, _ := strings.Cut(err.Error(), "\n")
	if strings.HasPrefix(text, "unknown name") || strings.Contains(text, "has no field") {
		text += "; known are " + strings.Join(Fields(), ", ")
	}
	return errors.New(text)
}

// visitor looks for what an expression needs and what it must not have.
type visitor struct {
	needs needs
	err   error
}

// Visit implements ast.Visitor.
func (v *visitor) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.IdentifierNode:
		if n.Value == "$env" { // behind it nobody sees what is needed
			v.fail(errors.New("$env is not known: write the name alone"))
		}
		v.needs |= costly[n.Value]
	case *ast.BinaryNode:
		switch n.Operator {
		case "..":
			v.fail(errors.New("ranges are not allowed"))
		case "matches":
			if _, ok := n.Right.(*ast.StringNode); !ok { // a client's would be compiled for each request
				v.fail(errors.New("the pattern of matches must be a text"))
			}
		}
		v.fail(misspelt(n))
	case *ast.CallNode:
		v.fail(hostless(n))
	case *ast.NilNode:
		v.fail(errors.New(`nothing is nil: what is not known is "" or 0`))
	case *ast.PredicateNode, *ast.PointerNode:
		v.fail(errors.New("loops are not allowed"))
	case *ast.VariableDeclaratorNode: // a few that double one another take any memory and time
		v.fail(errors.New("let is not allowed: write the value where it is wanted"))
	case *ast.SequenceNode:
		v.fail(errors.New("a second expression after ; is not allowed: combine them with and"))
	}
}

// fail keeps the first error.
func (v *visitor) fail(err error) {
	if v.err == nil {
		v.err = err
	}
}
