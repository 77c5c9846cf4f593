#!/bin/sh
# Gets tokens with wget, as Microsoft's documentation shows it for curl.
set -eu
. "$(dirname "$0")/protocol.sh"

ask() {
	answer=$(wget -nv -O - --header Metadata:true "$(token_url)" 2>&1) || { echo "$answer"; return 8; }
	token=$(printf '%s' "$answer" | sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p')
	printf '%s' "${token:-$answer}"
	[ -n "$token" ]
}

run
