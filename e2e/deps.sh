#!/bin/sh
# Installs the SDKs that the end-to-end tests drive: Node's into node_modules,
# Python's into .venv, Go's into the module cache. What is installed already is
# left alone. What cannot be installed is named at the end, with exit status 1;
# the rest is installed nevertheless.
set -u
cd "$(dirname "$0")" || exit 1
mkdir -p .stamp
missing=""

# fresh NAME FILE...: whether NAME was installed from these very files.
fresh() {
	name=$1
	shift
	[ -f ".stamp/$name" ] && [ "$(cat "$@" | cksum)" = "$(cat ".stamp/$name")" ]
}

# stamp NAME FILE...: notes that NAME was installed from these files.
stamp() {
	name=$1
	shift
	cat "$@" | cksum >".stamp/$name"
}

if ! { fresh node package.json package-lock.json && [ -d node_modules/openai ]; }; then
	if npm ci --no-audit --no-fund --ignore-scripts --loglevel=error; then
		stamp node package.json package-lock.json
	else
		missing="$missing node"
	fi
fi

if ! { fresh python requirements.txt && [ -x .venv/bin/python ]; }; then
	if rm -rf .venv && python3 -m venv .venv &&
		.venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt; then
		stamp python requirements.txt
	else
		missing="$missing python"
	fi
fi

if ! fresh go go/go.mod go/go.sum; then
	if (cd go && go mod download); then
		stamp go go/go.mod go/go.sum
	else
		missing="$missing go"
	fi
fi

if [ -n "$missing" ]; then
	echo "e2e/deps.sh: not installed:$missing" >&2
	exit 1
fi
