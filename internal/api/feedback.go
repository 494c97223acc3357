package api

import (
	"encoding/json"
	"math"
	"net/http"

	"github.com/spillway/spillway/internal/inference"
)

// feedbackPath takes what users think of answers, without its optional /v1.
const feedbackPath = "/feedback"

// maxID bounds the id of a request that feedback is about, in bytes.
const maxID = 128

// Feedback is told what a user thinks of the answer to a request of the same tenant,
// by the id in its X-Request-Id. Its error is an *inference.Error.
type Feedback func(tenant, request string, score float64) error

// serveFeedback takes one score.
func (s *Server) serveFeedback(w *writer, body []byte) {
	var v struct {
		ID    string   `json:"id"`
		Score *float64 `json:"score"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		s.fail(w, badFeedback("", "the body must be a JSON object with id and score"))
		return
	}
	switch {
	case v.ID == "" || len(v.ID) > maxID:
		s.fail(w, badFeedback("id", "id must be the X-Request-Id of an answer"))
		return
	case v.Score == nil || math.IsInf(*v.Score, 0) || math.IsNaN(*v.Score):
		s.fail(w, badFeedback("score", "score must be a number"))
		return
	}
	if err := s.parts.Feedback(w.req.Tenant, v.ID, *v.Score); err != nil {
		s.fail(w, err)
		return
	}
	_ = w.Head(&inference.Head{Status: http.StatusNoContent, Length: -1}) // a client that left has no use for an error
}

// badFeedback is the client's mistake.
func badFeedback(param, message string) error {
	e := inference.Errorf(inference.CodeInvalidRequest, "%s", message)
	e.Param, e.NoRetry = param, true
	return e
}
