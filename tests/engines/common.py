"""What the tests of the engines share: the pipeline in parts, the first process that stops, waits for facts, the comparison."""

import filecmp
import pathlib
import subprocess
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PARTS = 4
# Files and folders of a run directory that must not depend on the number of processes.
DURABLE = [
    "features",
    "quarantine",
    "journal",
    "checkpoints",
    "predict",
    "catalog",
    "duplicates.parquet",
    "submission.csv",
    "training.csv",
]
# A program for engines: its first processes stop, as if they hung, once they have committed their second chunk.
WRAPPER = """#!/bin/sh
export ENGINE_TEST='{folder}'
for name in {names}; do
  if mkdir "{folder}/$name" 2>/dev/null; then
    export WIKICAP_STOP_AT='{commit} journal/features 2'
    echo "${{SLURMD_NODENAME:-}} ${{SLURM_ARRAY_TASK_ID:-}}" >"{folder}/$name/task"
    break
  fi
done
{start}'{program}' "$@"
"""


def say(text):
    print(f"{time.strftime('%T')} {text}", flush=True)


def wait_for(fact, seconds, what):
    """Waits until `fact` returns something true, and returns that."""
    until = time.monotonic() + seconds
    while not (found := fact()):
        if time.monotonic() > until:
            raise SystemExit(f"after {seconds} s still waiting for: {what}")
        time.sleep(0.05)
    return found


def prepare(program, folder):
    """Renders the corpus and runs the pipeline in one process, in `folder/whole`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [program, "--quiet", "sample", "--out", folder / "corpus", "--train-images", "600", "--test-images", "60"]
    subprocess.run(command, check=True)
    (folder / "machine.toml").write_text('[limits]\nmemory = "600 MiB"\ndisk = "1 GiB"\ncpu_workers = 1\n')
    (folder / "whole.toml").write_text(pipeline(folder / "corpus", folder / "whole"))
    command = [program, "--quiet", "run", folder / "whole.toml", "--machine", folder / "machine.toml"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def pipeline(corpus, run_dir):
    """Returns the demo pipeline for a corpus that exists, with chunks of 40 rows and little training."""
    text = (REPOSITORY / "pipelines/demo.toml").read_text()
    start, end = text.index("[sample]"), text.index("[run]")
    text = text[:start] + text[end:]
    for old, new in [
        ('"demo/run"', f'"{run_dir}"'),
        ("demo/corpus", str(corpus)),
        ("rows = 256", "rows = 40"),
        ("epochs = 10", "epochs = 2"),
    ]:
        assert old in text, old
        text = text.replace(old, new)
    return text


def write_wrapper(program, folder, commit="linked", seen_as=None, names=("first",)):
    """Writes the program for an engine, which sees `folder` as `seen_as`; `commit` is the failpoint after a chunk is committed.

    As many processes stop as there are `names`, each of which is a folder with a file about its process.
    """
    path = folder / "program.sh"
    # The first process of a container cannot stop itself, so that there the program is its child.
    start = "" if seen_as else "exec "
    path.write_text(WRAPPER.format(folder=seen_as or folder, program=program, commit=commit, start=start, names=" ".join(names)))
    path.chmod(0o755)
    return path


def processes(folder):
    """Returns the processes of the program in this test: their number and state."""
    mark, found = f"ENGINE_TEST={folder}".encode(), {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
    return found


def stopped(folder):
    """Returns the process that has stopped itself, if any."""
    return next((pid for pid, state in processes(folder).items() if state in "Tt"), None)


def compare(whole, parts):
    """Holds every durable file of `parts` against `whole`."""
    different = []
    files = 0
    for name in DURABLE:
        ours = {path.relative_to(whole) for path in [whole / name, *(whole / name).rglob("*")] if path.is_file()}
        theirs = {path.relative_to(parts) for path in [parts / name, *(parts / name).rglob("*")] if path.is_file()}
        assert ours, f"{whole} has no {name}"
        different += sorted(str(path) for path in ours ^ theirs)
        different += [str(path) for path in sorted(ours & theirs) if not filecmp.cmp(whole / path, parts / path, False)]
        files += len(ours)
    if different:
        raise SystemExit(f"these files differ from those of one process: {different[:10]}")
    say(f"all {files} durable files are the bytes of one process")
