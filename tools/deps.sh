#!/usr/bin/env bash
# Fetches what the tests need. Go and a C compiler must be there. Redis, PostgreSQL,
# MariaDB and etcd are installed from the distribution's packages, where root runs
# this on Debian or one of its kin. Consul and the Kubernetes API server are built
# from their modules into .cache/bin, once for each version: about ten minutes of
# one processor. What else is missing is named and leaves tests out; with CI=true it
# is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v go >/dev/null || { echo "deps: Go is needed: https://go.dev/dl" >&2; exit 1; }
cc=$(go env CC)
command -v "${cc%% *}" >/dev/null || { echo "deps: a C compiler is needed for the race detector, e.g. apt-get install gcc libc6-dev" >&2; exit 1; }
go mod download

# lacking PROGRAM: whether a server's program is nowhere to be found.
lacking() {
	! command -v "$1" >/dev/null && ! compgen -G "/usr/sbin/$1" >/dev/null && ! compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

# servers names the packages of the servers that are not there.
servers() {
	lacking redis-server && echo redis-server
	lacking postgres && echo postgresql
	lacking mariadbd && echo mariadb-server
	lacking etcd && echo etcd-server
	true
}

# install PACKAGE...: installs packages and starts none of their services: the
# tests start servers of their own.
install() (
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
	fi
	export DEBIAN_FRONTEND=noninteractive
	{ apt-get update -q && apt-get install -q -y --no-install-recommends "$@"; } </dev/null
)

missing=$(servers)
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	# shellcheck disable=SC2086 # a list of words
	install $missing || true
	missing=$(servers)
fi
if [ -n "$missing" ]; then
	echo "deps: not there: $(echo $missing); as root: apt-get install $(echo $missing). Tests with these servers will not run" >&2
	[ "${CI:-}" != true ] || exit 1
fi

# build FOLDER MODULE PACKAGE [LDFLAGS]: builds a package of a module, at the version
# that tools/FOLDER/go.mod says, into .cache/bin/PACKAGE-VERSION. @ in LDFLAGS stands
# for the version. They serve tests alone: without optimisation and debug information the
# compiler needs a third less.
build() (
	cd "tools/$1" && version=$(go list -m -f '{{.Version}}' "$2") || exit 1
	out="../../.cache/bin/${3##*/}-$version"
	[ ! -x "$out" ] || exit 0
	echo "deps: building ${3##*/} $version, which takes some minutes" >&2
	mkdir -p ../../.cache/bin
	CGO_ENABLED=0 nice -n 19 go build -trimpath -gcflags "all=-N -l -dwarf=false" -ldflags "-s -w ${4//@/$version}" -o "$out.tmp" "$3" && mv "$out.tmp" "$out"
)

# Both at a time: each of them alone leaves cores idle.
build consul github.com/hashicorp/consul github.com/hashicorp/consul "" &
consul=$!
built=true
build kubernetes k8s.io/kubernetes k8s.io/kubernetes/cmd/kube-apiserver "-X k8s.io/component-base/version.gitVersion=@" || built=false
wait "$consul" || built=false
if [ "$built" != true ]; then
	echo "deps: a registry cannot be built; the tests with it will not run" >&2
	[ "${CI:-}" != true ] || exit 1
fi

if [ -x e2e/deps.sh ] && ! e2e/deps.sh; then
	echo "deps: some SDKs of e2e/ are not there; their tests will not run" >&2
	[ "${CI:-}" != true ] || exit 1
fi
