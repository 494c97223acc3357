package archtest_test

// allowances are the exceptions, each with a reason.
var allowances = []allowance{
	{"sleeps", "internal/api/main_test.go:newRig", "the server's own goroutines settle before they are counted, once a test; a count taken too early makes the test fail, not pass"},
	{"sleeps", "internal/api/open_test.go:TestAnnouncedBodiesTakeNothingFromOthers", "two real clients have sent a byte each; too short a wait makes the test kinder, and the outcome alone is asserted"},
	{"sleeps", "internal/api/open_test.go:TestASlowHead", "a real connection stays idle between two requests; that it is not taken for a slow head needs time to pass"},
	{"sleeps", "internal/api/stream_test.go:TestAReaderThatIsSlowButReadsIsNotCut", "a real reader is slow on purpose; that it gets every byte is asserted, not time"},
	{"sleeps", "internal/api/stream_test.go:TestASecondRequestDoesNotEndTheFirst", "that a pipelined request does not end the first one needs time to pass"},
	{"sleeps", "internal/fleet/dns/dns_test.go:TestLongTimeToLiveIsNotAskedAgain", "a real resolver asks over real sockets, which a bubble cannot hold; that nothing is asked needs time to pass"},
	{"sleeps", "internal/fleet/file/file_test.go:TestRunLogsAMistakeOnce", "a real watcher on a real folder; that no second line comes needs time to pass"},
	{"sleeps", "internal/gateway/gateway_test.go:TestClientLeaves", "the client leaves a real connection while the instance is silent; only the outcome is asserted"},
	{"sleeps", "internal/gateway/gateway_test.go:TestKeepAlive", "the scripted instance is slow on purpose over a real connection; the order of bytes is asserted, not time"},
	{"sleeps", "internal/gateway/gateway_test.go:TestRetryIsStillPossibleBehindAKeepAlive", "the scripted instance is slow on purpose over a real connection; the order of bytes is asserted, not time"},
	{"sleeps", "internal/gateway/gateway_test.go:TestHedgeIsNotWonByAnErrorFrame", "the scripted instance is slow on purpose over a real connection; the winner is asserted, not time"},
	{"sleeps", "internal/health/active_test.go:TestHTTPProbes", "a table of slow answers that are given within a bubble, below the table"},
	{"sleeps", "internal/health/passive_test.go:TestEjection", "steps of a table that are taken within a bubble, below the table"},
	{"sleeps", "internal/health/passive_test.go:TestCoolDowns", "a closure that is called within a bubble only, below its definition"},
	{"sleeps", "internal/load/report_test.go:Read", "a slow file that is read within a bubble, through an interface"},
	{"sleeps", "e2e/e2e_test.go:scripts", "the scripted instance is slow on purpose while a real SDK waits through keep-alives; only the answer is asserted"},
	{"skips", "e2e/e2e_test.go:missing", "an SDK that cannot be fetched here; make test names it, and CI=true makes it a failure"},
	{"skips", "internal/testkit/missing.go:Missing", "a real server that cannot be had here; make test names it, and CI=true makes it a failure"},
	{"skips", "bench/proxy/main_test.go:TestClientSeesBrokenAnswers", "the rig is C code and needs a C compiler; make test says so and fails where CI is set"},
	{"skips", "internal/route/routetest/routetest.go:allocations", "the race detector allocates by itself; the benchmarks count allocations without it"},
}
