"""Driver of the kit: runs all parts and writes the table. run.sh calls it after finding the CUDA toolkit."""

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict

import flow
import parity
import speed
from common import HERE, Failed, Kit, NoTime, gibi

# In order of importance, checks first: the time limit may cut off the last parts.
# `start` precedes everything that uses the device, because it needs cold caches.
PARTS = [
    ("toolkit", lambda kit: toolkit(kit)),
    ("device", lambda kit: device(kit)),
    ("first features", speed.start),
    ("features", parity.features),
    ("head", parity.head),
    ("resume", parity.resume),
    ("kill -9", flow.killed),
    ("forward", speed.forward),
    ("head speed", speed.head),
    ("ranking", speed.rank),
    ("end to end", flow.end_to_end),
    ("kernels", speed.kernels),
    ("ingest", flow.ingest),
]
# Directories that are not part of the results.
WORK = ["caches", "corpus", "cuda", "head", "parity", "resume", "runs", "scratch", "speed", "stream"]
CHECKS = {"toolkit", "device", "features", "head", "resume", "kill -9", "end to end"}


def device(kit):
    """Compares the device of the binary with that of PyTorch."""
    ours, _ = kit.json("devices", "devices", "--machine", kit.machine(), limit_s=60)
    chosen = ours["chosen"]
    kit.check(
        "the binary chose",
        chosen["kind"] == kit.device,
        f"{chosen['kind']} {chosen['index']}: {chosen['name']} ({chosen['why']})",
        kit.device,
        data=ours,
    )
    if not kit.cuda:
        return
    import torch  # On a CPU only other processes need it.

    card, theirs = torch.cuda.get_device_properties(0), ours["cuda"]["devices"][0]
    capability = f"{card.major}.{card.minor}"
    kit.check(
        "GPU of the binary and of PyTorch",
        (theirs["name"], theirs["compute_capability"]) == (card.name, capability),
        f"{theirs['name']} {theirs['compute_capability']}, {gibi(theirs['memory_bytes'])}",
        f"{card.name} {capability}",
    )


def toolkit(kit):
    """Checks on a GPU that NVRTC compiles kernels and that the driver accepts them."""
    if not kit.cuda:
        return
    if "CUDA_PATH" not in os.environ:
        raise Failed("no CUDA headers in CUDA_PATH, /usr/local/cuda or the packages installed with torch")
    answer = kit.out / "toolkit.json"
    done = kit.run("toolkit", [sys.executable, HERE / "toolkit.py", "probe", answer], 60, kit.binary_env())
    if done.code != 0:
        raise Failed(f"the toolkit check failed: {done.last_words()}")
    found = json.loads(answer.read_text())
    dotted = {name: ".".join(map(str, found[name] or ["none"])) for name in ("nvrtc", "driver")}
    kit.check(
        "NVRTC compiles with the headers",
        not found["message"],
        found["message"][:300] or found["cuda_path"],
        "no message",
    )
    # A driver rejects code of a newer toolkit.
    kit.check(
        "NVRTC is not newer than the driver",
        (found["driver"] or []) >= found["nvrtc"],
        f"NVRTC {dotted['nvrtc']}",
        f"<= {dotted['driver']}",
    )


def run_part(kit, name, part):
    """Runs one part; an error becomes a row, and the kit continues."""
    kit.part = name
    try:
        part(kit)
    except NoTime:
        kit.add("not reached", "the time limit of the kit was reached", "", "FAILED" if name in CHECKS else "not run")
    except Failed as error:
        kit.check("ended early", False, str(error), "an answer")
    except Exception as error:  # For example an unexpected answer or a missing file.
        kit.check("ended early", False, f"{type(error).__name__}: {error}", "an answer")


def sees_card():
    """Whether PyTorch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def versions(kit):
    """Returns device, date and versions."""
    import torch
    import transformers

    name = torch.cuda.get_device_name() if kit.cuda else f"CPU, {platform.processor() or platform.machine()}"
    program = kit.program("version", "--version", limit_s=20).stdout.read_text().strip()
    return {
        "device": f"{name}, {os.cpu_count()} cores",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "program": program,
        "versions": f"torch {torch.__version__}, CUDA {torch.version.cuda}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
        "command": f"tests/gpu/run.sh {kit.binary.name} OUT --device {kit.device}",
    }


def table(head, rows):
    """Returns the table as Markdown."""
    lines = [f"- {key}: {value}" for key, value in head.items()]
    lines += ["", "| part | what | figure | target | verdict | peak memory |", "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        peak = gibi(row.peak_bytes) if row.peak_bytes else ""
        cells = [row.part, row.name, row.figure, row.target, row.verdict, peak]
        lines.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    """Runs the kit; returns exit code 1 if a check failed."""
    arguments = argparse.ArgumentParser(prog="run.sh", description="Checks and measures a release binary on a device.")
    arguments.add_argument("binary", help="the release binary")
    arguments.add_argument("out", help="new directory for all output")
    arguments.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments.add_argument("--budget", type=float, default=465, help="seconds after which no program starts (465)")
    arguments.add_argument(
        "--keep", action="store_true", help="keep models, images and runs, which take gigabytes"
    )
    arguments.add_argument("--only", default="", help="parts to run, separated by commas (all)")
    options = arguments.parse_args()
    wanted = [name for name in options.only.split(",") if name] or [name for name, _ in PARTS]
    if unknown := set(wanted) - {name for name, _ in PARTS}:
        arguments.error(f"unknown part: {', '.join(sorted(unknown))}; known are {', '.join(name for name, _ in PARTS)}")
    kit = Kit(options.binary, options.out, options.device, options.budget)
    if kit.cuda and not sees_card():
        arguments.exit(2, "PyTorch finds no GPU; test the kit without one with --device cpu\n")
    head = versions(kit)
    for name, part in PARTS:
        if name in wanted:
            run_part(kit, name, part)
    for folder in () if options.keep else WORK:
        shutil.rmtree(kit.out / folder, ignore_errors=True)
    text = table(head, kit.rows)
    (kit.out / "results.md").write_text(text)
    (kit.out / "results.json").write_text(json.dumps({**head, "rows": [asdict(row) for row in kit.rows]}, indent=1) + "\n")
    failed = sum(row.verdict == "FAILED" for row in kit.rows)
    print(f"\n{text}\n{failed} failed; results.md, results.json and logs are in {kit.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
