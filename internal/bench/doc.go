// Package bench has the scenarios that wire simulated model servers, the gateway
// or a baseline, and the load generator together, and score what comes of it.
//
// Engines and, where it matters, the gateway are processes of their own, started
// from this very program, so that they can be killed and stopped as real ones
// are. A scenario owns every process it starts and waits for its end; on Linux
// the kernel ends them too when the scenario itself is killed.
package bench
