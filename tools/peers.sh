#!/usr/bin/env bash
# Installs the proxies that `spillway bench overload --systems all` compares with,
# nginx and HAProxy, from Debian's packages where they are missing. The services
# that the packages would start are held back.
set -euo pipefail

missing=()
for name in nginx haproxy; do
	PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$name" >/dev/null || missing+=("$name")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
	echo "peers: ${missing[*]} missing: install it, or run this as root on Debian" >&2
	exit 1
fi
# Debian's switch: exit status 101 means do not start services.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
	trap 'rm -f "$policy"' EXIT
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
