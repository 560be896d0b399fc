"""Ray: a cluster of two nodes with a card each, four parts, a node removed while they work. See README.md."""

import os
import pathlib
import subprocess
import sys
import time

import ray
from ray.cluster_utils import Cluster

PARTS = 4
HERE = pathlib.Path(__file__).resolve().parent
program, folder = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2]).resolve()
subprocess.run(["bash", "-c", f". {HERE}/common.sh; prepare {program} {folder}"], check=True)
os.chdir(folder)
os.environ["RAY_process_group_cleanup_enabled"] = "true"

sys.path.insert(0, str(HERE.parent.parent / "docker"))
import ray_job  # noqa: E402

ray.cloudpickle.register_pickle_by_value(ray_job)


def run_part(index):
    """Runs a part as docker/ray_job.py does, from the folder of this test."""
    os.chdir(folder)
    return ray_job.run_part(program, "parts.toml", "machine.toml", index, PARTS)


def running():
    """Returns the processes that work on this run."""
    found = subprocess.run(["pgrep", "-f", f"{program} run parts.toml"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def entries():
    journal = folder / "parts/journal/features"
    return len(list(journal.glob("*.json"))) if journal.is_dir() else 0


cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
)
nodes = [cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
started = time.time()
task = ray.remote(num_cpus=1, num_gpus=1, max_retries=20, retry_exceptions=True)(run_part)
waiting = [task.remote(index) for index in range(PARTS)]
while entries() < 3:
    assert time.time() - started < 120, "no chunk is committed"
    time.sleep(0.1)
before = len(running())
cluster.remove_node(nodes[0], allow_graceful=False)
time.sleep(3)
print(f"{time.time() - started:.1f} s: a node is removed; processes before {before}, after {len(running())}", flush=True)
cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=80 << 20)
codes = ray.get(waiting)
print(f"{time.time() - started:.1f} s: exit codes {codes}, processes left {running()}", flush=True)
ray.shutdown()
cluster.shutdown()
subprocess.run(["bash", "-c", f". {HERE}/common.sh; cd {folder}; compare"], check=True)
assert codes == [0] * PARTS and not running()
