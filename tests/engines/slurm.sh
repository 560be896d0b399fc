#!/usr/bin/env bash
# Slurm: three nodes on this host, an array of four parts, a node killed with its job. See README.md.
source "$(dirname "$0")/common.sh"
program=$(realpath "$1") folder=$(realpath -m "$2")
prepare "$program" "$folder"
host=$(hostname) s=$folder/slurm
rm -rf "$s" && mkdir -p "$s"/{state,spool,run,log,dev}
for card in 0 1 2; do mknod "$s/dev/nvidia$card" c 1 3; done
cat >"$s/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$s/state
SlurmdSpoolDir=$s/spool/%n
SlurmctldPidFile=$s/run/slurmctld.pid
SlurmdPidFile=$s/run/slurmd.%n.pid
SlurmctldLogFile=$s/log/slurmctld.log
SlurmdLogFile=$s/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=15
InactiveLimit=0
KillWait=10
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=1
JobRequeue=1
GresTypes=gpu
NodeName=n[1-3] NodeAddr=127.0.0.1 NodeHostname=$host Port=[17001-17003] CPUs=1 RealMemory=2000 Gres=gpu:1
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
CONF
for n in 1 2 3; do echo "NodeName=n$n Name=gpu File=$s/dev/nvidia$((n - 1)) Flags=nvidia_gpu_env"; done >"$s/gres.conf"
export SLURM_CONF=$s/slurm.conf
mkdir -p /run/munge && chown munge: /run/munge
[ -e /etc/munge/munge.key ] || { dd if=/dev/urandom bs=1 count=1024 of=/etc/munge/munge.key status=none; chown munge: /etc/munge/munge.key; chmod 400 /etc/munge/munge.key; }
own=()
if ! munge -n >/dev/null 2>&1; then runuser -u munge -- munged --foreground & own+=($!); sleep 1; fi
slurmctld -D >/dev/null 2>&1 & own+=($!)
declare -A node
for n in 1 2 3; do slurmd -D -N "n$n" >/dev/null 2>&1 & node[$n]=$!; done
trap 'kill "${own[@]}" "${node[@]}" 2>/dev/null || true' EXIT
for _ in $(seq 60); do [ "$(sinfo -h -o %T 2>/dev/null | sort -u)" = idle ] && break; sleep 0.5; done

job=$(PROGRAM=$program CONFIG=parts.toml MACHINE=machine.toml sbatch --parsable --array=0-3%3 --mem=600 --cpus-per-task=1 \
  --time=10 --output="$s/log/part-%a.log" "$repository/docker/slurm.sbatch")
# The processes of a node carry its name in their environment.
on_node() {
  for p in /proc/[0-9]*; do
    if { tr "\0" "\n" <"$p/environ" | grep -qx "SLURMD_NODENAME=$1"; } 2>/dev/null; then basename "$p"; fi
  done
}
for _ in $(seq 600); do
  mapfile -t victims < <(on_node n2)
  [ "${#victims[@]}" -gt 0 ] && [ "$(find parts/journal/features -name '*.json' 2>/dev/null | wc -l)" -ge 2 ] && break
  sleep 0.1
done
steps=$(for p in "${victims[@]}"; do awk '/^PPid/{print $2}' "/proc/$p/status" 2>/dev/null; done | sort -u |
  while read -r p; do if grep -q slurmstepd "/proc/$p/cmdline" 2>/dev/null; then echo "$p"; fi; done)
echo "$(date +%T) killing node n2: slurmd ${node[2]}, steps $steps, jobs ${victims[*]}"
# shellcheck disable=SC2086
kill -9 "${node[2]}" $steps "${victims[@]}" 2>/dev/null || true
for _ in $(seq 480); do
  [ -z "$(squeue -h -j "$job" 2>/dev/null)" ] && break
  sleep 0.5
done
scontrol show job "$job" | grep -E "ArrayTaskId|JobState|Restarts" | tr -s ' ' | paste - - || true
compare
