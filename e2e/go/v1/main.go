// Command v1 drives openai-go v1 through the gateway.
package main

import (
	"context"
	"errors"

	openai "github.com/openai/openai-go"
	"github.com/openai/openai-go/option"
	"github.com/openai/openai-go/shared"

	"github.com/spillway/spillway/e2e/go/drive"
)

func main() { drive.Main(cases) }

// ask is the request of most cases.
func ask(model string, maxTokens int64) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: model, MaxTokens: openai.Int(maxTokens),
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Say something.")},
	}
}

// weather is the tool of the cases that have one.
func weather() []openai.ChatCompletionToolParam {
	return []openai.ChatCompletionToolParam{{Function: shared.FunctionDefinitionParam{
		Name: "weather", Parameters: shared.FunctionParameters{"type": "object", "properties": map[string]any{}},
	}}}
}

// sdk is the client under test.
type sdk struct{ openai.Client }

// fail asks a model whose answer is an error.
func (c *sdk) fail(ctx context.Context, r *drive.Result, model string) error {
	_, err := c.Chat.Completions.New(ctx, ask(model, 12))
	var e *openai.Error
	if !errors.As(err, &e) {
		return err
	}
	r.Status, r.Code, r.Message = e.StatusCode, e.Code, e.Message
	return nil
}

// again asks twice, and notes what becomes of the second: 200 is an answer.
func (c *sdk) again(ctx context.Context, r *drive.Result, model string) error {
	if _, err := c.Chat.Completions.New(ctx, ask(model, 12)); err != nil {
		return err
	}
	r.Status = 200
	return c.fail(ctx, r, model)
}

// stream reads a stream to its end, or leaves after a number of chunks.
func (c *sdk) stream(ctx context.Context, r *drive.Result, p openai.ChatCompletionNewParams, leaveAfter int, o ...option.RequestOption) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := c.Chat.Completions.NewStreaming(ctx, p, o...)
	defer s.Close()
	for s.Next() {
		chunk := s.Current()
		r.Chunks++
		if len(chunk.Choices) > 0 {
			r.Content += chunk.Choices[0].Delta.Content
			if f := chunk.Choices[0].FinishReason; f != "" {
				r.Finish = f
			}
		}
		if chunk.Usage.CompletionTokens > 0 {
			r.Usage = chunk.Usage.CompletionTokens
		}
		if r.Chunks == leaveAfter {
			return nil
		}
	}
	r.Raise(s.Err())
	return nil
}

// tool asks for a call of a tool in one piece.
func (c *sdk) tool(ctx context.Context, r *drive.Result, model string, o ...option.RequestOption) error {
	p := ask(model, 12)
	p.Tools = weather()
	a, err := c.Chat.Completions.New(ctx, p, o...)
	if err != nil {
		return err
	}
	m := a.Choices[0].Message
	r.Tool, r.Arguments = m.ToolCalls[0].Function.Name, m.ToolCalls[0].Function.Arguments
	r.Reasoning, r.Unknown = drive.Text(m.JSON.ExtraFields["reasoning_content"].Raw()), drive.Text(a.JSON.ExtraFields["vendor_answer"].Raw())
	r.Finish, r.Usage = a.Choices[0].FinishReason, a.Usage.CompletionTokens
	return nil
}

// models lists the models.
func (c *sdk) models(ctx context.Context, r *drive.Result) error {
	page, err := c.Models.List(ctx)
	if err != nil {
		return err
	}
	for _, m := range page.Data {
		r.IDs = append(r.IDs, m.ID)
	}
	return nil
}

// chat asks for an answer in one piece.
func (c *sdk) chat(ctx context.Context, r *drive.Result) error {
	a, err := c.Chat.Completions.New(ctx, ask("sim", 12))
	if err != nil {
		return err
	}
	r.Content, r.Finish, r.Usage = a.Choices[0].Message.Content, a.Choices[0].FinishReason, a.Usage.CompletionTokens
	return nil
}

// embeddings asks for a vector.
func (c *sdk) embeddings(ctx context.Context, r *drive.Result) error {
	a, err := c.Embeddings.New(ctx, openai.EmbeddingNewParams{
		Model: "sim", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("hello")},
	})
	if err != nil {
		return err
	}
	r.Length = len(a.Data[0].Embedding)
	return nil
}

// cases are what the SDK is driven through, by name.
func cases(baseURL string) map[string]func(*drive.Result) error {
	c := &sdk{openai.NewClient(option.WithBaseURL(baseURL), option.WithAPIKey("sk-test"))}
	ctx := context.Background()
	return map[string]func(*drive.Result) error{
		"kept": func(r *drive.Result) error {
			return r.Take(func(kind, question string, t *drive.Turn) error { return take(ctx, &c.Client, kind, question, t) })
		},
		"models":     func(r *drive.Result) error { return c.models(ctx, r) },
		"chat":       func(r *drive.Result) error { return c.chat(ctx, r) },
		"embeddings": func(r *drive.Result) error { return c.embeddings(ctx, r) },
		"stream": func(r *drive.Result) error {
			p := ask("sim", 12)
			p.StreamOptions.IncludeUsage = openai.Bool(true)
			return c.stream(ctx, r, p, 0)
		},
		"extra": func(r *drive.Result) error {
			return c.tool(ctx, r, "tools", option.WithJSONSet("vendor_field", map[string]any{"deep": []any{1, 2.5, "x"}}))
		},
		"rebuilt": func(r *drive.Result) error { return c.tool(ctx, r, "chunks") },
		"unknown": func(r *drive.Result) error { return c.fail(ctx, r, "nobody") },
		"bad":     func(r *drive.Result) error { return c.fail(ctx, r, "bad") },
		"busy":    func(r *drive.Result) error { return c.fail(ctx, r, "busy") },
		"limited": func(r *drive.Result) error { return c.again(ctx, r, "limited") },
		"spent":   func(r *drive.Result) error { return c.again(ctx, r, "spent") },
		"cut":     func(r *drive.Result) error { return c.stream(ctx, r, ask("cut", 12), 0) },
		"wait":    func(r *drive.Result) error { return c.stream(ctx, r, ask("wait", 12), 0) },
		"leave": func(r *drive.Result) error {
			return c.stream(ctx, r, ask("sim", 4000), 3, option.WithHeader("X-Engine-Output-Tokens", "4000"))
		},
	}
}
