#!/bin/sh
# Gets tokens with the Azure CLI: az login --identity, then az account
# get-access-token.
set -eu
. "$(dirname "$0")/protocol.sh"

AZURE_CONFIG_DIR=$(mktemp -d "$HOME/az-XXXXXX")
export AZURE_CONFIG_DIR
export AZURE_CORE_COLLECT_TELEMETRY=no
identity=$client_id$object_id$resource_id

login() {
	if [ -e "$AZURE_CONFIG_DIR/logged-in" ]; then return; fi
	az login --identity ${identity:+--username "$identity"} --output none --only-show-errors
	touch "$AZURE_CONFIG_DIR/logged-in"
}

ask() {
	output=$(login 2>&1) || { echo "$output"; return 1; }
	output=$(az account get-access-token --resource "$resource" --query accessToken --output tsv --only-show-errors 2>&1) || { echo "$output"; return 1; }
	printf '%s' "$output"
}

run
