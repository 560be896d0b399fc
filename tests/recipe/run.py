#!/usr/bin/env python3
"""Compares recipes of the text head on emoji: NDCG@5 in languages never trained on, for an unseen hand's drawings.

    [LAYERS='[7, 9, 11]'] python3 tests/recipe/run.py PROGRAM WORK [RECIPE…]

WORK holds `corpus` of emoji_corpus.py. DINOv2-small and multilingual-e5-small come from target/real (`tests/real/run.sh prepare`).
LAYERS names blocks of the backbone; other blocks need another WORK. The features are computed once, in WORK/features; each recipe
trains in a copy of that run. An image is ranked among the captions of one language; the score is the mean over the languages. Prints a
line for each recipe; WORK/RECIPE has its reports.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

BASE = """
[run]
dir = "{work}/{name}"
[captions]
list = "{work}/corpus/seen.list.csv"
classes = "train"
[pairs]
shards = ["{work}/corpus/train.tsv"]
[images]
shards = ["{work}/corpus/train_image_pixels/*.csv"]
[chunks]
rows = 256
[model]
checkpoint = "target/real/dinov2-small"
layer = {layer}
pool = "cls+mean"
precision = "f32"
[text]
encoder = "target/real/e5-small"
prefix = "query: "
[head]
kind = "text"
{head}
[train]
validation_fraction = 0.1
{train}
[predict]
images = ["{work}/corpus/seen.csv"]
ids = "{work}/corpus/seen.tsv"
truth = "{work}/corpus/seen.truth.csv"
output = "seen.csv"
checkpoint = "best"
{predict}
"""

LAYERS = os.environ.get("LAYERS", "[5, 7, 9, 11]")
SGD = 'temperature = 0.17\ndropout = 0.2'
STEPS = 'epochs = 40\nbatch_size = 1024\nlearning_rate = 3e-3\nschedule = "cosine"'
SOFTMAX = 'correction = "softmax"\ncorrection_strength = 20'
SINKHORN = 'correction = "sinkhorn"\ncorrection_strength = 30'
RECIPES = {
    "hidden layer, temperature learned": ("hidden = 1024", 'epochs = 20\nschedule = "cosine"', 'correction = "none"'),
    "cca over all blocks, softmax": ('method = "cca"', "", SOFTMAX),
    "cca over all blocks, sinkhorn": ('method = "cca"', "", SINKHORN),
    "cca for each block": ('method = "cca"\nper_layer = true', "", 'correction = "none"'),
    "cca for each block, softmax": ('method = "cca"\nper_layer = true', "", SOFTMAX),
    "cca for each block, sinkhorn": ('method = "cca"\nper_layer = true', "", SINKHORN),
    "cca for each block, correction held-out": ('method = "cca"\nper_layer = true', "", 'correction = "auto"'),
    "trained over all blocks, softmax": (SGD, STEPS, SOFTMAX),
    "trained for each block, softmax": (f"{SGD}\nper_layer = true", STEPS, SOFTMAX),
    "trained for each block, sinkhorn": (f"{SGD}\nper_layer = true", STEPS, SINKHORN),
    "trained for each block, four seeds, sinkhorn": (f"{SGD}\nper_layer = true\nseeds = 4", STEPS, SINKHORN),
    "trained for each block, weights and correction held-out": (
        f'{SGD}\nper_layer = true\nweights = "held-out"', STEPS, 'correction = "auto"'),
}


def call(*args):
    done = subprocess.run([str(arg) for arg in args], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def score(report):
    """Mean over languages of NDCG@5 and of both ends of its interval."""
    groups = report["prediction"]["text"]["test"]["within_language"]
    mean = lambda read: sum(read(group["pixels"]) for group in groups) / len(groups)
    ends = [mean(lambda own, end=end: own["intervals"]["ndcg5"][end]) for end in ("low", "high")]
    return f"{mean(lambda own: own['ndcg5']):.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def main():
    program, work = sys.argv[1], pathlib.Path(sys.argv[2])
    chosen = sys.argv[3:] or list(RECIPES)
    features = work / "features"
    corpus = lambda name: work / "corpus" / name
    other = ["--images", corpus("unseen.csv"), "--ids", corpus("unseen.tsv"), "--truth", corpus("unseen.truth.csv"),
             "--captions", corpus("unseen.list.csv"), "--output", "unseen.csv", "--json"]
    write = lambda name, recipe: (work / f"{name}.toml").write_text(
        BASE.format(work=work, name=name, layer=LAYERS, head=recipe[0], train=recipe[1], predict=recipe[2]))
    write("features", RECIPES["cca over all blocks, softmax"])
    call(program, "run", work / "features.toml", "--json")
    call(program, "predict", work / "features.toml", *other)
    for recipe in chosen:
        name = "".join(letter if letter.isalnum() else "-" for letter in recipe)
        if not (work / name).exists():
            shutil.copytree(features, work / name)
        write(name, RECIPES[recipe])
        seen = call(program, "run", work / f"{name}.toml", "--from", "train", "--json")
        unseen = call(program, "predict", work / f"{name}.toml", *other)
        steps = (seen["training"].get("best") or {}).get("step")
        print(f"{recipe}: seen {score(seen)}, unseen {score(unseen)}, step {steps}", flush=True)


if __name__ == "__main__":
    main()
