#!/usr/bin/env bash
# Checks a release binary on a GPU and compares it with PyTorch on the same GPU; see README.md.
#
#   tests/gpu/run.sh BINARY OUT [--device cuda|cpu]
#
# Needs Python 3 (PYTHON, default python3) with torch and transformers; no network, no Rust. Writes only to OUT.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
kit=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
binary=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
shift 2

[ -x "$binary" ] || { echo "\`$binary\` is not an executable file" >&2; exit 2; }
[ -z "$(ls -A "$out")" ] || { echo "\`$out\` is not empty" >&2; exit 2; }

export PYTHONDONTWRITEBYTECODE=1
# The binary compiles its kernels with the CUDA toolkit of the system or the one installed with torch.
found=$("$python" "$kit/toolkit.py" find "$out/cuda")
if [ -n "$found" ]; then
    CUDA_PATH=$(sed -n 1p <<< "$found")
    KIT_LIBRARY_PATH=$(sed -n 2p <<< "$found")
    export CUDA_PATH KIT_LIBRARY_PATH
fi
exec "$python" "$kit/kit.py" "$binary" "$out" "$@"
