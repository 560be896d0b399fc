#!/usr/bin/env bash
# Measures the program at the row counts of the real corpus, with memory bounds and counts checked, beside DuckDB and Polars.
#
#   tests/scale/run.sh [BINARY] [--scale S] [OPTION…]    without --scale: the full size, which takes 35 GB of disk
#   tests/scale/run.sh --help                            every option
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${SCALE_VENV:-target/venv/scale}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check 'numpy==2.4.6' 'duckdb==2.0.1' 'polars==2.1.0'
exec "$venv/bin/python" -B tests/scale/scale.py "$@"
