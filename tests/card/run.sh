#!/usr/bin/env bash
# Checks the program's CUDA side on an emulated card: run.sh PROGRAM [WORK]
#
# Builds and tests the emulator, runs each of the program's own kernels against plain sums, then runs PROGRAM: `devices` on eight
# generations with two toolkits; the forward pass of several families and the training of the head on two generations against the CPU's
# numbers, both with burn's kernels on one; ptxas on all own kernels; the transfers of a batch; and failures of the card. WORK (default
# `target/card`) keeps toolkits and compiled kernels; with them a second run takes a fraction of the time. Needs Rust, Python 3 and PyPI.
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
# Pixels of 590 kB a batch: their upload has two pieces.
pieces=(--checkpoint "$work/sample/models/vit-tiny" --rows 96 --batch-size 48 --passes 0)
# Small checkpoints below tests/reference of models with parts that the sample's ViT does not have, with a pooling, layers, and the limit of
# their differences from f32: one and a half times that of PyTorch in bf16 on a CPU.
families=(
    "model/vit cls 0,-1,0 0.0124"
    "model/dinov2_swiglu cls+mean -1 0.009"
    "families/dinov3 cls+mean -1 0.0085"
    "families/dinov3_gated cls+mean -1 0.0175"
    "families/beit cls+mean -1 0.012"
    "families/beit mean -1 0.0105"
    "families/beit_shared cls+mean -1 0.01"
    "families/siglip head -1,0 0.0117"
)
reference=$(realpath "$card/../reference")
small=(--rows 40 --batch-size 16 --passes 0)
# Settings of the head's training, by name: one batch a step; two batches a step, clipped; classes in two parts; more rows than a batch
# holds.
declare -A head=(
    [whole]="--classes 300 --dim 64 --batch-size 64 --steps 8 --log-every 2 --learning-rate 1"
    [clipped]="--classes 301 --dim 72 --batch-size 129 --micro-batch 100 --steps 3 --log-every 1 --learning-rate 5 --clip-norm 0.05
        --label-smoothing 0.1 --weight-decay 0.01"
    [parts]="--classes 16600 --dim 16 --batch-size 40 --steps 2 --log-every 1 --learning-rate 5 --label-smoothing 0.1 --weight-decay 0.01"
    [rows]="--classes 40 --dim 8 --batch-size 4100 --steps 2 --log-every 1 --learning-rate 5"
)

inputs() {
    [ -d "$work/sample" ] || "$program" --quiet sample --out "$work/sample" --train-images 40 --test-images 20
    for family in vit beit dinov3-gated; do
        [ -e "$work/$family-blocks/preprocessor_config.json" ] || "$python" "$card/make_vit.py" "$work/$family-blocks" "$family" 768 2 12 224 16
    done
    "$program" --quiet bench forward "${forward[@]}" -m "$work/cpu.toml" --precision f32 --features "$work/cpu.bin" --json > /dev/null
    "$program" --quiet bench forward "${pieces[@]}" -m "$work/cpu.toml" --precision f32 --features "$work/cpu-pieces.bin" --json > /dev/null
    local name family pool layers
    for family in "${families[@]}"; do
        read -r name pool layers _ <<< "$family"
        "$program" --quiet bench forward --checkpoint "$reference/$name" --pool "$pool" --layer "$layers" "${small[@]}" -m "$work/cpu.toml" \
            --precision f32 --features "$work/cpu-${name##*/}-$pool.bin" --json > /dev/null
    done
    for name in "${!head[@]}"; do
        rm -rf "$work/cpu-head-$name"
        # shellcheck disable=SC2086
        "$program" --quiet bench head ${head[$name]} -m "$work/cpu.toml" --save "$work/cpu-head-$name" --json > "$work/cpu-head-$name.json"
    done
    rm -rf "$work/cpu-head-resumed"
    # shellcheck disable=SC2086
    "$program" --quiet bench head ${head[whole]} --resume "$work/cpu-head-whole" -m "$work/cpu.toml" --save "$work/cpu-head-resumed" --json \
        > "$work/cpu-head-resumed.json"
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

# kernels SM TOOLKIT: each kernel of the program against plain sums, and broken ones, which must be noticed.
kernels() {
    EMUCUDA_SM=$1 CARD_TOOLKIT=$work/cuda-$2 CARGO_TARGET_DIR=$work/target cargo test --quiet --release --locked \
        --manifest-path "$card/Cargo.toml" --test kernels > "$work/kernels-$1.log" 2>&1 || fail "kernels: $(grep -v '^emulated' "$work/kernels-$1.log")"
    echo "sm_$1 with CUDA $2: $(sed -n 's/^test result: ok. \([0-9]* passed\).*/\1/p' "$work/kernels-$1.log") of the kernels' tests"
}

# forward_pass SM TOOLKIT MACHINE KERNELS LIMIT: the forward pass with the kernels that MACHINE asks for, against the CPU.
forward_pass() {
    local sm=$1 toolkit=$2 at=$work/numbers-$1-$3 races=1
    # CubeK's products pass results between lanes without a barrier of their warp.
    [ "$4" = burn ] || races=lanes
    on "$sm" "$toolkit" "$at" timeout 600 "$program" --quiet bench forward "${forward[@]}" -m "$work/$3.toml" --features "$at.bin" --json \
        > "$at.json"
    no_problems "$at"
    grep -q "\"kernels\": \"$4\"" "$at.json" || fail "the kernels are not $4: $(grep kernels "$at.json")"
    echo "sm_$sm with CUDA $toolkit: $4, $(grep -ch ' launch ' "$at"/calls.*.log | sort -n | tail -1) launches"
    "$python" "$card/compare.py" features "$at.bin" "$work/cpu.bin" "$5"
}

# other_families SM TOOLKIT KERNELS: the forward pass of `families` with own kernels, against the CPU.
other_families() {
    local at family name pool layers limit races=lanes
    for family in "${families[@]}"; do
        read -r name pool layers limit <<< "$family"
        at=$work/family-$1-${name##*/}-$pool
        on "$1" "$2" "$at" timeout 300 "$program" --quiet bench forward --checkpoint "$reference/$name" --pool "$pool" --layer "$layers" \
            "${small[@]}" -m "$work/cuda.toml" --features "$at.bin" --json > "$at.json"
        no_problems "$at"
        grep -q "\"kernels\": \"$3\"" "$at.json" || fail "the kernels of $name are not $3: $(grep kernels "$at.json")"
        echo "sm_$1 with CUDA $2: $name, $pool"
        "$python" "$card/compare.py" features "$at.bin" "$work/cpu-${name##*/}-$pool.bin" "$limit"
    done
}

# transfers: each batch is one upload and one download through pinned memory, which later batches use again; their features stay the same.
transfers() {
    local at=$work/transfers kind
    on 90 12.9 "$at" timeout 300 "$program" --quiet bench forward --checkpoint "$work/sample/models/vit-tiny" --rows 36 --batch-size 4 --passes 1 \
        -m "$work/cuda.toml" --features "$at.bin" --json > "$at.json"
    no_problems "$at"
    cmp -n "$(stat -c %s "$work/numbers-90-cuda.bin")" "$at.bin" "$work/numbers-90-cuda.bin" || fail "features change when memory is used again"
    # Nine batches twice, and one to warm up each stream.
    for kind in "HtoD from" "DtoH to"; do
        grep -q "\"copies $kind pinned memory\": 21," "$at"/calls.*.log || fail "$kind pinned memory: $(grep -oh "copies $kind[^,]*" "$at"/calls.*.log)"
    done
    echo "transfers: 21 batches, each uploaded and downloaded once from and to pinned memory"
    on 90 12.9 "$at-pieces" timeout 300 "$program" --quiet bench forward "${pieces[@]}" -m "$work/cuda.toml" --features "$at-pieces.bin" --json \
        > "$at-pieces.json"
    no_problems "$at-pieces"
    "$python" "$card/compare.py" features "$at-pieces.bin" "$work/cpu-pieces.bin" "$forward_limit"
    # Two batches, and one to warm up each stream.
    grep -q '"copies HtoD from pinned memory": 10,' "$at-pieces"/calls.*.log || fail "pieces: $(grep -oh "copies HtoD from[^,]*, " "$at-pieces"/calls.*.log)"
    echo "transfers: 5 batches, each uploaded in two pieces"
}

# assembled SM TOOLKIT: ptxas takes the program's kernels for two blocks of three families, the last one for the CLS token alone, and for the
# head, and none of them spills registers.
assembled() {
    local log part count reports=0 batch="--rows 128 --batch-size 128 --passes 0"
    local -A arguments=(
        [vit]="forward --checkpoint $work/vit-blocks $batch"
        [beit]="forward --checkpoint $work/beit-blocks $batch"
        [dinov3]="forward --checkpoint $work/dinov3-gated-blocks $batch"
        [whole]="head --classes 1000 --batch-size 128 --steps 1"
        [clipped]="head --classes 1000 --batch-size 128 --steps 1 --micro-batch 100 --clip-norm 1"
    )
    for part in "${!arguments[@]}"; do
        log=$work/assembled-$1-$part
        # shellcheck disable=SC2086
        on "$1" "$2" "$log" env EMUCUDA_EXECUTE=0 EMUCUDA_PTXAS="$work/cuda-$2/bin/ptxas" timeout 300 "$program" --quiet bench \
            ${arguments[$part]} -m "$work/cuda.toml" --json > "$log.json"
        no_problems "$log"
        count=$(find "$log/modules" -name '*.ptxas' | wc -l)
        [ "$count" -gt 0 ] || fail "ptxas took no kernel of $part for sm_$1"
        ! grep -l '[1-9][0-9]* bytes spill' "$log"/modules/*.ptxas || fail "kernels for sm_$1 spill registers"
        reports=$((reports + count))
    done
    echo "sm_$1 with CUDA $2: $reports kernels assembled without spills"
}

# head_training SM TOOLKIT MACHINE KERNELS NAME: the head's training with some settings and the kernels that MACHINE asks for, against
# the CPU. `resumed` continues `whole`.
head_training() {
    local sm=$1 toolkit=$2 machine=$3 name=$5 at=$work/numbers-$1-$3-head-$5 file races=1 arguments=${head[$5]:-}
    [ "$4" = burn ] || races=lanes
    [ "$name" != resumed ] || arguments="${head[whole]} --resume $work/numbers-$1-$3-head-whole-saved"
    rm -rf "$at-saved"
    # shellcheck disable=SC2086
    on "$sm" "$toolkit" "$at" timeout 600 "$program" --quiet bench head $arguments -m "$work/$machine.toml" --save "$at-saved" --json \
        > "$at.json"
    no_problems "$at"
    grep -q "\"kernels\": \"$4\"" "$at.json" || fail "the kernels are not $4: $(grep kernels "$at.json")"
    echo "sm_$sm with CUDA $toolkit: head, $name, $4, $(grep -ch ' launch ' "$at"/calls.*.log | sort -n | tail -1) launches"
    "$python" "$card/compare.py" losses "$at.json" "$work/cpu-head-$name.json" "$head_limit"
    for file in head optimizer; do
        "$python" "$card/compare.py" tensors "$at-saved/$file.safetensors" "$work/cpu-head-$name/$file.safetensors" "$head_limit"
    done
}

# dropped_wait: without the wait for its event, a read gives other bytes. This shows that the lazy order finds such a fault.
dropped_wait() {
    rm -f "$work/dropped.bin"
    on 90 12.9 "$work/dropped" env EMUCUDA_IGNORE=cuEventSynchronize timeout 300 "$program" --quiet bench forward "${forward[@]}" \
        -m "$work/cuda.toml" --features "$work/dropped.bin" --json > /dev/null 2>&1 || true
    # Either the card reports it, or the features are others.
    if [ ! -s "$work/dropped/problems.log" ]; then
        [ -s "$work/dropped.bin" ] || fail "dropped wait: neither features nor a problem"
        "$python" "$card/compare.py" differ "$work/dropped.bin" "$work/numbers-90-cuda.bin"
    fi
    echo "dropped wait: noticed"
}

# failure NAME CALLS COMMAND…: a failing call ends the benchmark with exit code 5 and one line.
failure() {
    local name=$1 calls=$2 log=$work/failure code=0 lines
    shift 2
    on 90 12.9 "$log" env EMUCUDA_FAIL="$calls" timeout 300 "$program" --quiet bench "$@" -m "$work/cuda.toml" --json \
        > "$log.json" 2> "$log.err" || code=$?
    lines=$(wc -l < "$log.err")
    [ "$code" -eq 5 ] && [ "$lines" -eq 1 ] || fail "$name: exit code $code, $lines lines instead of 1: $(head -3 "$log.err")"
    echo "$name: $(cat "$log.err")"
}

prepare
inputs
devices
{
    assembled 80 12.4
    kernels 80 12.4
    forward_pass 80 12.4 cuda mma.sync "$forward_limit"
    other_families 80 12.4 mma.sync
    for name in "${!head[@]}"; do
        head_training 80 12.4 cuda mma.sync "$name"
        head_training 90 12.9 cuda wgmma "$name"
    done
    head_training 80 12.4 cuda mma.sync resumed
    head_training 90 12.9 cuda wgmma resumed
    head_training 80 12.4 burn burn whole
} &
other=$!
assembled 90 12.9
kernels 90 12.9
forward_pass 90 12.9 cuda wgmma "$forward_limit"
other_families 90 12.9 wgmma
forward_pass 90 12.9 burn burn "$burn_limit"
transfers
wait "$other"
dropped_wait
failure "out of memory" cuMemAllocAsync:2+:2,cuMemAlloc_v2:1+:2 forward "${forward[@]}"
failure "illegal address" cuLaunchKernel:60:700 forward "${forward[@]}"
failure "lost card" cuMemcpyDtoHAsync_v2:2:999 forward "${forward[@]}"
failure "bad module" cuModuleLoadData:5:218 forward "${forward[@]}"
read -ra whole <<< "${head[whole]}"
failure "illegal address in training" cuLaunchKernel:20:700 head "${whole[@]}"
failure "lost card in training" cuMemcpyDtoHAsync_v2:2:999 head "${whole[@]}"
failure "bad module in training" cuModuleLoadData:3:218 head "${whole[@]}"
