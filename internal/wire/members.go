package wire

import (
	"bytes"
)

// null is the value of what is not there.
var null = []byte("null")

// memberCost is about what a member takes in memory beside its name and value, in
// bytes. It keeps an answer of many small parts within the bound of its size.
const memberCost = 64

// maxMembers bounds the members of one object, which are found one by one.
const maxMembers = 128

// member is a member of an object that is being put together.
type member struct {
	name  []byte // in quotes
	value []byte // JSON; of a text or list that is being joined, what is between its ends
	ends  string // `""` or `[]` for those, else ""
}

// members are an object's members in the order in which they came first.
type members []member

// find returns the member of that quoted name, or nil.
func (m members) find(name []byte) *member {
	for i := range m {
		if bytes.Equal(m[i].name, name) {
			return &m[i]
		}
	}
	return nil
}

// at finds or adds a member; size grows with what it takes.
func (m *members) at(name []byte, size *int) (*member, error) {
	if p := m.find(name); p != nil {
		return p, nil
	}
	if len(*m) == maxMembers || bytes.IndexByte(name, '\\') >= 0 { // escaped, it could be another one's
		return nil, ErrChunk
	}
	*size += len(name) + memberCost
	*m = append(*m, member{name: bytes.Clone(name), value: bytes.Clone(null)})
	return &(*m)[len(*m)-1], nil
}

// set replaces a member's value. null replaces nothing.
func (m *members) set(name, v []byte, size *int) error {
	p, err := m.at(name, size)
	if err != nil || v[0] == 'n' || bytes.Equal(p.value, v) && p.ends == "" {
		return err
	}
	*size += len(v) - len(p.value)
	p.value, p.ends = append(p.value[:0], v...), ""
	return nil
}

// join adds a piece of a text or of a list to a member; any other value replaces
// it, as does a value of another kind.
func (m *members) join(name, v []byte, size *int) error {
	ends := ""
	switch v[0] {
	case '"':
		ends = `""`
	case '[':
		ends = `[]`
	default:
		return m.set(name, v, size)
	}
	p, err := m.at(name, size)
	if err != nil {
		return err
	}
	if p.ends != ends {
		p.value, p.ends = p.value[:0], ends
	}
	piece := v[1 : len(v)-1]
	if ends == `[]` && len(p.value) > 0 && len(bytes.TrimSpace(piece)) > 0 {
		p.value = append(p.value, ',')
	}
	p.value = append(p.value, piece...)
	*size += len(piece) + 1
	return nil
}

// isNull says whether nothing but null came.
func (p *member) isNull() bool { return p.ends == "" && string(p.value) == "null" }

// isEmpty says whether there is no member, or nothing in it.
func (p *member) isEmpty() bool { return p == nil || p.isNull() || p.ends != "" && len(p.value) == 0 }

// appendValue adds the value as JSON.
func (p *member) appendValue(b []byte) []byte {
	if p.ends == "" {
		return append(b, p.value...)
	}
	return append(append(append(b, p.ends[0]), p.value...), p.ends[1])
}

// appendName begins a member: a comma unless it is the first one, and the name.
func appendName(b, name []byte) []byte {
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	return append(append(b, name...), ':')
}
