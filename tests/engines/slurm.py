"""Slurm: three nodes on this host, an array of four parts; a node is killed, and a task gets the signal before its limit. See README.md.

python slurm.py PROGRAM FOLDER
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

from common import PARTS, REPOSITORY, compare, pipeline, processes, say, wait_for, write_wrapper

CONF = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket={own}/run/munge
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={own}/state
SlurmdSpoolDir={own}/spool/%n
SlurmctldPidFile={own}/run/slurmctld.pid
SlurmdPidFile={own}/run/slurmd.%n.pid
SlurmctldLogFile={own}/log/slurmctld.log
SlurmdLogFile={own}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=10
InactiveLimit=0
KillWait=10
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobRequeue=1
GresTypes=gpu
NodeName=n[1-3] NodeAddr=127.0.0.1 NodeHostname={host} Port=[17001-17003] CPUs=1 RealMemory=2000 Gres=gpu:1
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP
"""


def output(*command):
    """Returns what a command of Slurm prints; nothing while its daemon does not answer."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def start_munge(own, log):
    """Starts the daemon that signs the messages between the daemons of Slurm, with a key of its own."""
    key = own / "run/munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    files = [f"--{name}-file={own}/run/munge.{name}" for name in ("key", "pid", "seed", "log")]
    subprocess.run(["munged", "--force", f"--socket={own}/run/munge", *files], check=True, stdout=log, stderr=log)


def start_cluster(own):
    """Starts the daemons; returns those of the nodes by name. Each node is a namespace of processes, which ends as a whole."""
    for name in ("state", "spool", "run", "log", "dev"):
        (own / name).mkdir(parents=True)
    (own / "slurm.conf").write_text(CONF.format(host=os.uname().nodename, own=own))
    gres = ""
    for card in range(3):
        # A device that Slurm takes for a card.
        os.mknod(own / f"dev/nvidia{card}", 0o20666, os.makedev(1, 3))
        gres += f"NodeName=n{card + 1} Name=gpu File={own}/dev/nvidia{card} Flags=nvidia_gpu_env\n"
    (own / "gres.conf").write_text(gres)
    os.environ["SLURM_CONF"] = str(own / "slurm.conf")
    log = (own / "log/daemons.log").open("w")
    start_munge(own, log)
    subprocess.Popen(["slurmctld", "-D"], stdout=log, stderr=log)
    namespace = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    nodes = {
        name: subprocess.Popen([*namespace, "slurmd", "-D", "-N", name], stdout=log, stderr=log)
        for name in ("n1", "n2", "n3")
    }
    wait_for(lambda: output("sinfo", "-h", "-o", "%D %T") == "3 idle", 60, "three idle nodes")
    return nodes


def two_stopped(folder):
    """Returns the processes that have stopped themselves, once there are two."""
    found = [process for process, state in processes(folder).items() if state in "Tt"]
    return found if len(found) == 2 else None


def one_left(folder, two):
    """Returns the one of two processes that is left, once the other has ended."""
    found = [process for process in two if process in processes(folder)]
    return found[0] if len(found) == 1 else None


def main():
    program, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    shared = folder.parent
    folder.mkdir()
    os.chdir(folder)
    (folder / "parts.toml").write_text(pipeline(shared / "corpus", folder / "parts"))
    nodes = start_cluster(folder / "slurm")
    say("Slurm is up")
    settings = {"PROGRAM": write_wrapper(program, folder, names=("first", "second")), "CONFIG": "parts.toml", "MACHINE": shared / "machine.toml"}
    for name, value in settings.items():
        os.environ[name] = str(value)
    options = [f"--array=0-{PARTS - 1}%3", "--mem=600", "--cpus-per-task=1", "--time=10", "--output=part-%a.log"]
    job = output("sbatch", "--parsable", *options, str(REPOSITORY / "docker/slurm.sbatch"))
    two = wait_for(lambda: two_stopped(folder), 300, "two processes that have committed two chunks each")
    name, _ = (folder / "first/task").read_text().split()
    nodes[name].kill()
    nodes[name].wait()
    left = wait_for(lambda: one_left(folder, two), 60, "the end of the process on the killed node")
    say(f"node {name} is killed with its job")
    # The signal before the time limit, which Slurm sends to the script alone.
    _, index = (folder / "second/task").read_text().split()
    subprocess.run(["scancel", "--batch", "--signal=TERM", f"{job}_{index}"], check=True)
    os.kill(left, signal.SIGCONT)
    wait_for(lambda: left not in processes(folder), 60, "the end of the process that was asked to stop")
    say(f"task {index} has got the signal before its time limit")
    wait_for(lambda: output("sinfo", "-h", "-n", name, "-o", "%T").startswith("down"), 60, f"{name} is down")
    say(f"Slurm calls {name} down; the queue: {output('squeue', '-h', '-j', job, '-o', '%K %T %r').splitlines()}")
    wait_for(lambda: not output("squeue", "-h", "-j", job), 600, "the end of the array")
    states = [
        dict(word.split("=", 1) for word in line.split() if "=" in word)
        for line in output("scontrol", "-o", "show", "job", job).splitlines()
    ]
    ended = {state["ArrayTaskId"]: (state["JobState"], int(state["Restarts"])) for state in states}
    say(f"ended: {ended}")
    assert len(ended) == PARTS and all(state == "COMPLETED" for state, _ in ended.values()), ended
    assert sorted(restarts for _, restarts in ended.values()) == [0, 0, 1, 1], "two tasks had to go back into the queue"
    compare(shared / "whole", folder / "parts")


if __name__ == "__main__":
    started = time.monotonic()
    main()
    say(f"Slurm: {time.monotonic() - started:.0f} s")
