package wire_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spillway/spillway/internal/inference"
	"github.com/spillway/spillway/internal/wire"
)

func TestImagesAreCounted(t *testing.T) {
	base64 := strings.Repeat("iVBORw0KGgo", 1000)
	picture := `{"type":"image_url","image_url":{"url":"data:image/png;base64,` + base64 + `"}}`
	source := `{"source":{"type":"base64","media_type":"image/png","data":"` + base64 + `"},"type":"image"}`
	link := `{"type":"image_url","image_url":{"url":"http://x/y"}}`
	input := `{"type":"input_image","image_url":"data:image/png;base64,` + base64 + `"}`
	for name, c := range map[string]struct {
		surface inference.Surface
		prompt  string
		images  int
		size    int // of the images in bytes
	}{
		"text":             {prompt: `[{"role":"user","content":"an image_url and \"image\""}]`},
		"text parts":       {prompt: `[{"role":"user","content":[{"type":"text","text":"image"},{"type":"text","text":"image_url"}]}]`},
		"one":              {prompt: `[{"role":"user","content":[{"type":"text","text":"x"},` + picture + `]}]`, images: 1, size: len(picture)},
		"two messages":     {prompt: `[{"role":"user","content":[` + picture + `]}, {"content": [ ` + picture + ` , ` + picture + ` ]}]`, images: 3, size: 3 * len(picture)},
		"link":             {prompt: `[{"content":[` + link + `]}]`, images: 1, size: len(link)},
		"messages":         {surface: inference.Messages, prompt: `[{"role":"user","content":[` + source + `]}]`, images: 1, size: len(source)},
		"tool result":      {surface: inference.Messages, prompt: `[{"content":[{"type":"tool_result","content":[{"type":"text","text":"x"},` + source + `]}]}]`, images: 1, size: len(source)},
		"responses":        {surface: inference.Responses, prompt: `[{"role":"user","content":[` + input + `]},{"type":"function_call_output","output":[` + input + `]}]`, images: 2, size: 2 * len(input)},
		"responses text":   {surface: inference.Responses, prompt: `"image_url"`},
		"arguments":        {prompt: `[{"role":"assistant","content":null,"tool_calls":[{"type":"image","content":[{"type":"image"}]}]}]`},
		"too deep":         {prompt: `[{"content":[{"content":[{"content":[{"type":"image"}]}]}]}]`},
		"an object":        {prompt: `[{"content":{"type":"image"}}]`, images: 1, size: 16},
		"not an object":    {prompt: `[1,null,"x",[{"type":"image"}],true,{"content":[1,"x",[{"type":"image"}]]}]`},
		"completions":      {surface: inference.Completions, prompt: `[1,2,3]`},
		"completions text": {surface: inference.Completions, prompt: `"image"`},
	} {
		t.Run(name, func(t *testing.T) {
			member := map[inference.Surface]string{inference.Completions: "prompt", inference.Responses: "input"}[c.surface]
			if member == "" {
				member = "messages"
			}
			f, err := wire.ScanRequest(c.surface, []byte(`{"model":"m","`+member+`": `+c.prompt+` }`))
			if err != nil {
				t.Fatal(err)
			}
			if want := int64(len(c.prompt) - c.size); f.Images != c.images || f.PromptBytes != want {
				t.Errorf("got %d images and %d bytes of text, want %d and %d", f.Images, f.PromptBytes, c.images, want)
			}
		})
	}
}

// TestThePromptIsAllThatTheModelReads, wherever a surface has it.
func TestThePromptIsAllThatTheModelReads(t *testing.T) {
	const more = `["0123456789"]`
	for _, c := range []struct {
		surface      inference.Surface
		prompt, name string
	}{
		{inference.Messages, "messages", "system"},
		{inference.Messages, "messages", "tools"},
		{inference.Chat, "messages", "tools"},
		{inference.Chat, "messages", "functions"},
		{inference.Responses, "input", "instructions"},
		{inference.Responses, "input", "tools"},
	} {
		for _, body := range []string{
			`{"model":"m","` + c.name + `":` + more + `,"` + c.prompt + `":["hello"]}`,
			`{"model":"m","` + c.prompt + `":["hello"],"` + c.name + `":` + more + `}`,
		} {
			f, err := wire.ScanRequest(c.surface, []byte(body))
			if want := int64(len(`["hello"]` + more)); err != nil || f.PromptBytes != want {
				t.Errorf("%s: %d bytes, %v; want %d", body, f.PromptBytes, err, want)
			}
		}
	}
}

func TestImagesDoNotCountAsText(t *testing.T) {
	body := []byte(`{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"` + strings.Repeat("x", 1<<20) + `"}}]}]}`)
	req := &inference.Request{Body: body}
	var err error
	if req.Fields, err = wire.ScanRequest(inference.Chat, body); err != nil {
		t.Fatal(err)
	}
	if n := req.PromptTokens(); n < inference.ImageTokens || n > inference.ImageTokens+20 {
		t.Errorf("got %d tokens for an image of 1 MiB", n)
	}
}

func TestRebuild(t *testing.T) {
	for name, c := range map[string]struct {
		surface inference.Surface
		members string
		no      bool
	}{
		"plain":                 {},
		"no stream":             {members: `"stream":false`},
		"stream null":           {members: `"stream":null,"stream_options":null`},
		"stream":                {members: `"stream":true`, no: true},
		"stream options":        {members: `"stream_options":{}`, no: true},
		"official":              {members: `"temperature":1,"tools":[{"a":1}],"tool_choice":"auto","response_format":{"type":"json_object"},"stop":["x"],"max_tokens":5,"seed":1,"user":"u","metadata":{"a":"b"}`},
		"vllm":                  {members: `"top_k":5,"min_p":0.1,"repetition_penalty":1,"chat_template_kwargs":{"enable_thinking":false}`},
		"one choice":            {members: `"n":1,"logprobs":false,"top_logprobs":null`},
		"null choices":          {members: `"n":null`},
		"two choices":           {members: `"n":2`, no: true},
		"odd one":               {members: `"n":1.0`, no: true},
		"logprobs":              {members: `"logprobs":true`, no: true},
		"audio":                 {members: `"modalities":["text","audio"],"audio":{"voice":"x"}`, no: true},
		"unknown":               {members: `"vendor_field":1`, no: true},
		"escaped":               {members: `"str\u0065am":true`, no: true},
		"completions":           {surface: inference.Completions, members: `"prompt":"x","best_of":1,"echo":false,"suffix":"y"`},
		"best of two":           {surface: inference.Completions, members: `"prompt":"x","best_of":2`, no: true},
		"echo":                  {surface: inference.Completions, members: `"prompt":"x","echo":true`, no: true},
		"completions logprobs":  {surface: inference.Completions, members: `"prompt":"x","logprobs":0`, no: true},
		"one prompt":            {surface: inference.Completions, members: `"prompt":["x"]`},
		"two prompts":           {surface: inference.Completions, members: `"prompt":["x","y"]`, no: true},
		"tokens":                {surface: inference.Completions, members: `"prompt":[1,2,3]`},
		"one prompt of tokens":  {surface: inference.Completions, members: `"prompt":[[1,2,3]]`},
		"two prompts of tokens": {surface: inference.Completions, members: `"prompt":[[1],[2]]`, no: true},
		"embeddings":            {surface: inference.Embeddings, members: `"input":"x"`, no: true},
		"messages":              {surface: inference.Messages, no: true},
		"responses":             {surface: inference.Responses, members: `"input":"x"`, no: true},
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"model":"m",` + c.members
			if c.surface == inference.Chat || c.surface == inference.Messages {
				body = strings.TrimSuffix(body, ",") + `,"messages":[{"role":"user","content":"hi"}]`
			}
			f, err := wire.ScanRequest(c.surface, []byte(body+"}"))
			if err != nil {
				t.Fatal(err)
			}
			if f.Rebuild == c.no {
				t.Errorf("got %v for %s", f.Rebuild, body)
			}
		})
	}
}

func TestRewriteOfMore(t *testing.T) {
	const m = `"messages":[1]`
	for name, c := range map[string]struct {
		surface    inference.Surface
		body, want string
		edits      wire.Edits
	}{
		"stream absent":      {body: `{"model":"a",` + m + `}`, edits: wire.Edits{Stream: true, IncludeUsage: true}, want: `{"stream":true,"stream_options":{"include_usage":true},"model":"a",` + m + `}`},
		"stream false":       {body: `{"model":"a","stream": false ,` + m + `}`, edits: wire.Edits{Stream: true, IncludeUsage: true}, want: `{"stream_options":{"include_usage":true},"model":"a","stream": true ,` + m + `}`},
		"both null":          {body: `{"stream_options":null,"model":"a","stream":null,` + m + `}`, edits: wire.Edits{Stream: true, IncludeUsage: true, Model: "b"}, want: `{"stream_options":{"include_usage":true},"model":"b","stream":true,` + m + `}`},
		"stream already":     {body: `{"model":"a","stream":true,` + m + `}`, edits: wire.Edits{Stream: true}, want: `{"model":"a","stream":true,` + m + `}`},
		"limit absent":       {body: `{"model":"a",` + m + `}`, edits: wire.Edits{MaxTokens: 9}, want: `{"max_tokens":9,"model":"a",` + m + `}`},
		"limit higher":       {body: `{"model":"a",` + m + `,"max_tokens":10}`, edits: wire.Edits{MaxTokens: 9}, want: `{"model":"a",` + m + `,"max_tokens":9}`},
		"limit lower":        {body: `{"model":"a",` + m + `,"max_tokens":8}`, edits: wire.Edits{MaxTokens: 9}, want: `{"model":"a",` + m + `,"max_tokens":8}`},
		"limit in floats":    {body: `{"model":"a",` + m + `,"max_tokens":1e1}`, edits: wire.Edits{MaxTokens: 9}, want: `{"model":"a",` + m + `,"max_tokens":9}`},
		"limit null":         {body: `{"model":"a",` + m + `,"max_tokens":null}`, edits: wire.Edits{MaxTokens: 9}, want: `{"model":"a",` + m + `,"max_tokens":9}`},
		"its own name":       {body: `{"model":"a",` + m + `,"max_completion_tokens":99}`, edits: wire.Edits{MaxTokens: 9}, want: `{"model":"a",` + m + `,"max_completion_tokens":9}`},
		"its own name, null": {body: `{"model":"a",` + m + `,"max_completion_tokens":null}`, edits: wire.Edits{MaxTokens: 9}, want: `{"model":"a",` + m + `,"max_completion_tokens":9}`},
		"both names":         {body: `{"max_completion_tokens":99,"model":"a",` + m + `,"max_tokens":5}`, edits: wire.Edits{MaxTokens: 9}, want: `{"max_completion_tokens":9,"model":"a",` + m + `,"max_tokens":5}`},
		"one is null":        {body: `{"max_completion_tokens":5,"model":"a",` + m + `,"max_tokens":null}`, edits: wire.Edits{MaxTokens: 9}, want: `{"max_completion_tokens":5,"model":"a",` + m + `,"max_tokens":null}`},
		"completions":        {surface: inference.Completions, body: `{"model":"a","prompt":"x"}`, edits: wire.Edits{MaxTokens: 9}, want: `{"max_tokens":9,"model":"a","prompt":"x"}`},
		"responses":          {surface: inference.Responses, body: `{"model":"a","input":"x","max_tokens":5}`, edits: wire.Edits{MaxTokens: 9}, want: `{"max_output_tokens":9,"model":"a","input":"x","max_tokens":5}`},
		"messages":           {surface: inference.Messages, body: `{"model":"a",` + m + `,"max_tokens":4096}`, edits: wire.Edits{MaxTokens: 9}, want: `{"model":"a",` + m + `,"max_tokens":9}`},
		"embeddings":         {surface: inference.Embeddings, body: `{"model":"a","input":"x"}`, edits: wire.Edits{MaxTokens: 9}, want: `{"model":"a","input":"x"}`},
		"everything": {
			body:  `{"max_output_tokens":10,"stream_options":null,"max_tokens":11,"stream":false,"model":"a",` + m + `,"max_completion_tokens":12}`,
			edits: wire.Edits{Model: "b", Stream: true, IncludeUsage: true, MaxTokens: 9},
			want:  `{"max_output_tokens":9,"stream_options":{"include_usage":true},"max_tokens":9,"stream":true,"model":"b",` + m + `,"max_completion_tokens":9}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			req := &inference.Request{Surface: c.surface, Body: []byte(c.body)}
			var err error
			if req.Fields, err = wire.ScanRequest(c.surface, req.Body); err != nil {
				t.Fatal(err)
			}
			if got := string(bytes.Join(wire.Rewrite(nil, req, c.edits), nil)); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}
