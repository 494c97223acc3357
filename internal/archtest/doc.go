// Package archtest holds the rules of this repository that are tests: who may
// import whom, how long a function may be, what must be documented, what a test
// must not do, and that generated pages, examples and links are fresh.
//
// It has no code of its own. A rule is a function from a parsed tree to findings;
// TestRules applies each to the repository, TestRulesCanFail to fixtures with one
// mistake of every kind. Exceptions stand in one list, each with its reason, and
// one that is no longer needed is a finding itself. Everything runs offline.
//
// Pages that are made from the code are written again by `make docs`.
package archtest
