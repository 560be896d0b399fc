"""Code shared by all parts: settings, programs with a time limit, and the rows of the table."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
MIB = 1 << 20


class Failed(Exception):
    """A program failed, gave no usable answer or exceeded its time limit; it becomes a row of the table."""


class NoTime(Exception):
    """The time limit of the kit was reached."""


@dataclass
class Row:
    """One row of the table."""

    part: str
    name: str
    figure: str
    target: str
    verdict: str
    peak_bytes: int | None = None
    data: dict = field(default_factory=dict)


@dataclass
class Finished:
    """Exit code, output, duration and peak memory of a program."""

    code: int
    stdout: Path
    stderr: Path
    seconds: float
    peak_bytes: int

    def last_words(self):
        """Returns the last line of standard error."""
        lines = self.stderr.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "nothing on standard error"


class Kit:
    """Settings, time limit and table of the kit."""

    def __init__(self, binary, out, device, budget_s):
        self.binary, self.out, self.device = Path(binary), Path(out), device
        self.cuda = device == "cuda"
        self.deadline = time.monotonic() + budget_s
        self.rows, self.part = [], ""
        self.images_per_s = 0.0  # Rate of the forward pass, set by its part.
        self.scratch = self.folder("scratch")
        # Private caches of the driver's compiler, PyTorch's compiler and transformers, so that cold caches are cold.
        variables = ("CUDA_CACHE_PATH", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME")
        self.caches = {name: str(self.folder("caches") / name.lower()) for name in variables}

    def folder(self, name):
        """Creates a directory in OUT and returns its path."""
        path = self.out / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def pick(self, cuda, cpu):
        """Returns the size for a GPU, or the tiny one for the CPU."""
        return cuda if self.cuda else cpu

    def left(self):
        """Returns the seconds until the time limit."""
        return self.deadline - time.monotonic()

    # -- rows ------------------------------------------------------------------------------------------------------

    def add(self, name, figure, target, verdict, peak_bytes=None, data=None):
        """Adds a row and prints it."""
        row = Row(self.part, name, figure, target, verdict, peak_bytes, data or {})
        self.rows.append(row)
        print(f"[{self.left():4.0f} s left] {verdict:>14}  {self.part}: {name}: {figure}", flush=True)

    def check(self, name, passed, figure, target, peak_bytes=None, data=None):
        """Adds a check."""
        self.add(name, figure, target, "ok" if passed else "FAILED", peak_bytes, data)

    def goal(self, name, met, figure, target, peak_bytes=None, data=None):
        """Adds a performance goal, which does not apply on a CPU."""
        verdict = ("goal met" if met else "goal missed") if self.cuda else "not applicable"
        self.add(name, figure, target, verdict, peak_bytes, data)

    def measured(self, name, figure, peak_bytes=None, data=None):
        """Adds a figure without a target."""
        self.add(name, figure, "", "measured", peak_bytes, data)

    # -- programs --------------------------------------------------------------------------------------------------

    def run(self, name, argv, limit_s, env=None, stop_when=None):
        """Runs a program until it ends, or kills it when `stop_when()` is true; its output goes to OUT/logs.

        Raises `Failed` if it exceeds its limit. The caller checks the exit code.
        """
        limit_s = min(limit_s, self.left())
        if limit_s < 1:
            raise NoTime
        logs = self.folder("logs")
        stdout, stderr = logs / f"{name}.out", logs / f"{name}.err"
        began, watch = time.monotonic(), MemoryWatch(self.cuda)
        # Threads of torch spin while they wait for each other, so that on busy cores none of them gets on.
        waiting = {} if self.cuda else {"OMP_WAIT_POLICY": "PASSIVE"}
        with stdout.open("wb") as to, stderr.open("wb") as errors:
            process = subprocess.Popen(
                [str(part) for part in argv],
                stdout=to,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **waiting, **self.caches, **(env or {})},
                start_new_session=True,
            )
            try:
                status = self._wait(process, began + limit_s, watch, stop_when)
            except BaseException:
                kill_group(process)
                process.wait()
                raise
        if status is None:
            raise Failed(f"`{name}` was stopped after {limit_s:.0f} s")
        return Finished(status, stdout, stderr, time.monotonic() - began, watch.peak)

    def _wait(self, process, until, watch, stop_when):
        """Waits for a program; returns its exit code, or None if it exceeded its limit and was killed."""
        late = False
        while process.poll() is None:
            watch.look(process.pid)
            late = late or time.monotonic() > until
            if late or (stop_when and stop_when()):
                kill_group(process)
            time.sleep(0.02 if self.cuda else 0.005)
        return None if late else process.returncode

    def binary_env(self):
        """Returns the environment of the binary. Only the binary gets this NVRTC; torch has its own."""
        paths = [os.environ.get("KIT_LIBRARY_PATH"), os.environ.get("LD_LIBRARY_PATH")]
        joined = ":".join(filter(None, paths))
        return {"LD_LIBRARY_PATH": joined} if joined else {}

    def program(self, name, *arguments, limit_s=120, env=None, stop_when=None):
        """Runs the binary with `--json`."""
        argv = [self.binary, "--json", *arguments]
        return self.run(name, argv, limit_s, {**self.binary_env(), **(env or {})}, stop_when)

    def json(self, name, *arguments, **options):
        """Runs the binary; returns its JSON output and its `Finished`."""
        done = self.program(name, *arguments, **options)
        if done.code != 0:
            raise Failed(f"`{name}` ended with exit code {done.code}: {done.last_words()}")
        try:
            return json.loads(done.stdout.read_text()), done
        except ValueError as error:
            raise Failed(f"`{name}` gave no JSON: {error}") from None

    def bench(self, name, kind, *arguments, **options):
        """Runs `bench KIND` on the device of the kit."""
        return self.json(name, "bench", kind, "--machine", self.machine(), *arguments, **options)

    def torch(self, name, module, job, limit_s=120):
        """Runs a job of `module` in a new Python process, which frees its device memory; returns its answer."""
        folder = self.folder("logs")
        task, answer = folder / f"{name}.job.json", folder / f"{name}.answer.json"
        task.write_text(json.dumps({**job, "device": self.device}, default=str))
        done = self.run(name, [sys.executable, HERE / module, task, answer], limit_s)
        if done.code != 0 or not answer.exists():
            raise Failed(f"`{name}` (torch) ended with exit code {done.code}: {done.last_words()}")
        return json.loads(answer.read_text()), done

    def machine(self, name="machine", **limits):
        """Writes a machine file; returns its path."""
        path = self.folder("config") / f"{name}.toml"
        lines = [
            "[device]",
            f'kind = "{self.device}"',
            "index = 0",
            "[scratch]",
            f"dir = {json.dumps(str(self.scratch))}",
        ]
        lines += ["[limits]", *(f"{key} = {json.dumps(value)}" for key, value in limits.items())]
        path.write_text("\n".join(lines) + "\n")
        return path


class MemoryWatch:
    """Peak memory of a program: GPU memory beyond what was in use before, or resident memory on a CPU."""

    def __init__(self, cuda):
        self.cuda, self.peak = cuda, 0
        self.start = used_device_bytes() if cuda else 0

    def look(self, pid):
        """Takes one sample."""
        used = used_device_bytes() if self.cuda else peak_resident_bytes(pid)
        self.peak = max(self.peak, used - self.start)


def used_device_bytes():
    """Returns the bytes of GPU memory in use by all programs."""
    import torch  # Only with a GPU: the import creates a context on it.

    free, total = torch.cuda.mem_get_info()
    return total - free


def peak_resident_bytes(pid):
    """Returns the peak resident memory of a process in bytes; 0 after it ended.

    `wait4` is not used: its figure includes the memory of this process before `exec`.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def kill_group(process):
    """Kills a program and its children with SIGKILL."""
    with contextlib.suppress(ProcessLookupError):  # The program ended already.
        os.killpg(process.pid, signal.SIGKILL)


def gibi(count):
    """Formats bytes as MiB or GiB."""
    return f"{count / (1 << 30):.2f} GiB" if count >= 1 << 30 else f"{count / MIB:.0f} MiB"


def job_main(jobs):
    """Main function of a module with torch jobs: reads JOB.json, writes ANSWER.json."""
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(jobs[job.pop("job")](**job)))
