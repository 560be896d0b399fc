"""Holds the counts of a finished run of tests/real/run.sh against the corpus as Python's csv and gzip modules read it,
and prints the scores.

    python tests/real/judge.py REPORT RUN CORPUS
"""

import base64
import csv
import glob
import gzip
import json
import subprocess
import sys

csv.field_size_limit(1 << 30)
report_path, run, corpus = sys.argv[1:4]
report = json.load(open(report_path))


def images(pattern):
    for path in sorted(glob.glob(f"{corpus}/{pattern}")):
        opened = gzip.open(path, "rt", newline="") if path.endswith(".gz") else open(path, newline="")
        with opened as file:
            yield from csv.reader(file, delimiter="\t")


labelled, captions, pairs = set(), set(), 0
for path in sorted(glob.glob(f"{corpus}/train-*-of-00005.tsv")):
    with open(path, newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            pairs += 1
            if row["image_url"] and row["caption_title_and_reference_description"].strip():
                labelled.add(row["image_url"])
                captions.add(row["caption_title_and_reference_description"].strip())

counts = {"rows": 0, "png": 0, "svg": 0}
for url, data, _ in images("image_data_train/image_pixels/*.csv.gz"):
    counts["rows"] += 1
    head = base64.b64decode(data[:64])
    counts["png" if head.startswith(b"\x89PNG") else "svg"] += url in labelled

catalog, tally = report["catalog"], report["images"]["tally"]
expected = {
    "classes": (catalog["classes"], len(captions)),
    "rows of the pairs": (catalog["pair_rows"], pairs),
    "labelled image URLs": (catalog["labelled_images"], len(labelled)),
    "rows of the shards": (tally["rows"], counts["rows"]),
    "usable images": (tally["kept"], counts["png"]),
    "quarantined drawings": (tally["quarantined"].get("unsupported_svg", 0), counts["svg"]),
    "sum of all rows": (tally["kept"] + sum(tally["skipped"].values()) + sum(tally["quarantined"].values()), tally["rows"]),
}
for name, (ours, theirs) in expected.items():
    print(f"{name:24} {ours:8} {'=' if ours == theirs else '≠'} {theirs}")


def scores(name, truth, ids):
    text = subprocess.check_output(
        ["target/release/wikicap-pipeline", "evaluate", "--json", "--submission", f"{run}/{name}.csv",
         "--truth", f"{corpus}/{truth}", "--ids", f"{corpus}/{ids}"]
    )
    return json.loads(text)


chance = sum(1 / __import__("math").log2(rank + 1) for rank in range(1, 6)) / len(captions)
trained = scores("trained", "trained_truth.csv", "trained_test.tsv")
held_out = scores("held-out", "truth.csv", "test.tsv")
for name, score in [("images trained on", trained), ("images held out", held_out)]:
    print(f"{name:24} NDCG@5 {score['ndcg5']:.5f} over {score['ids']} ids, recall@5 {score['recall5']:.4f}; chance {chance:.6f}")

# An image has up to 78 captions that are equally right and only three are asked for, so the score on images that the
# head knows cannot be near 1; it must be far above chance all the same.
failed = [name for name, (ours, theirs) in expected.items() if ours != theirs]
if trained["ndcg5"] < 50 * chance:
    failed.append("the score on images trained on")
sys.exit(f"does not hold: {', '.join(failed)}" if failed else 0)
