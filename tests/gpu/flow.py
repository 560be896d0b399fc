"""Runs of the complete program: killed and resumed, streaming images to the device, and reading alone."""

import base64
import gzip
import json
import os
import shutil
import struct
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from common import Failed
from speed import bench_checkpoint

WAITED_GOAL = 0.02


def toml(sections):
    """Returns the text of a configuration file."""
    lines = []
    for name, keys in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def corpus(kit):
    """Renders the synthetic corpus once; returns its directory."""
    folder = kit.out / "corpus"
    if not folder.exists():
        sizes = ["--train-images", kit.pick(2400, 400), "--test-images", 20]
        kit.json("sample", "sample", "--out", folder, *sizes)
    return folder


def work(kit, name, pipeline, machine, run_dir, limit_s, stop_when=None):
    """Runs a pipeline in `run_dir`; returns its `Finished`."""
    path = kit.folder("config") / f"{name}.toml"
    path.write_text(toml({"run": {"dir": str(run_dir), "seed": 1}, **pipeline}))
    return kit.program(name, "run", "--config", path, "--machine", machine, limit_s=limit_s, stop_when=stop_when)


def report(name, done, run_dir):
    """Returns the report of a run that must have succeeded."""
    if done.code != 0:
        raise Failed(f"`{name}` ended with exit code {done.code}: {done.last_words()}")
    return json.loads((run_dir / "report.json").read_text())


# -- killed and resumed --------------------------------------------------------------------------------------------


def training(kit):
    """Returns a pipeline whose training is long enough to be killed in the middle."""
    data = corpus(kit) / "data"
    return {
        "captions": {"list": str(data / "test_caption_list.csv")},
        "pairs": {"shards": [str(data / "train-*-of-00005.tsv")]},
        "images": {"shards": [str(data / "image_data_train/image_pixels/*.csv.gz")]},
        "model": {"checkpoint": str(corpus(kit) / "models/vit-tiny"), "precision": "bf16"},
        "train": {
            "epochs": kit.pick(60, 80),
            "batch_size": 64,
            "learning_rate": 0.1,
            "checkpoint_every": "50 ms",
            "log_every": 10,
        },
    }


def killed(kit):
    """Kills a run after its first quarter; the same command resumes and ends with the same loss."""
    pipeline, machine = training(kit), kit.machine()
    whole_dir, killed_dir = kit.folder("runs") / "whole", kit.folder("runs") / "killed"
    before = report("kill-whole", work(kit, "kill-whole", pipeline, machine, whole_dir, 90), whole_dir)
    whole = before["training"]

    def saved():
        return max(
            (int(path.name[5:]) for path in (killed_dir / "checkpoints").glob("step-*") if path.name[5:].isdigit()),
            default=0,
        )

    done = work(kit, "kill-killed", pipeline, machine, killed_dir, 90, stop_when=lambda: saved() > whole["steps"] / 4)
    at = saved()
    kit.check(
        "killed in training",
        done.code == -9 and 0 < at < whole["steps"],
        f"exit code {done.code}, checkpoint of step {at} of {whole['steps']}",
        "-9, in the middle",
    )
    done = work(kit, "kill-resumed", pipeline, machine, killed_dir, 90)
    after = report("kill-resumed", done, killed_dir)
    resumed = after["training"]
    own, total = (trained_rows(one) for one in (after, before))
    kit.check("the same command resumes", 0 < own < total, f"{own:,} rows of {total:,}", "some")
    gap = abs(resumed["loss"] - whole["loss"]) / whole["loss"]
    same = resumed["steps"] == whole["steps"] and len(resumed["curve"]) == len(whole["curve"])
    kit.check(
        "exit code 0, all steps, last loss of an uninterrupted run",
        gap <= 0.01 and same,
        f"{resumed['loss']:.4f} and {whole['loss']:.4f} after {resumed['steps']} and {whole['steps']} steps",
        "within 1 %",
        done.peak_bytes,
    )


def trained_rows(report_of_run):
    """Returns the number of rows on which the last process trained."""
    return next(stage["done"] for stage in report_of_run["processes"][-1]["stages"] if stage["name"] == "train")


# -- streams -------------------------------------------------------------------------------------------------------


def drawn_rows(kit):
    """Returns some synthetic training rows with a complete JPEG or PNG, as (base64, page)."""
    rows = []
    for shard in sorted((corpus(kit) / "data/image_data_train/image_pixels").glob("*.csv.gz")):
        with gzip.open(shard) as lines:
            columns = [line.rstrip(b"\n").split(b"\t") for line in lines]
        rows += [(parts[1], parts[2]) for parts in columns if len(parts) == 3 and size_of(parts[1])]
    return rows[:500]


def size_of(encoded):
    """Returns width and height of a JPEG or PNG from its header, or None."""
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError:
        return None
    size = png_size(data) or jpeg_size(data)
    return size if size and max(size) < 10_000 else None


def png_size(data):
    """Returns width and height of a complete PNG, else None."""
    whole = data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24]) if whole else None


def jpeg_size(data):
    """Returns width and height of a complete JPEG, else None."""
    at = 2
    while data[:2] == b"\xff\xd8" and data[-2:] == b"\xff\xd9" and at + 9 < len(data):
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        if 0xC0 <= marker <= 0xC2:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None


def write_shard(path, rows, first, count):
    """Writes one gzipped shard of synthetic rows with distinct URLs."""
    with gzip.open(path, "wb", compresslevel=1) as out:
        for number in range(first, first + count):
            encoded, page = rows[number % len(rows)]
            out.write(b"https://example.org/%09d.jpg\t%s\t%s\n" % (number, encoded, page))


def shards(kit):
    """Writes shards once; returns their directory, the number of images and a description.

    The images last for 20 seconds at the measured rate of the forward pass.
    """
    images = kit.pick(min(80_000, max(10_000, round(20 * kit.images_per_s, -3))), 400)
    rows, folder = drawn_rows(kit), kit.out / "stream"
    if not folder.exists():
        folder.mkdir()
        share = -(-images // kit.pick(32, 4))
        jobs = [
            (folder / f"part-{first:09}.csv.gz", rows, first, min(share, images - first))
            for first in range(0, images, share)
        ]
        # Spawned processes: forking a process with threads and a GPU context is not safe.
        with ProcessPoolExecutor(min(os.cpu_count(), len(jobs)), get_context("spawn")) as pool:
            list(pool.map(write_shard, *zip(*jobs)))
    sizes = [size_of(encoded) for encoded, _ in rows]
    width, height = (sum(side) / len(sizes) for side in zip(*sizes))
    kib = sum(len(encoded) for encoded, _ in rows) / len(rows) * 3 / 4 / 1024
    return folder, images, f"synthetic images, on average {width:.0f} x {height:.0f} px and {kib:.1f} KiB"


def end_to_end(kit):
    """Maps every image of the shards to features on disk: gzip, base64, decode, resize, ViT."""
    folder, images, what = shards(kit)
    run_dir = kit.folder("runs") / "end-to-end"
    pipeline = {
        "images": {"shards": [str(folder / "*.csv.gz")]},
        "model": {"checkpoint": str(bench_checkpoint(kit)), "precision": "bf16"},
    }
    done = work(kit, "end-to-end", pipeline, kit.machine("machine-stream", memory="8 GiB", disk="20 GiB"), run_dir, 100)
    stages = report("end-to-end", done, run_dir)["stages"]
    features = next(stage for stage in stages if stage["name"] == "features (images)")
    waited = next(stage["device_waited"] for stage in stages if "device_waited" in stage)
    kit.check(what, features["done"] == images, f"{features['done']:,} features", f"{images:,}")
    kit.measured("images to features", f"{features['per_second']:,.0f} images/s", done.peak_bytes, {"stages": stages})
    kit.goal(
        "share of time the device waits for data",
        waited < WAITED_GOAL,
        f"{waited:.1%}",
        f"< {WAITED_GOAL:.0%}",
    )


def ingest(kit):
    """Measures reading at 224 px to Parquet: images per second by number of decoder threads."""
    parts = sorted(shards(kit)[0].glob("*.csv.gz"))
    for workers in (count for count in (1, 2, 4, 8, 16) if count <= os.cpu_count()):
        run_dir = kit.folder("runs") / f"ingest-{workers}"
        used = parts[: kit.pick(max(1, workers), len(parts))]
        pipeline = {"images": {"shards": [str(part) for part in used]}, "preprocess": {"size_px": 224}}
        machine = kit.machine(f"machine-ingest-{workers}", cpu_workers=workers, memory="4 GiB")
        done = work(kit, f"ingest-{workers}", pipeline, machine, run_dir, 60)
        stage = report(f"ingest-{workers}", done, run_dir)["stages"][0]
        kit.measured(f"{workers} worker{'s' * (workers > 1)}", f"{stage['per_second']:,.0f} images/s", data=stage)
        shutil.rmtree(run_dir)
