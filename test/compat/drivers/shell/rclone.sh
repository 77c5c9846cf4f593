#!/bin/sh
# Gets tokens with rclone: it lists the containers of a storage account, and --dump prints the
# token that it sends to the account.
set -eu
. "$(dirname "$0")/protocol.sh"

ask() {
	set -- ${client_id:+--azureblob-msi-client-id="$client_id"} ${object_id:+--azureblob-msi-object-id="$object_id"} \
		${resource_id:+--azureblob-msi-mi-res-id="$resource_id"}
	output=$(rclone lsd :azureblob: --azureblob-use-msi --azureblob-account=shop "$@" \
		--ca-cert="$REQUESTS_CA_BUNDLE" -vv --dump=headers,auth 2>&1) || { echo "$output"; return 1; }
	printf '%s' "$output" | sed -n 's/.*Authorization: Bearer //p' | tail -n 1
}

run
