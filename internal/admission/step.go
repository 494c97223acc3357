package admission

// Step is a rung of the brownout ladder: what is given up, in this order, before
// a request is refused. A step includes those below it.
type Step uint8

// The rungs.
const (
	StepNone         Step = iota // nothing is given up
	StepYield                    // the batch class yields to the others
	StepCapTokens                // max_tokens is capped for clients that opted in
	StepCheaperModel             // a cheaper model answers where the route lists one
)

// stepNames are the names in configuration, metrics, logs and X-Spillway-Degraded.
var stepNames = [...]string{StepNone: "none", StepYield: "yield", StepCapTokens: "cap_tokens", StepCheaperModel: "cheaper_model"}

// String returns the name used in configuration, metrics, logs and headers.
func (s Step) String() string {
	if int(s) < len(stepNames) {
		return stepNames[s]
	}
	return "unknown"
}

// Steps lists all steps from the bottom of the ladder.
func Steps() []Step { return []Step{StepNone, StepYield, StepCapTokens, StepCheaperModel} }

// ParseStep finds a step by its name.
func ParseStep(name string) (Step, bool) {
	for i, n := range stepNames {
		if n == name {
			return Step(i), true
		}
	}
	return StepNone, false
}
