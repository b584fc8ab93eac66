#!/usr/bin/env bash
# Run N replicas, one for each GPU of this host: bash scripts/scale-compose.sh N [option of docker compose up]...
#
# Waits until all N are healthy and exits with 0; 1 if they are not within WAIT_SECONDS (default 600), 2 if asked wrongly.
# COMPOSE_FILE chooses variants, as docker compose reads it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

service=comfyui-api
replicas=${1:-}
if [[ ! $replicas =~ ^(0|[1-9][0-9]{0,2})$ ]]; then
    echo "usage: bash scripts/scale-compose.sh N [option of docker compose up]...   N is a number from 0 to 999" >&2
    exit 2
fi
shift
if ! docker compose version >/dev/null 2>&1; then
    echo "docker compose is missing: install Docker with its compose plugin" >&2
    exit 2
fi
if command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi --list-gpus | grep -c '^GPU ' || true)
    if ((replicas > gpus)); then
        echo "$replicas replicas need as many GPUs; this host has $gpus" >&2
        exit 2
    fi
fi

# How many replicas Docker's health check calls healthy.
healthy() {
    local ids
    ids=$(docker compose ps --quiet "$service")
    if [[ -z $ids ]]; then echo 0; return; fi
    # shellcheck disable=SC2086  # one word for each id
    docker inspect --format '{{if .State.Health}}{{.State.Health.Status}}{{end}}' $ids | grep -cx healthy || true
}

docker compose up --detach --scale "$service=$replicas" "$@"
deadline=$((SECONDS + ${WAIT_SECONDS:-600}))
until (($(healthy) >= replicas)); do
    if ((SECONDS >= deadline)); then
        echo "only $(healthy) of $replicas replicas are healthy; their last lines:" >&2
        docker compose logs --tail 5 "$service" >&2
        exit 1
    fi
    sleep "${POLL_SECONDS:-2}"
done
docker compose ps "$service"
echo "$replicas replicas of $service are healthy"
