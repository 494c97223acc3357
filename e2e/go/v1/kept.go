package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	openai "github.com/openai/openai-go"
	"github.com/openai/openai-go/option"

	"github.com/spillway/spillway/e2e/go/drive"
)

// take asks once for an answer that the cache keeps, and says what came of it.
func take(ctx context.Context, client *openai.Client, kind, question string, t *drive.Turn) error {
	var response *http.Response
	o := []option.RequestOption{option.WithResponseInto(&response)}
	if strings.HasPrefix(kind, "only") {
		o = append(o, option.WithHeader("Cache-Control", "only-if-cached"))
	}
	p := ask("kept", 12)
	p.Messages = []openai.ChatCompletionMessageParamUnion{openai.UserMessage(question)}
	p.Temperature, p.Tools = openai.Float(0), weather()
	var err error
	switch kind {
	case "embed":
		err = embed(ctx, client, question, t, o...)
	case "one", "only":
		var a *openai.ChatCompletion
		if a, err = client.Chat.Completions.New(ctx, p, o...); err == nil {
			t.Answer = json.RawMessage(a.RawJSON())
			view(t, a)
			t.Reasoning, t.Unknown = drive.Text(a.Choices[0].Message.JSON.ExtraFields["reasoning_content"].Raw()), drive.Text(a.JSON.ExtraFields["vendor_answer"].Raw())
		}
	case "usage":
		p.StreamOptions.IncludeUsage = openai.Bool(true)
		err = collect(ctx, client, p, t, o...)
	default:
		err = collect(ctx, client, p, t, o...)
	}
	var e *openai.Error
	if errors.As(err, &e) {
		t.Status, t.Code = e.StatusCode, e.Code
		return nil
	}
	if response != nil {
		t.Cache = response.Header.Get("X-Spillway-Cache")
	}
	return err
}

// collect reads a stream to its end, and puts it together as the SDK does.
func collect(ctx context.Context, client *openai.Client, p openai.ChatCompletionNewParams, t *drive.Turn, o ...option.RequestOption) error {
	s := client.Chat.Completions.NewStreaming(ctx, p, o...)
	defer s.Close()
	var whole openai.ChatCompletionAccumulator
	for s.Next() {
		chunk := s.Current()
		t.Chunks = append(t.Chunks, json.RawMessage(chunk.RawJSON()))
		if !whole.AddChunk(chunk) {
			return errors.New("the accumulator refuses " + chunk.RawJSON())
		}
		t.Unknown = drive.Text(chunk.JSON.ExtraFields["vendor_answer"].Raw())
		if len(chunk.Choices) > 0 {
			t.Reasoning += drive.Text(chunk.Choices[0].Delta.JSON.ExtraFields["reasoning_content"].Raw())
		}
	}
	if s.Err() == nil {
		view(t, &whole.ChatCompletion)
	}
	return s.Err()
}

// view is what applications read of an answer.
func view(t *drive.Turn, a *openai.ChatCompletion) {
	m := a.Choices[0].Message
	t.Content, t.Finish, t.Usage = m.Content, a.Choices[0].FinishReason, a.Usage.TotalTokens
	for _, c := range m.ToolCalls {
		t.Tools = append(t.Tools, drive.Call{ID: c.ID, Name: c.Function.Name, Arguments: json.RawMessage(c.Function.Arguments)})
	}
}

// embed asks for an embedding.
func embed(ctx context.Context, client *openai.Client, question string, t *drive.Turn, o ...option.RequestOption) error {
	a, err := client.Embeddings.New(ctx, openai.EmbeddingNewParams{
		Model: "kept", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String(question)},
	}, o...)
	if err == nil {
		t.Vector, t.Usage = a.Data[0].Embedding, a.Usage.TotalTokens
	}
	return err
}
