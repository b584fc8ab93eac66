#!/usr/bin/env bash
# Ask functions how they are: bash scripts/health-check.sh URL...
#
# Prints one line for each and exits with 0 if all are healthy and ready, 1 if one is not, 2 if asked wrongly.
# TIMEOUT_SECONDS (default 10) is how long each may take to answer.
set -uo pipefail

if (($# == 0)); then
    echo "usage: bash scripts/health-check.sh URL...   for example http://localhost:3001" >&2
    exit 2
fi
if ! command -v curl >/dev/null; then
    echo "health-check.sh needs curl: install it" >&2
    exit 2
fi
for url in "$@"; do
    if [[ ! $url =~ ^https?://[^[:space:]]+$ ]]; then
        printf '%q is no URL like http://localhost:3001\n' "$url" >&2
        exit 2
    fi
done

# probe URL: the status (000 if nobody answers), the seconds that it took, and the body on the lines below.
probe() {
    curl -s --max-time "${TIMEOUT_SECONDS:-10}" --max-filesize 65536 --write-out '\n%{http_code} %{time_total}' "$1"
}

# The reason that a body gives, without what could play tricks on a terminal.
reason() {
    sed -n 's/.*"\(detail\|error\)": *"\([^"]*\)".*/\2/p' | head -n 1 | tr -cd '[:print:]' | cut -c 1-100
}

row='%-36s %-8s %-8s %8s  %s\n'
# shellcheck disable=SC2059  # the format is ours
printf "$row" ENDPOINT HEALTH READY SECONDS DETAIL
failed=0
for url in "$@"; do
    base=${url%/}
    health=$(probe "$base/health")
    ready=$(probe "$base/ready")
    read -r health_status _ <<<"${health##*$'\n'}"
    read -r ready_status seconds <<<"${ready##*$'\n'}"
    detail=$(reason <<<"$ready")
    if [[ $health_status == 000 ]]; then detail="nobody answers within ${TIMEOUT_SECONDS:-10} s"; fi
    if [[ $health_status != 200 || $ready_status != 200 ]]; then failed=1; fi
    # shellcheck disable=SC2059
    printf "$row" "$base" "$health_status" "$ready_status" "$seconds" "${detail:--}"
done
exit "$failed"
