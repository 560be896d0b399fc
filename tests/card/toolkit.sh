#!/usr/bin/env bash
# Unpacks NVRTC, its headers and ptxas from PyPI's wheels, whose hashes `docker/cuda-VERSION.txt` pins: toolkit.sh VERSION DIR
set -euo pipefail

[ $# -eq 2 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
pins=$(realpath "$(dirname "$0")/../../docker/cuda-$1.txt")
python=${PYTHON:-python3}
[ -e "$2/lib/libnvrtc.so" ] && exit 0

rm -rf "$2.part"
mkdir -p "$2.part/wheels" "$2.part/include" "$2.part/lib" "$2.part/bin"
cd "$2.part"
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
    --dest wheels --requirement "$pins"
for wheel in wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" unpacked
done
cp -r unpacked/nvidia/cuda_runtime/include/. unpacked/nvidia/cuda_cccl/include/. include/
cp -r unpacked/nvidia/cuda_nvcc/include/crt include/
cp unpacked/nvidia/cuda_nvrtc/lib/libnvrtc.so.12 unpacked/nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.* lib/
ln -s libnvrtc.so.12 lib/libnvrtc.so
cp unpacked/nvidia/cuda_nvcc/bin/ptxas bin/
chmod +x bin/ptxas
rm -rf wheels unpacked
cd - > /dev/null
mv "$2.part" "$2"
