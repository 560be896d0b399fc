#!/usr/bin/env bash
# Long checks on an emulated card, for a quiet machine and some hours: long.sh PROGRAM [PART…]
#
# Parts (default: all): `compile` compiles everything that large sizes need on each generation and assembles it with ptxas; `sizes` compares
# the forward pass of larger ViTs with the CPU; `tuning` does so for ten outcomes of tuning; `run` compares a whole run with one on the CPU.
# WORK=DIR (default `target/card`) keeps toolkits and kernels. docs/card.md has the last results.
set -euo pipefail

[ $# -ge 1 ] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
program=$(realpath "$1")
shift
work=${WORK:-$(dirname "$0")/../../target/card}
mkdir -p "$work"
work=$(realpath "$work")
# shellcheck source=tests/card/common.sh
source "$(dirname "$0")/common.sh"

# vit NAME HIDDEN LAYERS HEADS SIZE_PX PATCH_PX: a random checkpoint.
vit() {
    [ -d "$work/vit-$1" ] || "$python" "$card/make_vit.py" "$work/vit-$1" "${@:2}"
}

# spills LOG: how many modules ptxas gave registers too few.
spills() {
    grep -l '[1-9][0-9]* bytes spill' "$1"/modules/*.ptxas 2> /dev/null | wc -l
}

# compile: launches do nothing, so the time is that of NVRTC and ptxas.
compile() {
    local sm log=$work/long-compile
    vit base 768 2 12 224 16
    for sm in "${generations[@]}"; do
        for part in "forward --checkpoint $work/vit-base --rows 384 --passes 1" "head --classes 92366 --dim 768 --batch-size 1024 --steps 12" \
            "rank --classes 92366 --dim 768 --rows 4096"; do
            # shellcheck disable=SC2086
            on "$sm" 12.9 "$log" env EMUCUDA_EXECUTE=0 EMUCUDA_PTXAS="$work/cuda-12.9/bin/ptxas" "$program" --quiet bench $part \
                -m "$work/cuda.toml" --json > "$log.json"
            no_problems "$log"
            echo "sm_$sm ${part%% *}: $(find "$log/modules" -name '*.ptx' | wc -l) modules, $(spills "$log") of them spill"
        done
    done
}

# compare_forward NAME SM ROWS BATCH MACHINE VARIABLES…: features of a checkpoint on a card with the kernels that MACHINE asks for, against
# those of the CPU.
compare_forward() {
    local name=$1 sm=$2 rows=$3 batch=$4 machine=$5 at=$work/long-$1-$2 limit=$forward_limit
    [ "$machine" = burn ] && limit=$burn_limit
    shift 5
    local job=(--checkpoint "$work/vit-$name" --rows "$rows" --batch-size "$batch" --passes 1)
    "$program" --quiet bench forward "${job[@]}" -m "$work/cpu.toml" --precision f32 --features "$at.cpu" --json > /dev/null
    on "$sm" 12.9 "$at" env "$@" "$program" --quiet bench forward "${job[@]}" -m "$work/$machine.toml" --features "$at.bin" --json > "$at.json"
    no_problems "$at"
    echo "$name on sm_$sm, $rows images in batches of $batch${*:+, $*}: $("$python" "$card/compare.py" features "$at.bin" "$at.cpu" "$limit")"
}

sizes() {
    vit small 384 2 6 224 16
    vit base 768 2 12 224 16
    vit large 1024 1 16 224 14
    compare_forward small 90 3 2 cuda
    compare_forward small 80 3 2 cuda
    compare_forward small 120 1 1 cuda
    compare_forward base 90 2 2 cuda
    compare_forward base 90 2 2 burn
    compare_forward base 80 2 2 cuda
    compare_forward large 90 1 1 cuda
}

tuning() {
    local seed
    vit tiny 64 2 4 64 8
    for seed in 1 2 3 4 5 6 7 8 9 10; do
        # Compiled kernels stay; what tuning chose goes.
        find "$work/cache" -type d -name autotune -exec rm -rf {} +
        compare_forward tiny 90 6 3 burn "EMUCUDA_TUNING_SEED=$seed"
    done
}

# run: from shards to a submission; the score must be that of the CPU.
whole_run() {
    local kind out scores=()
    rm -rf "$work/corpus" "$work"/long-run-*
    "$program" --quiet sample --out "$work/corpus" --train-images 200 --test-images 40
    for kind in cpu cuda; do
        out=$work/long-run-$kind
        sed -e '/^\[sample\]/d; /^out = /d' -e "s|demo/run|$out|; s|demo/corpus|$work/corpus|; s|precision = \"f32\"|precision = \"bf16\"|" \
            "$card/../../pipelines/demo.toml" > "$work/long-$kind.toml"
        on 90 12.9 "$out-log" "$program" --quiet run --config "$work/long-$kind.toml" --machine "$work/$kind.toml"
        scores+=("$("$program" evaluate --submission "$out/submission.csv" --truth "$work/corpus/data/truth.csv" --json)")
    done
    no_problems "$work/long-run-cuda-log"
    echo "run on the CPU: ${scores[0]}"
    echo "run on sm_90: ${scores[1]}"
    [ "${scores[0]}" = "${scores[1]}" ] || fail "the scores differ"
}

prepare
[ $# -gt 0 ] || set -- compile sizes tuning run
for part in "$@"; do
    case $part in
        compile | sizes | tuning) "$part" ;;
        run) whole_run ;;
        *) fail "\`$part\` is no part" ;;
    esac
done
