#!/usr/bin/env bash
# Fetches what the tests need. Go and a C compiler must be there. What else is
# missing is named and leaves tests out; with CI=true it is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v go >/dev/null || { echo "deps: Go is needed: https://go.dev/dl" >&2; exit 1; }
cc=$(go env CC)
command -v "${cc%% *}" >/dev/null || { echo "deps: a C compiler is needed for the race detector, e.g. apt-get install gcc libc6-dev" >&2; exit 1; }
go mod download

if [ -x e2e/deps.sh ] && ! e2e/deps.sh; then
	echo "deps: some SDKs of e2e/ are not there; their tests will not run" >&2
	[ "${CI:-}" != true ] || exit 1
fi
