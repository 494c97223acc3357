package wire

import (
	"github.com/spillway/spillway/internal/inference"
)

// readPrompt notes where the prompt stands, how many messages it has, and how
// much of it is images.
func (s *scanner) readPrompt() error {
	kind := s.d.next()
	if s.prompt == "messages" && kind != '[' && kind != 0 {
		return invalid("messages", "'messages' must be an array")
	}
	if kind != '[' {
		v, err := s.d.ReadValue()
		if err != nil {
			return err
		}
		if kind == '"' {
			s.f.Messages = 1
		} else {
			s.rebuild = false
		}
		s.f.PromptAt = s.spanOf(v)
		s.f.PromptBytes += int64(len(v))
		return nil
	}
	start, images, err := s.readParts(0)
	s.f.PromptAt = inference.Span{Start: start, End: int(s.d.InputOffset())}
	s.f.PromptBytes += int64(s.f.PromptAt.Len() - images)
	return err
}

// partDepth is how deep images are looked for: messages, their parts, what is in
// a part that is a tool's result.
const partDepth = 3

// readParts reads an array of messages, or of parts of one, and returns where it
// begins and how many of its bytes are images.
func (s *scanner) readParts(depth int) (start, images int, err error) {
	if _, err := s.d.ReadToken(); err != nil {
		return 0, 0, err
	}
	start = int(s.d.InputOffset()) - 1
	for {
		n, k := 0, s.d.next()
		switch {
		case k == ']':
			_, err = s.d.ReadToken()
			return start, images, err
		case k == '{' && depth < partDepth:
			n, err = s.readPart(depth)
		case k == '{' || k == '[':
			_, err = s.d.ReadValue()
		default:
			_, err = s.d.ReadToken()
		}
		if err != nil {
			return start, images, err
		}
		images += n
		if depth == 0 {
			s.f.Messages++
			s.rebuild = s.rebuild && (k == '{' || s.prompt == "prompt" && (s.f.Messages == 1 || k >= '0' && k <= '9'))
		}
	}
}

// readPart reads a message, or a part of one, and returns how many of its bytes
// are images. Names and texts are read as tokens and everything else as values,
// which is what the tokenizer does fastest.
func (s *scanner) readPart(depth int) (images int, err error) {
	d := s.d
	if _, err := d.ReadToken(); err != nil {
		return 0, err
	}
	start, image := int(d.InputOffset())-1, false
	for {
		if _, err := d.ReadToken(); err != nil {
			return 0, err
		}
		end := int(d.InputOffset())
		if d.doc[end-1] == '}' {
			break
		}
		k, at := d.peek()
		if k == '[' || k == '{' {
			n, err := s.readNested(d.doc[start:end], depth)
			if err != nil {
				return 0, err
			}
			images += n
			continue
		}
		if _, err := d.ReadToken(); err != nil {
			return 0, err
		}
		if depth > 0 && hasSuffix(d.doc[start:end], `"type"`) {
			image = image || isImage(d.doc[at:d.InputOffset()])
		}
	}
	if image {
		s.f.Images++
		images = int(d.InputOffset()) - start
	}
	return images, nil
}

// readNested reads a member of a part that is not a text, behind its name. Only
// the content of a message, and what a tool put out, has parts of its own.
func (s *scanner) readNested(name []byte, depth int) (images int, err error) {
	switch {
	case depth+1 >= partDepth || !hasSuffix(name, `"content"`) && !hasSuffix(name, `"output"`):
		_, err = s.d.ReadValue()
	case s.d.next() == '[':
		_, images, err = s.readParts(depth + 1)
	default:
		images, err = s.readPart(depth + 1)
	}
	return images, err
}

// hasSuffix says whether b ends so. For a constant it is one comparison.
func hasSuffix(b []byte, suffix string) bool {
	return len(b) >= len(suffix) && string(b[len(b)-len(suffix):]) == suffix
}

// isImage says whether a part of that type is an image: on the chat, Responses
// and Messages surfaces.
func isImage(v []byte) bool {
	switch string(v) {
	case `"image_url"`, `"input_image"`, `"image"`:
		return true
	}
	return false
}
