# The arguments and the output of the shell drivers. The package documentation of test/compat
# describes them. The drivers source this file and define ask, which prints a token and returns
# 0, or prints an error and returns another status.

credential='' resource='' client_id='' object_id='' resource_id='' calls=1 pause=0
for argument in "$@"; do
	name=${argument%%=*} value=${argument#*=}
	case $name in
	credential | resource | client_id | object_id | resource_id | calls | pause) eval "$name=\$value" ;;
	esac
done

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# quote prints its argument as a JSON string.
quote() { printf '"%s"' "$(printf '%s' "$1" | tr -d '\000-\037' | sed 's/[\\"]/\\&/g')"; }

# selector prints the parameter that selects the identity.
selector() {
	if [ -n "$client_id" ]; then echo "&client_id=$client_id"; fi
	if [ -n "$object_id" ]; then echo "&object_id=$object_id"; fi
	if [ -n "$resource_id" ]; then echo "&msi_res_id=$resource_id"; fi
}

token_url() {
	echo "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01&resource=$resource$(selector)"
}

run() {
	n=0
	while [ $n -lt "$calls" ]; do
		if [ $n -gt 0 ]; then sleep "$pause"; fi
		n=$((n + 1))
		began=$(milliseconds)
		if output=$(ask); then
			printf '{"token":%s,"ms":%d}\n' "$(quote "$output")" $(($(milliseconds) - began))
		else
			printf '{"error":%s,"message":%s,"ms":%d}\n' "$(quote "exit code $?")" "$(quote "$output")" $(($(milliseconds) - began))
		fi
	done
}
