package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Mistake is one thing that is wrong with a configuration.
type Mistake struct {
	File string
	Line int    // 0 when it stands nowhere in the file
	Path string // key path, such as gateway.retry.budget
	Text string
}

// String renders a mistake as file:line: path: text.
func (m Mistake) String() string {
	var b strings.Builder
	if m.File != "" {
		b.WriteString(m.File + ":")
	}
	if m.Line > 0 {
		fmt.Fprintf(&b, "%d:", m.Line)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if m.Path != "" {
		b.WriteString(m.Path + ": ")
	}
	b.WriteString(m.Text)
	return b.String()
}

// Mistakes is every mistake of a configuration, in the order of the file.
type Mistakes []Mistake

// Error lists all of them, a line each.
func (m Mistakes) Error() string {
	lines := make([]string, len(m))
	for i, one := range m {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// document is a configuration file as a tree that knows lines and origins.
type document struct {
	file string
	root *yaml.Node        // the top-level mapping; nil for an empty file
	env  map[string]string // key path -> the environment variable its value came from

	checked map[checked]bool // by strict: what anchors share is looked at once
}

// checked is a mapping that was held against a type.
type checked struct {
	node *yaml.Node
	t    reflect.Type
}

// variable matches ${NAME} and ${NAME:-default} inside a value.
var variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\}`)

// parse reads a file's bytes. Environment variables in values are put in after
// the YAML is read, so that their text can never change its structure.
func parse(file string, data []byte) (*document, Mistakes) {
	d := &document{file: file, env: make(map[string]string), checked: make(map[checked]bool)}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return d, nil
		}
		return nil, Mistakes{d.syntax(err)}
	}
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, Mistakes{{File: file, Line: more.Line, Text: "one document is expected, found another"}}
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		if root.Tag == "!!null" {
			return d, nil
		}
		return nil, Mistakes{{File: file, Line: root.Line, Text: "the file must be a mapping of sections"}}
	}
	if n := loop(root, make(map[*yaml.Node]bool)); n != nil {
		return nil, Mistakes{{File: file, Line: n.Line, Text: fmt.Sprintf("the anchor %q contains itself", n.Value)}}
	}
	d.root = root
	var mistakes Mistakes
	d.expand(root, "", &mistakes)
	return d, mistakes
}

// loop returns an alias below n that stands inside what it stands for, or nil.
// open has the nodes on the way to n as true, and those that are done as false.
func loop(n *yaml.Node, open map[*yaml.Node]bool) *yaml.Node {
	open[n] = true
	for _, c := range append(n.Content[:len(n.Content):len(n.Content)], n.Alias) {
		if c == nil {
			continue
		}
		inside, seen := open[c]
		if inside {
			return n
		}
		if !seen {
			if found := loop(c, open); found != nil {
				return found
			}
		}
	}
	open[n] = false
	return nil
}

// yamlLine finds the line number in an error of the YAML package.
var yamlLine = regexp.MustCompile(`line (\d+): `)

// syntax words an error of the YAML package.
func (d *document) syntax(err error) Mistake {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if m := yamlLine.FindStringSubmatchIndex(text); m != nil {
		line, _ = strconv.Atoi(text[m[2]:m[3]]) // digits, by the expression
		text = text[:m[0]] + text[m[1]:]
	}
	return Mistake{File: d.file, Line: line, Text: strings.TrimSpace(text)}
}

// expand puts environment variables into scalar values.
func (d *document) expand(n *yaml.Node, path string, mistakes *Mistakes) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			d.expand(n.Content[i+1], join(path, n.Content[i].Value), mistakes)
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			d.expand(c, fmt.Sprintf("%s[%d]", path, i), mistakes)
		}
	case yaml.ScalarNode:
		if !strings.Contains(n.Value, "${") {
			return
		}
		n.Value = variable.ReplaceAllStringFunc(n.Value, func(ref string) string {
			m := variable.FindStringSubmatch(ref)
			v, ok := os.LookupEnv(m[1])
			if !ok && m[2] == "" {
				*mistakes = append(*mistakes, Mistake{d.file, n.Line, path, fmt.Sprintf("environment variable %s is not set; write ${%s:-default} to allow that", m[1], m[1])})
			}
			if !ok {
				v = m[3]
			}
			d.env[path] = m[1]
			return v
		})
		if n.Style == 0 {
			n.Tag = "" // a plain value may have become a number
		}
	}
}

// join appends a key to a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// strict reports every key that the type does not know, at its line, with the
// keys that it does know.
func (d *document) strict(n *yaml.Node, t reflect.Type, path string, mistakes *Mistakes) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if seen := (checked{n, t}); n.Kind == yaml.MappingNode && d.checked[seen] {
		return
	} else if n.Kind == yaml.MappingNode {
		d.checked[seen] = true
	}
	switch {
	case n.Kind == yaml.ScalarNode && reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()):
		d.text(n, t, path, mistakes)
	case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for i, c := range n.Content {
			d.strict(c, t.Elem(), fmt.Sprintf("%s[%d]", path, i), mistakes)
		}
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Map:
		for i := 0; i+1 < len(n.Content); i += 2 {
			d.strict(n.Content[i+1], t.Elem(), join(path, n.Content[i].Value), mistakes)
		}
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		fields := fieldsOf(t)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if key.Tag == mergeTag {
				for _, from := range merged(n.Content[i+1]) {
					d.strict(from, t, path, mistakes)
				}
				continue
			}
			f, ok := fields[key.Value]
			if !ok {
				*mistakes = append(*mistakes, Mistake{d.file, key.Line, join(path, key.Value), unknownKey(key.Value, fields)})
				continue
			}
			d.strict(n.Content[i+1], f, join(path, key.Value), mistakes)
		}
	}
}

// mergeTag marks the key << of a mapping.
const mergeTag = "!!merge"

// merged returns the mappings that the value of << brings in.
func merged(n *yaml.Node) []*yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.SequenceNode {
		return n.Content
	}
	return []*yaml.Node{n}
}

// unknownKey words an unknown key.
func unknownKey(key string, fields map[string]reflect.Type) string {
	known := make([]string, 0, len(fields))
	for k := range fields {
		known = append(known, k)
	}
	slices.Sort(known)
	return fmt.Sprintf("unknown key %q; known are %s", key, strings.Join(known, ", "))
}

// fieldsOf maps the YAML keys of a struct to their types, inlined structs
// included.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := make(map[string]reflect.Type)
	for f := range t.Fields() {
		if !f.IsExported() {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case strings.Contains(options, "inline"):
			for k, v := range fieldsOf(f.Type) {
				fields[k] = v
			}
		case name == "-":
		case name == "":
			fields[strings.ToLower(f.Name)] = f.Type
		default:
			fields[name] = f.Type
		}
	}
	return fields
}

// text checks a value that has a reader of its own, such as a size or a rate, here
// where its line is known: the YAML package gives up on the whole document when such
// a reader complains.
func (d *document) text(n *yaml.Node, t reflect.Type, path string, mistakes *Mistakes) {
	const null = "!!null"
	if n.ShortTag() == null {
		return
	}
	if err := reflect.New(t).Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
		*mistakes = append(*mistakes, Mistake{d.file, n.Line, path, err.Error()})
		n.Tag, n.Value = null, "null"
	}
}

// decode fills v, which holds the defaults, and reports unknown keys and values
// that cannot be read. whole says that everything else was read.
func (d *document) decode(v any) (mistakes Mistakes, whole bool) {
	if d.root == nil {
		return nil, true
	}
	d.strict(d.root, reflect.TypeOf(v).Elem(), "", &mistakes)
	err := d.root.Decode(v)
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		for _, text := range te.Errors {
			mistakes = append(mistakes, d.syntax(errors.New(text)))
		}
	} else if err != nil {
		mistakes = append(mistakes, d.syntax(err))
	}
	return mistakes, err == nil
}

// at finds the node of a key path, or the deepest one that exists on the way.
func (d *document) at(path string) (n *yaml.Node, exact bool) {
	n = d.root
	if n == nil {
		return nil, false
	}
	for path != "" {
		next, rest := step(n, path)
		if next == nil {
			return n, false
		}
		n, path = next, rest
	}
	return n, true
}

// step goes one key or index down from n and returns what is left of the path.
// A key may have dots and brackets of its own, as the names of models do, so the
// longest that exists is taken.
func step(n *yaml.Node, path string) (next *yaml.Node, rest string) {
	for end := len(path); end > 0; end = strings.LastIndexAny(path[:end], ".[") {
		if next = child(n, path[:end]); next != nil {
			return next, strings.TrimPrefix(path[end:], ".")
		}
	}
	return nil, path
}

// child finds a member of a mapping, its merged ones included, or an element of
// a sequence.
func child(n *yaml.Node, part string) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch n.Kind {
	case yaml.SequenceNode:
		i, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(part, "["), "]"))
		if err != nil || part[0] != '[' || i < 0 || i >= len(n.Content) {
			return nil
		}
		return n.Content[i]
	case yaml.MappingNode:
		return member(n, part, make(map[*yaml.Node]bool))
	}
	return nil
}

// member finds a member of a mapping; what the mapping has itself comes before
// what is merged into it. seen has the mappings that do not have it.
func member(n *yaml.Node, key string, seen map[*yaml.Node]bool) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode || seen[n] {
		return nil
	}
	seen[n] = true
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key && n.Content[i].Tag != mergeTag {
			return n.Content[i+1]
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Tag != mergeTag {
			continue
		}
		for _, from := range merged(n.Content[i+1]) {
			if found := member(from, key, seen); found != nil {
				return found
			}
		}
	}
	return nil
}

// mistake places a complaint whose text begins with a key path below prefix.
func (d *document) mistake(prefix string, err error) Mistake {
	m := Mistake{File: d.file, Path: prefix, Text: err.Error()}
	if path, text, ok := strings.Cut(err.Error(), ": "); ok && keyPath.MatchString(path) {
		m.Path, m.Text = join(prefix, path), text
	}
	if n, _ := d.at(m.Path); n != nil && n != d.root {
		m.Line = n.Line
	}
	return m
}

// keyPath matches what a Validate puts before its first colon.
var keyPath = regexp.MustCompile(`^[a-z0-9_]+(\[\d+\])?(\.[A-Za-z0-9_/:@+-]+(\[\d+\])?)*$`)

// split takes a joined error apart.
func split(err error) []error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, e := range many.Unwrap() {
			all = append(all, split(e)...)
		}
		return all
	}
	return []error{err}
}
