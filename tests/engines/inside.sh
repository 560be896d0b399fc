#!/usr/bin/env bash
# The part of run.sh inside its namespaces: inside.sh PROGRAM OUT PYTHON
set -euo pipefail
program=$1 out=$2 python=$3
cd "$(dirname "$0")"

hostname localhost
ip link set lo up
# Slurm's daemons listen only on a machine that has an address beside 127.0.0.1.
ip address add 192.0.2.1/32 dev lo
mount -t tmpfs -o size=512m none /dev/shm

# run NAME COMMAND…: runs a test, and prints its time.
run() {
    local name=$1 since=$SECONDS
    shift
    "$@" > "$out/$name.log" 2>&1 || { echo "== $name FAILED"; tail -40 "$out/$name.log"; return 1; }
    echo "== $name: $((SECONDS - since)) s"
    cat "$out/$name.log"
}

run manifests "$python" manifests.py
run corpus "$python" -c "import common, pathlib; common.prepare(pathlib.Path('$program'), pathlib.Path('$out'))"
# Slurm mostly waits: for the silence of a node, and for two minutes before a task starts again.
run slurm "$python" slurm.py "$program" "$out/slurm" &
slurm=$!
run ray "$python" ray_cluster.py "$program" "$out/ray"
run pods "$python" indexed_job.py "$program" "$out/pods"
wait $slurm
