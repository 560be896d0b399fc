"""Compares the rates of inputs on one machine: this program's kinds with each other, and with the libraries that read them.

    pip install webdataset datasets pyarrow torch torchvision pillow
    python tests/peers/photos.py 'PHOTOS/**/*.jpg' PHOTOS_OUT         # shards of photos in TSV
    python tests/peers/inputs.py make 'PHOTOS_OUT/*.csv.gz' DIR       # the same photos as tsv, parquet and webdataset
    python tests/peers/inputs.py compare DIR PROGRAM [ROUNDS]         # interleaved, 5 rounds

`compare` runs PROGRAM to Parquet pixels of 224 px on each kind, and the Python libraries `webdataset` and `datasets` (streaming)
with two workers of a torch DataLoader, which decode and resize with Pillow. It prints the median images/s of each, and their ratios.
All files are read once before the first round, so that the disk does not count.
"""

import base64
import glob
import gzip
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

SIDE, WORKERS = 224, 2


def rows(pattern):
    for path in sorted(glob.glob(pattern)):
        with gzip.open(path, "rt", newline="") as lines:
            yield path, [(url, base64.b64decode(data)) for url, data, _ in (line.split("\t", 2) for line in lines)]


def make(pattern, out):
    import pyarrow
    import pyarrow.parquet
    import webdataset

    for kind in ["tsv", "parquet", "webdataset"]:
        os.makedirs(f"{out}/{kind}", exist_ok=True)
    for number, (_, images) in enumerate(rows(pattern)):
        with open(f"{out}/tsv/{number:05}.tsv", "w") as file:
            for url, data in images:
                file.write(f"{url}\t{base64.b64encode(data).decode()}\tm\n")
        column = pyarrow.array([{"bytes": data, "path": None} for _, data in images])
        table = pyarrow.table({"image": column, "image_url": [url for url, _ in images]})
        # Row groups of 100 rows, as `datasets` writes images.
        pyarrow.parquet.write_table(table, f"{out}/parquet/{number:05}.parquet", row_group_size=100)
        with webdataset.TarWriter(f"{out}/webdataset/{number:05}.tar") as sink:
            for index, (url, data) in enumerate(images):
                sink.write({"__key__": f"{number:05}{index:06}", "jpg": data, "json": {"url": url}})


def program(path, directory, kind):
    ending = {"tsv": "tsv", "parquet": "parquet", "webdataset": "tar"}[kind]
    run = f"{directory}/run"
    shutil.rmtree(run, ignore_errors=True)
    with open(f"{directory}/{kind}.toml", "w") as file:
        file.write(f"[run]\ndir = '{run}'\n[images]\nshards = ['{directory}/{kind}/*.{ending}']\n[preprocess]\nsize_px = {SIDE}\n")
    started = time.time()
    subprocess.run([path, "run", "--config", f"{directory}/{kind}.toml"], check=True, capture_output=True)
    seconds = time.time() - started
    with open(f"{run}/report.json") as file:
        return json.load(file)["images"]["tally"]["kept"] / seconds


def decode(data):
    import numpy
    from PIL import Image

    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def by_webdataset(directory):
    import webdataset

    shards = sorted(glob.glob(f"{directory}/webdataset/*.tar"))
    return webdataset.WebDataset(shards, shardshuffle=False).map(lambda sample: decode(sample["jpg"]))


def by_datasets(directory):
    import datasets

    files = sorted(glob.glob(f"{directory}/parquet/*.parquet"))
    streamed = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    streamed = streamed.cast_column("image", datasets.Image(decode=False))
    return streamed.map(lambda row: {"pixels": decode(row["image"]["bytes"])}, remove_columns=["image", "image_url"])


def library(dataset):
    import torch

    started, count = time.time(), 0
    for _ in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=WORKERS):
        count += 1
    return count / (time.time() - started)


def compare(directory, path, rounds):
    for name in [name for kind in ["tsv", "parquet", "webdataset"] for name in glob.glob(f"{directory}/{kind}/*")]:
        with open(name, "rb") as file:
            while file.read(1 << 24):
                pass
    sides = {
        "tsv": lambda: program(path, directory, "tsv"),
        "parquet": lambda: program(path, directory, "parquet"),
        "webdataset": lambda: program(path, directory, "webdataset"),
        "library webdataset": lambda: library(by_webdataset(directory)),
        "library datasets": lambda: library(by_datasets(directory)),
    }
    rates = {side: [] for side in sides}
    for _ in range(rounds):
        for side, measure in sides.items():
            rates[side].append(measure())
    medians = {side: statistics.median(found) for side, found in rates.items()}
    for side, found in rates.items():
        print(f"{side:20} {medians[side]:8.0f} images/s  ({min(found):.0f} to {max(found):.0f})")
    for side, other, least in [
        ("parquet", "tsv", 0.9),
        ("webdataset", "tsv", 0.9),
        ("webdataset", "library webdataset", 1.5),
        ("parquet", "library datasets", 1.5),
    ]:
        ratio = medians[side] / medians[other]
        print(f"{side} / {other}: {ratio:.2f} (at least {least}: {'yes' if ratio >= least else 'no'})")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(*sys.argv[2:4])
    else:
        compare(sys.argv[2], sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 5)
