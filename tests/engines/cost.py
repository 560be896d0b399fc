"""Measures the CPU time of four parts side by side against that of one process, in turn on the same corpus.

    python cost.py PROGRAM FOLDER [ROUNDS]

The time counts all stages: the catalog, the images, training and prediction. It is CPU time, so other work on the machine hardly matters.
"""

import os
import pathlib
import shutil
import statistics
import subprocess
import sys

from common import PARTS, compare, pipeline, say

LIMIT = 1.1


def cpu_s(processes):
    """Waits for processes; returns the CPU time of all together, in seconds."""
    total = 0
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, f"a process ended with {os.waitstatus_to_exitcode(status)}"
        total += usage.ru_utime + usage.ru_stime
    return total


def main():
    program, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "corpus"
    if not corpus.exists():
        subprocess.run([program, "--quiet", "sample", "--out", corpus, "--train-images", "6000"], check=True)
    (folder / "machine.toml").write_text('[limits]\nmemory = "600 MiB"\ndisk = "1 GiB"\n')
    found = {"whole": [], "parts": []}
    for number in range(rounds):
        for name, seconds in found.items():
            shutil.rmtree(folder / name, ignore_errors=True)
            text = pipeline(corpus, folder / name).replace("rows = 40", "rows = 256")
            (folder / f"{name}.toml").write_text(text)
            command = [program, "--quiet", "run", folder / f"{name}.toml", "--machine", folder / "machine.toml"]
            parts = [["--part", f"{index}/{PARTS}"] for index in range(PARTS)] if name == "parts" else [[]]
            seconds.append(cpu_s([subprocess.Popen(command + part, stdout=subprocess.DEVNULL) for part in parts]))
        compare(folder / "whole", folder / "parts")
        say(f"round {number + 1}: one process {found['whole'][-1]:.2f} s, {PARTS} parts {found['parts'][-1]:.2f} s")
    whole, parts = (statistics.median(seconds) for seconds in found.values())
    say(f"median: {whole:.2f} s and {parts:.2f} s of CPU time, {parts / whole:.3f} times; at most {LIMIT}")
    if parts > LIMIT * whole:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
