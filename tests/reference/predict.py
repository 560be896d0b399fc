"""Creates the reference of `predict`: torch.topk, NDCG@5 in NumPy, and the bytes of csv.writer.

Run:  python tests/reference/predict.py
Needs torch, numpy and safetensors. Writes topk.safetensors, ranked.csv, truth.csv, scores.json, submission.csv and
submission.json to its own directory.
"""

import csv
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
HEADER = ["id", "caption_title_and_reference_description"]


def topk():
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(203, 12, generator=generator)
    bias = torch.randn(203, generator=generator)
    features = torch.randn(17, 12, generator=generator)
    labels = torch.randint(0, 203, (17,), generator=generator)
    logits = torch.nn.functional.linear(features.double(), weight.double(), bias.double())
    values, classes = torch.topk(logits, 5)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    save_file(
        {
            "weight": weight,
            "bias": bias,
            "features": features,
            "labels": labels.int(),
            "classes": classes.int().contiguous(),
            "logits": values.float().contiguous(),
            "loss": loss.float(),
        },
        HERE / "topk.safetensors",
    )


def ndcg():
    rng = np.random.default_rng(3)
    ids, depth, captions = 60, 5, 40
    truth = rng.integers(0, captions, ids)
    ranked = np.stack([rng.permutation(captions)[:depth] for _ in range(ids)])
    # Every second id gets its caption at one of the five ranks.
    for row in range(0, ids, 2):
        if truth[row] not in ranked[row]:
            ranked[row, rng.integers(0, depth)] = truth[row]
    hits = ranked == truth[:, None]
    discount = 1 / np.log2(np.arange(2, depth + 2))
    reciprocal = 1 / np.arange(1, depth + 1)
    scores = {
        "ids": ids,
        "rows": ids * depth,
        "ndcg5": (hits * discount).sum(1).mean(),
        "recall1": hits[:, 0].mean(),
        "recall5": hits.any(1).mean(),
        "mrr": (hits * reciprocal).sum(1).mean(),
        "mean_rank": (hits.argmax(1) + 1)[hits.any(1)].mean(),
        "ranked_ids": hits.any(1).sum(),
    }
    name = [f'Title {c}, "{c}" [SEP] caption\nno. {c}' for c in range(captions)]
    for path, rows in [
        ("truth.csv", [(i, name[truth[i]]) for i in range(ids)]),
        ("ranked.csv", [(i, name[c]) for i in range(ids) for c in ranked[i]]),
    ]:
        with open(HERE / path, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(HEADER)
            writer.writerows(rows)
    (HERE / "scores.json").write_text(json.dumps({k: float(v) for k, v in scores.items()}, indent=1) + "\n")


def submission():
    # No lone "\r": Python before 3.13 leaves it unquoted under this terminator.
    rows = [
        ["0", ["plain", "Title [SEP] ", "", " leading", "trailing "]],
        ["1", ['say "x"', '"', '""', "a,b", ","]],
        ["2", ["two\nlines", "\n", "dos\r\nlines", "tab\there", "semi;colon"]],
        ["3", ["# hash", "'single'", "back\\slash", "1.5", "-7"]],
        ["4", ["\u00a0nbsp", "\ufeffbom", "中文,逗号", "עברית", "🙂"]],
        ["5", ["\u2028line separator", "\x0b", "\x1c", "\x85", "NA"]],
        ["a,b", ["id with a comma"]],
    ]
    with open(HERE / "submission.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for id, captions in rows:
            writer.writerows((id, caption) for caption in captions)
    (HERE / "submission.json").write_text(json.dumps(rows, indent=0) + "\n")


topk()
ndcg()
submission()
