package config

import (
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"
)

// Explain writes every value in force with where it comes from: a line of the
// file, an environment variable, or the default. Passwords in addresses are hidden,
// and so is what may hold a secret as a whole (the tag `secret`); otherwise a
// configuration has the names and files of secrets alone.
func (f *File) Explain(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	f.explain(tw, reflect.ValueOf(f).Elem(), "")
	return tw.Flush()
}

// hidden stands for what is not shown.
const hidden = "(hidden)"

// explain writes the values below path.
func (f *File) explain(w io.Writer, v reflect.Value, path string) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			fmt.Fprintf(w, "%s\t-\t%s\n", path, f.origin(path))
			return
		}
		v = v.Elem()
	}
	switch {
	case v.Kind() == reflect.Struct:
		t := v.Type()
		for i := range t.NumField() {
			field := t.Field(i)
			name, options, _ := strings.Cut(field.Tag.Get("yaml"), ",")
			switch {
			case !field.IsExported() || name == "-":
			case field.Anonymous || strings.Contains(options, "inline"):
				f.explain(w, v.Field(i), path)
			case field.Tag.Get("secret") != "" && !v.Field(i).IsZero():
				f.explainNames(w, v.Field(i), join(path, name))
			default:
				f.explain(w, v.Field(i), join(path, name))
			}
		}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct && v.Len() > 0:
		for i := range v.Len() {
			f.explain(w, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	case v.Kind() == reflect.Map && v.Len() > 0:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			f.explain(w, v.MapIndex(k), join(path, k.String()))
		}
	default:
		fmt.Fprintf(w, "%s\t%s\t%s\n", path, show(v), f.origin(path))
	}
}

// explainNames writes that there are values at path, and not which.
func (f *File) explainNames(w io.Writer, v reflect.Value, path string) {
	if v.Kind() != reflect.Map {
		fmt.Fprintf(w, "%s\t%s\t%s\n", path, hidden, f.origin(path))
		return
	}
	names := v.MapKeys()
	slices.SortFunc(names, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	for _, name := range names {
		f.explainNames(w, v.MapIndex(name), join(path, name.String()))
	}
}

// show renders one value as it would be written in the file.
func show(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return x.String()
	case string:
		return strconv.Quote(withoutPassword(x))
	case []string:
		list := make([]string, len(x))
		for i := range x {
			list[i] = withoutPassword(x[i])
		}
		return "[" + strings.Join(list, ", ") + "]"
	default:
		return fmt.Sprint(x)
	}
}

// passwords finds what stands behind the user in an address, up to the last @ of it,
// because some forms take passwords as they are; and those among its parameters.
var passwords = []*regexp.Regexp{
	regexp.MustCompile(`^([a-zA-Z][a-zA-Z0-9+.-]*://[^:@/?#]*:)(.*)(@)`),
	regexp.MustCompile(`(?i)([?&][a-z_]*(?:password|passwd|secret|token)=)([^&]*)()`),
}

// withoutPassword is an address that may be shown. What is none stays as it is.
func withoutPassword(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	for _, p := range passwords {
		text = p.ReplaceAllString(text, "${1}"+hidden+"${3}")
	}
	return text
}

// From notes that the values at and below path come from elsewhere than the file,
// such as a flag.
func (f *File) From(path, origin string) {
	if f.origins == nil {
		f.origins = make(map[string]string)
	}
	f.origins[path] = origin
}

// origin tells where the value at path comes from.
func (f *File) origin(path string) string {
	for p, o := range f.origins {
		if rest, ok := strings.CutPrefix(path, p); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return o
		}
	}
	if name, ok := f.doc.env[path]; ok {
		n, _ := f.doc.at(path)
		return fmt.Sprintf("environment %s (%s:%d)", name, f.doc.file, n.Line)
	}
	n, exact := f.doc.at(path)
	if !exact && (n == nil || n.Kind == yaml.MappingNode || n == f.doc.root) {
		return "default"
	}
	return fmt.Sprintf("%s:%d", f.doc.file, n.Line)
}
