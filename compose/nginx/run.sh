#!/bin/sh
# nginx in front of all replicas of one service, for as long as the container lives.
#
# nginx as it is free resolves the names of an upstream once, at its start. So every CHECK_SECONDS the replicas are looked
# up and asked whether they are ready; when the answer is another one, the upstream is written anew and nginx reloads,
# which ends no request that is under way. What happens between two checks is caught by nginx itself: a connection that
# is refused goes to the next replica. A POST that has been sent is never sent again.
#
# REPLICA_NAME, REPLICA_PORT   where they are: a name with one address for each replica
# MAX_BODY_SIZE_MB, DEADLINE_SECONDS   as the replicas have them
# CHECK_SECONDS, LISTEN, WORK_DIR, NGINX_USER
set -u

: "${REPLICA_NAME:=comfyui-api}" "${REPLICA_PORT:=3000}" "${MAX_BODY_SIZE_MB:=100}" "${DEADLINE_SECONDS:=600}"
: "${CHECK_SECONDS:=2}" "${LISTEN:=80}" "${WORK_DIR:=/tmp/comfyfn-nginx}" "${NGINX_USER:=nginx}"

# A job ends at its deadline and its answer says so; the proxy cuts only what has not even managed that.
longest_seconds=$((DEADLINE_SECONDS + 30))
max_body_bytes=$(awk "BEGIN { printf \"%.0f\", int($MAX_BODY_SIZE_MB * 1048576) }")

# An error as the replicas answer it: status, code, line.
error_body() {
    printf '{"error": "%s", "code": "%s", "message": "%s", "statusCode": %s}' "$3" "$2" "$3" "$1"
}

write_config() {
    cat >"$WORK_DIR/nginx.conf" <<END
daemon off;
user $NGINX_USER;
pid $WORK_DIR/nginx.pid;
error_log stderr warn;
worker_processes auto;
worker_shutdown_timeout ${longest_seconds}s;
events { worker_connections 4096; }
http {
    access_log /dev/stdout;
    server_tokens off;
    default_type application/json;
    client_body_temp_path $WORK_DIR/body;
    proxy_temp_path $WORK_DIR/proxy;
    fastcgi_temp_path $WORK_DIR/fastcgi;
    uwsgi_temp_path $WORK_DIR/uwsgi;
    scgi_temp_path $WORK_DIR/scgi;
    include $WORK_DIR/replicas.conf;
    server {
        listen $LISTEN;
        client_max_body_size $max_body_bytes;
        error_page 413 @too_large;
        location / {
            if (\$replicas = 0) { rewrite ^ /nginx-no-replica last; }
            proxy_pass http://comfyui_api;
            # No connection is kept: a request on one that the replica has just closed could not be told from one that
            # has been sent.
            proxy_http_version 1.1;
            proxy_set_header Connection close;
            proxy_set_header Host \$http_host;
            proxy_set_header X-Forwarded-For \$proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto \$scheme;
            proxy_connect_timeout 2s;
            proxy_send_timeout ${longest_seconds}s;
            proxy_read_timeout ${longest_seconds}s;
            # Without non_idempotent: what may have reached a replica is not sent to another.
            proxy_next_upstream error timeout;
        }
        location = /nginx-health { access_log off; return 200 '{"status": "healthy"}\n'; }
        location = /nginx-no-replica {
            internal;
            add_header Retry-After 5 always;
            return 503 '$(error_body 503 no_replica "no replica of $REPLICA_NAME answers")\n';
        }
        location @too_large {
            return 413 '$(error_body 413 body_too_large "the body is larger than $((max_body_bytes / 1048576)) MiB (MAX_BODY_SIZE_MB)")\n';
        }
    }
}
END
}

# The addresses of all replicas, one a line.
addresses() {
    getent ahostsv4 "$REPLICA_NAME" | awk '{ print $1 }' | sort -u
}

# Those of the addresses on stdin whose probe $1 answers 200; all are asked at the same time.
answering() {
    xargs -r -P 32 -I '{}' curl -s -o /dev/null -m 2 -w '%{http_code} {}\n' "http://{}:$REPLICA_PORT$1" |
        awk '$1 == 200 { print $2 }' | sort
}

# Those that are ready; if none is (all boot, or all queues are full) those that are alive, which say so themselves.
usable() {
    all=$(addresses)
    ready=$(echo "$all" | answering /ready)
    if [ -n "$ready" ]; then echo "$ready"; else echo "$all" | answering /health; fi
}

# The upstream of the addresses in $1. The zone makes least_conn count for all workers of nginx together.
upstream() {
    echo "upstream comfyui_api {"
    echo "    zone comfyui_api 256k;"
    echo "    least_conn;"
    for address in $1; do echo "    server $address:$REPLICA_PORT max_fails=1 fail_timeout=10s;"; done
    [ -n "$1" ] || echo "    server 127.0.0.1:9 down;"
    echo "}"
    echo "map '' \$replicas { default $(echo "$1" | grep -c .); }"
}

# Write the upstream anew if it is another one; whether it was.
refresh() {
    found=$(usable)
    upstream "$found" >"$WORK_DIR/replicas.new"
    if cmp -s "$WORK_DIR/replicas.new" "$WORK_DIR/replicas.conf"; then return 1; fi
    mv "$WORK_DIR/replicas.new" "$WORK_DIR/replicas.conf"
    # shellcheck disable=SC2086  # on one line
    echo "replicas:" $found
}

mkdir -p "$WORK_DIR" || exit 1
write_config
refresh
nginx -p "$WORK_DIR" -c "$WORK_DIR/nginx.conf" -e stderr &
nginx_pid=$!
stopping=
trap 'stopping=1; kill -QUIT "$nginx_pid"' TERM INT QUIT
while [ -z "$stopping" ] && kill -0 "$nginx_pid" 2>/dev/null; do
    sleep "$CHECK_SECONDS" &
    wait $!
    if [ -z "$stopping" ] && refresh; then kill -HUP "$nginx_pid"; fi
done
# A signal ends a wait; what counts is the end of nginx, which finishes the requests that it has.
while kill -0 "$nginx_pid" 2>/dev/null; do wait "$nginx_pid"; done
wait "$nginx_pid"
