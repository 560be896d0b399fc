"""Runs the parts of a pipeline as tasks of a Ray cluster. The task that completes the last part trains and predicts.

    python docker/ray_job.py pipelines/train.toml --machine config/gpu.toml --parts 16

Ray sets CUDA_VISIBLE_DEVICES, and starts the task of a lost node again; it resumes. `--child` ends a process, after saving, when
its worker dies, which Ray itself may not do (ray #34125). Until it has ended, the run directory's lock keeps a second process out.
"""

import argparse
import signal
import subprocess

import ray

# 1. Exit codes after which a part is tried again: storage, device, stopped, killed.
AGAIN = {4, 5, 130, 137, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}


class TryAgain(Exception):
    """A part ended with an exit code that is worth another try."""


def run_part(program: str, config: str, machine: str | None, index: int, count: int) -> int:
    """Runs one part to its end."""
    command = [program, "run", config, "--part", f"{index}/{count}", "--child", "--quiet"]
    if machine:
        command += ["--machine", machine]
    child = subprocess.Popen(command)
    try:
        code = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    if code in AGAIN:
        raise TryAgain(f"part {index}/{count} ended with exit code {code}")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="pipeline file; its run.dir is on S3 or a file system that all nodes share")
    parser.add_argument("--machine", help="machine file")
    parser.add_argument("--parts", type=int, default=16)  # 2. about twice the number of cards
    parser.add_argument("--gpus", type=float, default=1)  # 3. what a part needs
    parser.add_argument("--cpus", type=float, default=8)
    parser.add_argument("--program", default="wikicap-pipeline")
    parser.add_argument("--address", default=None, help="address of the cluster")
    options = parser.parse_args()
    ray.init(address=options.address)
    task = ray.remote(num_gpus=options.gpus, num_cpus=options.cpus, max_retries=20, retry_exceptions=[TryAgain])(
        run_part
    )
    waiting = [
        task.remote(options.program, options.config, options.machine, index, options.parts)
        for index in range(options.parts)
    ]
    while waiting:
        done, waiting = ray.wait(waiting)
        code = ray.get(done[0])
        if code != 0:
            # Configuration or input: the other parts would fail too.
            for other in waiting:
                ray.cancel(other)
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
