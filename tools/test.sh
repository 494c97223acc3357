#!/usr/bin/env bash
# Runs all tests with the race detector, those that the detector disturbs without
# it, and says at the end which did not run and why. With CI=true such a test is
# a failure, unless only the detector kept it from running.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

status=0
# The JSON form names skipped tests also where packages pass.
CGO_ENABLED=1 go test -race -json ./... >"$log" || status=$?
# Allocation bounds do not hold under the race detector.
go test -json ./internal/route/... >>"$log" || status=$?

go run ./tools/testsum <"$log" || status=$?
exit "$status"
