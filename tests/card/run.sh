#!/usr/bin/env bash
# Checks the program's CUDA side on an emulated card: run.sh PROGRAM [WORK]
#
# Builds and tests the emulator, then runs PROGRAM on it: `devices` on eight generations with two toolkits, the forward pass and the
# training of the head on two generations against the CPU's numbers, and failures of the card. WORK (default `target/card`) keeps
# toolkits and compiled kernels; with them a second run takes a fraction of the time. Needs Rust, Python 3 and PyPI.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
program=$(realpath "$1")
work=${2:-$(dirname "$0")/../../target/card}
mkdir -p "$work"
work=$(realpath "$work")
# shellcheck source=tests/card/common.sh
source "$(dirname "$0")/common.sh"
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT

forward=(--checkpoint "$work/sample/models/vit-tiny" --rows 12 --batch-size 4 --passes 1)
head=(--classes 300 --dim 64 --batch-size 64 --steps 8 --log-every 2 --learning-rate 1)

inputs() {
    [ -d "$work/sample" ] || "$program" --quiet sample --out "$work/sample" --train-images 40 --test-images 20
    "$program" --quiet bench forward "${forward[@]}" -m "$work/cpu.toml" --precision f32 --features "$work/cpu.bin" --json > /dev/null
    rm -rf "$work/cpu-head"
    "$program" --quiet bench head "${head[@]}" -m "$work/cpu.toml" --save "$work/cpu-head" --json > "$work/cpu-head.json"
}

# devices: the program accepts each generation that the toolkit knows, and says which toolkit the others need.
devices() {
    local sm toolkit log text wanted
    for sm in "${generations[@]}"; do
        for toolkit in 12.9 12.4; do
            log=$work/devices-$sm-$toolkit
            text=$(on "$sm" "$toolkit" "$log" timeout 120 "$program" devices --json)
            wanted='"kind": "cuda"'
            [ "$toolkit" = 12.4 ] && [ "$sm" -ge 100 ] && wanted="needs CUDA 12"
            grep -q "$wanted" <<< "$text" || fail "devices on sm_$sm with CUDA $toolkit: $text"
            no_problems "$log"
        done
    done
    echo "devices: ${#generations[@]} generations with 2 toolkits"
}

# numbers SM TOOLKIT: the forward pass and the head's training, against the CPU.
numbers() {
    local sm=$1 toolkit=$2 at=$work/numbers-$1
    on "$sm" "$toolkit" "$at-forward" timeout 600 "$program" --quiet bench forward "${forward[@]}" -m "$work/cuda.toml" \
        --features "$at.bin" --json > "$at.json"
    no_problems "$at-forward"
    rm -rf "$at-head-saved"
    on "$sm" "$toolkit" "$at-head" timeout 600 "$program" --quiet bench head "${head[@]}" -m "$work/cuda.toml" \
        --save "$at-head-saved" --json > "$at-head.json"
    no_problems "$at-head"
    echo "sm_$sm with CUDA $toolkit: $(grep -ch ' launch ' "$at-forward"/calls.*.log | sort -n | tail -1) launches of the forward pass"
    "$python" "$card/compare.py" features "$at.bin" "$work/cpu.bin" "$forward_limit"
    "$python" "$card/compare.py" losses "$at-head.json" "$work/cpu-head.json" "$head_limit"
    "$python" "$card/compare.py" tensors "$at-head-saved/optimizer.safetensors" "$work/cpu-head/optimizer.safetensors" "$head_limit"
}

# dropped_wait: without the wait for its event, a read gives other bytes. This shows that the lazy order finds such a fault.
dropped_wait() {
    rm -f "$work/dropped.bin"
    on 90 12.9 "$work/dropped" env EMUCUDA_IGNORE=cuEventSynchronize timeout 300 "$program" --quiet bench forward "${forward[@]}" \
        -m "$work/cuda.toml" --features "$work/dropped.bin" --json > /dev/null 2>&1 || true
    # Either the card reports it, or the features are others.
    if [ ! -s "$work/dropped/problems.log" ]; then
        [ -s "$work/dropped.bin" ] || fail "dropped wait: neither features nor a problem"
        "$python" "$card/compare.py" differ "$work/dropped.bin" "$work/numbers-90.bin"
    fi
    echo "dropped wait: noticed"
}

# failure NAME CALLS: a failing call ends the program with exit code 5 and one line.
failure() {
    local name=$1 log=$work/failure code=0 lines
    on 90 12.9 "$log" env EMUCUDA_FAIL="$2" timeout 300 "$program" --quiet bench forward "${forward[@]}" -m "$work/cuda.toml" --json \
        > "$log.json" 2> "$log.err" || code=$?
    lines=$(wc -l < "$log.err")
    [ "$code" -eq 5 ] && [ "$lines" -eq 1 ] || fail "$name: exit code $code, $lines lines instead of 1: $(head -3 "$log.err")"
    echo "$name: $(cat "$log.err")"
}

prepare
inputs
devices
numbers 80 12.4 &
other=$!
numbers 90 12.9
wait "$other"
dropped_wait
failure "out of memory" cuMemAllocAsync:2+:2,cuMemAlloc_v2:1+:2
failure "illegal address" cuLaunchKernel:60:700
failure "lost card" cuMemcpy2DAsync_v2:10:999
failure "bad module" cuModuleLoadData:10:218
