package inference

import "path"

// Caller is who sends a request, as its credential says. It is small, copied by
// value, and what it points to never changes.
type Caller struct {
	Tenant string
	Key    string   // public name of the credential, for logs and limits; "" is none
	Class  Class    // the most urgent class that the credential allows
	Models []string // patterns (path.Match) of the models that may be asked for; nil is all
	Quota  *Quota   // limits of this credential alone; nil is none
}

// May says whether the caller may ask for a model.
func (c *Caller) May(model string) bool {
	for _, pattern := range c.Models {
		if ok, err := path.Match(pattern, model); ok && err == nil {
			return true
		}
	}
	return c.Models == nil
}

// Quota are the limits of one credential. 0 is no limit.
type Quota struct {
	// Requests in a second.
	RequestsPerSecond int64 `yaml:"requests_per_second" json:"requests_per_second,omitempty"`
	// Requests in a minute.
	RequestsPerMinute int64 `yaml:"requests_per_minute" json:"requests_per_minute,omitempty"`
	// Tokens in a minute, of prompts and answers.
	TokensPerMinute int64 `yaml:"tokens_per_minute" json:"tokens_per_minute,omitempty"`
	// Requests at a time.
	Concurrent int64 `yaml:"concurrent" json:"concurrent,omitempty"`
	// Tokens in a calendar day, UTC.
	TokensPerDay int64 `yaml:"tokens_per_day" json:"tokens_per_day,omitempty"`
	// Tokens in a calendar month, UTC.
	TokensPerMonth int64 `yaml:"tokens_per_month" json:"tokens_per_month,omitempty"`
}
