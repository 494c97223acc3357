package usage

import (
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spillway/spillway/internal/inference"
)

// maxText bounds what a client chose, such as a model's name, in a line.
const maxText = 256

// appendLine appends a record as the line that slog.JSONHandler would write for
// it, at a fifth of the cost; a test compares the two. The instant is that of
// the request's end, which costs no look at the clock.
func appendLine(b []byte, rec *inference.Record) []byte {
	req := rec.Request
	b = append(b, `{"time":"`...)
	b = req.Received.Add(rec.Duration).AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","level":"INFO","msg":"request","component":"usage"`...)
	b = appendText(b, `,"request_id":`, req.ID)
	b = appendText(b, `,"surface":`, req.Surface.String())
	b = appendText(b, `,"model":`, req.Model)
	if req.Asked != "" {
		b = appendText(b, `,"asked_model":`, req.Asked)
	}
	b = appendText(b, `,"tenant":`, req.Tenant)
	if req.Key != "" {
		b = appendText(b, `,"key":`, req.Key)
	}
	b = appendText(b, `,"class":`, req.Class.String())
	b = appendText(b, `,"code":`, codeName(rec.Code))
	if rec.Reason != "" {
		b = appendText(b, `,"reason":`, rec.Reason)
	}
	b = appendInt(b, `,"status":`, int64(rec.Status))
	b = append(b, `,"attempts":[`...)
	for i := range rec.Attempts {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendAttempt(b, &rec.Attempts[i])
	}
	b = append(b, ']')
	u, estimated := tokens(rec)
	b = appendInt(b, `,"prompt_tokens":`, u.PromptTokens)
	b = appendInt(b, `,"completion_tokens":`, u.CompletionTokens)
	b = appendInt(b, `,"cached_tokens":`, u.CachedTokens)
	b = appendInt(b, `,"reasoning_tokens":`, u.ReasoningTokens)
	if estimated {
		b = append(b, `,"tokens_estimated":true`...)
	}
	b = appendMillis(b, `,"ttft_ms":`, rec.TTFT)
	b = appendMillis(b, `,"duration_ms":`, rec.Duration)
	b = appendMillis(b, `,"upstream_ms":`, rec.Upstream)
	b = appendMillis(b, `,"overhead_ms":`, overhead(rec))
	b = appendInt(b, `,"bytes":`, rec.Bytes)
	b = appendBool(b, `,"stream":`, req.Stream)
	b = appendBool(b, `,"complete":`, rec.Complete)
	b = appendTreatment(b, rec)
	if req.ClientIP.IsValid() {
		b = append(b, `,"client_ip":"`...)
		b = req.ClientIP.WithZone("").AppendTo(b)
		b = append(b, '"')
	}
	return append(b, "}\n"...)
}

// appendTreatment adds what was done with the request beside answering it.
func appendTreatment(b []byte, rec *inference.Record) []byte {
	if rec.Degraded != "" {
		b = appendText(b, `,"degraded":`, rec.Degraded)
	}
	if rec.Rule != "" {
		b = appendText(b, `,"rule":`, rec.Rule)
	}
	if rec.Arm.Experiment != "" {
		b = appendText(b, `,"experiment":`, rec.Arm.Experiment)
		b = appendText(b, `,"arm":`, rec.Arm.Arm)
	}
	if rec.Shadow {
		b = append(b, `,"shadow":true`...)
	}
	if rec.Cache != "" {
		b = appendText(b, `,"cache":`, string(rec.Cache))
	}
	if rec.CacheLevel != "" {
		b = appendText(b, `,"cache_level":`, rec.CacheLevel)
		b = appendMillis(b, `,"cache_age_ms":`, rec.CacheAge)
	}
	return b
}

// appendAttempt appends one element of attempts.
func appendAttempt(b []byte, a *inference.Attempt) []byte {
	b = appendText(b, `{"instance":`, a.Instance)
	b = appendText(b, `,"model":`, a.Model)
	b = appendText(b, `,"verdict":`, a.Verdict.String())
	b = appendInt(b, `,"status":`, int64(a.Status))
	if a.Reason != "" {
		b = appendText(b, `,"reason":`, a.Reason)
	}
	if a.Hedge {
		b = append(b, `,"hedge":true`...)
	}
	b = appendMillis(b, `,"connect_ms":`, a.Connect)
	b = appendMillis(b, `,"ttft_ms":`, a.TTFT)
	b = appendMillis(b, `,"ms":`, a.Duration)
	return append(b, '}')
}

// codeName is how a code is written in logs and metrics.
func codeName(c inference.Code) string {
	if c == "" {
		return "ok"
	}
	return string(c)
}

// appendInt appends a member with an integer.
func appendInt(b []byte, name string, v int64) []byte {
	return strconv.AppendInt(append(b, name...), v, 10)
}

// appendBool appends a member with a truth value.
func appendBool(b []byte, name string, v bool) []byte {
	return strconv.AppendBool(append(b, name...), v)
}

// micros is d in whole microseconds, the resolution of the log.
func micros(d time.Duration) int64 { return max(0, int64(d/time.Microsecond)) }

// appendMillis appends a member with d in milliseconds, to the microsecond,
// written as encoding/json writes the same number.
func appendMillis(b []byte, name string, d time.Duration) []byte {
	us := micros(d)
	b = strconv.AppendInt(append(b, name...), us/1000, 10)
	frac := us % 1000
	if frac == 0 {
		return b
	}
	b = append(b, '.', byte('0'+frac/100), byte('0'+frac/10%10), byte('0'+frac%10))
	for b[len(b)-1] == '0' {
		b = b[:len(b)-1]
	}
	return b
}

// clip cuts a text to maxText bytes, between two characters.
func clip(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// appendText appends a member with a string, escaped as slog does: control
// characters, quotes, invalid UTF-8 and the two line separators of JavaScript.
func appendText(b []byte, name, s string) []byte {
	b = append(b, name...)
	s = clip(s)
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return appendEscaped(b, s)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// appendEscaped appends a string that may hold characters to be escaped.
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i, c := range s {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', byte(c))
		case c == '\n':
			b = append(b, `\n`...)
		case c == '\r':
			b = append(b, `\r`...)
		case c == '\t':
			b = append(b, `\t`...)
		case c < ' ':
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c == '\u2028' || c == '\u2029':
			b = append(b, '\\', 'u', '2', '0', '2', hex[c&15])
		case c == utf8.RuneError && invalidAt(s, i):
			b = append(b, `\ufffd`...)
		default:
			b = utf8.AppendRune(b, c)
		}
	}
	return append(b, '"')
}

// invalidAt tells a byte that is not UTF-8 from the replacement character
// itself.
func invalidAt(s string, i int) bool {
	_, size := utf8.DecodeRuneInString(s[i:])
	return size == 1
}
