"""Ray: a cluster of two nodes with a card each, docker/ray_job.py, a node removed while it works. See README.md.

python ray_cluster.py PROGRAM FOLDER
"""

import os
import pathlib
import subprocess
import sys
import time

# No reports over the network; no task is ended for the memory that others take.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_memory_monitor_refresh_ms="0",
    RAY_worker_niceness="0",
    RAY_process_group_cleanup_enabled="true",
)

from common import PARTS, REPOSITORY, compare, pipeline, processes, say, stopped, wait_for, write_wrapper
from ray.cluster_utils import Cluster

STORE = 80 << 20


def main():
    program, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    shared = folder.parent
    folder.mkdir()
    (folder / "parts.toml").write_text(pipeline(shared / "corpus", folder / "parts"))
    wrapper = write_wrapper(program, folder)
    own = {"object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **own})
    node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": STORE}
    nodes = [cluster.add_node(**node) for _ in range(2)]
    say("Ray is up")
    command = [
        sys.executable,
        REPOSITORY / "docker/ray_job.py",
        folder / "parts.toml",
        "--machine",
        shared / "machine.toml",
    ]
    command += ["--parts", str(PARTS), "--cpus", "1", "--program", wrapper, "--address", cluster.address]
    with (folder / "job.log").open("w") as log:
        job = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
    victim = wait_for(lambda: stopped(folder), 300, "a process that has committed two chunks")
    # The worker that started the process is a child of the node's daemon.
    lost = next(node for node in nodes if is_below(victim, node.all_processes["raylet"][0].process.pid))
    cluster.remove_node(lost, allow_graceful=False)
    os.kill(victim, 18)
    say(f"a node is removed with process {victim} at work")
    wait_for(lambda: victim not in processes(folder), 30, "the end of the process, whose node is gone")
    say("the process has ended with its node")
    cluster.add_node(**node)
    code = job.wait(timeout=600)
    if code != 0:
        raise SystemExit(f"the job ended with {code}:\n{(folder / 'job.log').read_text()[-3000:]}")
    assert not processes(folder), f"processes outlive the job: {processes(folder)}"
    say("the job has ended, and no process outlives it")
    cluster.shutdown()
    compare(shared / "whole", folder / "parts")


def is_below(process, ancestor):
    """Returns whether a process is a descendant of another one."""
    while process > 1 and process != ancestor:
        process = int(pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return process == ancestor


if __name__ == "__main__":
    started = time.monotonic()
    main()
    say(f"Ray: {time.monotonic() - started:.0f} s")
