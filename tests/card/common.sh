# Functions of run.sh and long.sh. The caller sets `program` and `work`.

card=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
generations=(75 80 86 89 90 100 103 120)
# A card's results in bf16, which has 8 bits, are not the CPU's in f32. The forward pass of the sample's ViT is off by 1.7 to 1.8 % with this
# program's kernels and by 3 % with burn's, the head's gradients by 0.2 %. PyTorch in bf16 on a CPU is off by 1.8 % (docs/card.md); the
# limit of our kernels is one and a half times that.
forward_limit=0.027
burn_limit=0.04
head_limit=0.01

fail() {
    echo "emulated card: $*" >&2
    exit 1
}

# on SM TOOLKIT LOG COMMAND…: runs a command on a card of a generation; its calls, problems and modules go to LOG. `races` says which
# races are looked for.
on() {
    local sm=$1 toolkit=$work/cuda-$2 log=$3
    shift 3
    rm -rf "$log"
    mkdir -p "$log"
    env EMUCUDA_SM="$sm" EMUCUDA_LOG="$log" EMUCUDA_ORDER=lazy EMUCUDA_RACES="${races:-1}" EMUCUDA_COMPARE=1 CUDA_PATH="$toolkit" WIKICAP_CACHE="$work/cache" \
        LD_LIBRARY_PATH="$work/lib:$toolkit/lib" "$@"
}

# no_problems LOG: fails if the card reported anything, or the program asked for memory of no bytes.
no_problems() {
    [ ! -s "$1/problems.log" ] || fail "problems in $1: $(head -3 "$1/problems.log")"
    ! grep -l 'of no bytes$' "$1"/calls.*.log || fail "$1: an allocation of no bytes"
}

# machine FILE KIND KERNELS: a machine file for the CPU or CUDA.
machine() {
    printf '[limits]\nmemory = "6 GiB"\ndisk = "2 GiB"\n[scratch]\ndir = "%s"\n[device]\nkind = "%s"\nkernels = "%s"\n' "$work/scratch-$2" \
        "$2" "$3" > "$1"
}

# prepare: builds and tests the emulator, and writes toolkits and machine files to the work directory.
prepare() {
    CARGO_TARGET_DIR=$work/target cargo test --quiet --release --locked --manifest-path "$card/Cargo.toml" --lib --test emulator
    CARGO_TARGET_DIR=$work/target cargo build --quiet --release --locked --manifest-path "$card/Cargo.toml"
    mkdir -p "$work/lib"
    cp "$work/target/release/libcuda.so" "$work/lib/libcuda.so"
    ln -sf libcuda.so "$work/lib/libcuda.so.1"
    PYTHON=$python "$card/toolkit.sh" 12.9 "$work/cuda-12.9"
    PYTHON=$python "$card/toolkit.sh" 12.4 "$work/cuda-12.4"
    machine "$work/cpu.toml" cpu auto
    machine "$work/cuda.toml" cuda auto
    machine "$work/burn.toml" cuda burn
}
