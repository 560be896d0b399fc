#!/usr/bin/env bash
# Builds the images and prints how long it took and how large they are.
#
#   docker/build.sh [--prebuilt] [TAG…]
#
# TAG is `cpu`, `gpu` (CUDA 12.4, driver 550 or later) or `gpu-cuda12.9` (driver 575 or later); default: all three.
# The program is compiled inside, with cargo-auditable, which takes about 34 minutes of CPU; the images share it.
# --prebuilt takes the program that `cargo build --release` made on this machine; its C library must not be newer than that of
# the base image.
#
# Environment: DOCKER, the engine's command (default: docker); RUST and BASE, other images to build with and on; CA, a file of
# certificates for the package registries, if they are behind a proxy with its own.
set -euo pipefail
cd "$(dirname "$0")/.."

engine=${DOCKER:-docker}
export DOCKER_BUILDKIT=1
arguments=(--file docker/Dockerfile)
if [ "${1:-}" = --prebuilt ]; then
    shift
    [ -x target/release/wikicap-pipeline ] || { echo "docker/build.sh: run \`cargo build --release --locked\` first" >&2; exit 2; }
    python3 docker/sbom.py program > target/release/wikicap-pipeline.cdx.json
    arguments+=(--build-arg BINARY=prebuilt)
fi
version=$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
revision=$(git rev-parse HEAD 2> /dev/null || echo unknown)
git diff --quiet HEAD 2> /dev/null || revision+=-modified
arguments+=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
for name in RUST BASE; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
done
[ -z "${CA:-}" ] || arguments+=(--secret "id=ca,src=$CA" --network host)

[ $# -gt 0 ] || set -- cpu gpu gpu-cuda12.9
for tag in "$@"; do
    case $tag in
        cpu) target=(--target cpu) ;;
        gpu) target=(--target gpu --build-arg CUDA=12.4) ;;
        gpu-cuda12.9) target=(--target gpu --build-arg CUDA=12.9) ;;
        *) echo "docker/build.sh: unknown tag \`$tag\`; there are cpu, gpu and gpu-cuda12.9" >&2; exit 2 ;;
    esac
    since=$SECONDS
    "$engine" build "${arguments[@]}" "${target[@]}" --tag "wikicap-pipeline:$tag" .
    bytes=$("$engine" image inspect --format '{{.Size}}' "wikicap-pipeline:$tag")
    echo "wikicap-pipeline:$tag: $((SECONDS - since)) s, $((bytes / 1000000)) MB unpacked"
done
