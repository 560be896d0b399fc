"""Prints what the text head of tests/real/run.sh scores beside chance and beside a head of classes, and holds it to some of it.

    python tests/real/judge_text.py REPORT CLASSES_REPORT CORPUS
"""

import json
import math
import sys

TRAINED = {"en", "de", "fr", "es", "ja", "ru", "el", "pl", "nl", "pt"}

report, classes, corpus = json.load(open(sys.argv[1])), json.load(open(sys.argv[2])), sys.argv[3]
text = report["prediction"]["text"]
test, held_out = text["test"], text["held_out"]


def chance(captions):
    return sum(1 / math.log2(rank + 1) for rank in range(1, 6)) / captions


def line(name, group, captions):
    scores = ", ".join(f"{kind} {group[kind]['ndcg5']:.4f}" for kind in ("pixels", "names", "both") if group.get(kind))
    print(f"{name:46} {scores}; chance {chance(captions):.4f}, {group['questions']} questions")


def pooled(groups, kinds=("pixels", "names", "both")):
    count = sum(group["questions"] for group in groups)
    mean = lambda kind: sum(group[kind]["ndcg5"] * group["questions"] for group in groups) / count
    return {"questions": count, **{kind: {"ndcg5": mean(kind)} for kind in kinds if groups[0].get(kind)}}


print(f"NDCG@5 among {test['captions']} captions in 77 locales, for test images that are in no train row:")
for group in test["groups"]:
    line("  " + group["name"], group, test["captions"])
taught = [group for group in test["by_language"] if group["name"] in TRAINED]
others = [group for group in test["by_language"] if group["name"] not in TRAINED]
line("  languages trained on", pooled(taught), test["captions"])
line("  languages never trained on", pooled(others), test["captions"])
print("NDCG@5 among the captions of a language, for images held out from training:")
for group in held_out["by_language"]:
    line("  " + group["name"], group, group["captions"])
other = classes["prediction"]["scores"]
print(f"a head of classes on the same features: NDCG@5 {other['ndcg5']:.4f}; chance {other['ndcg5_chance']:.5f}, {other['ids']} questions")

pixels = test["groups"][0]["pixels"]["ndcg5"]
never = pooled(others)["pixels"]["ndcg5"]
within = pooled(held_out["by_language"])["pixels"]["ndcg5"]
expected = {
    "pixels are ten times as good as chance": pixels > 10 * chance(test["captions"]),
    "so they are in languages never trained on": never > 10 * chance(test["captions"]),
    "within a language they are five times as good": within > 5 * chance(held_out["by_language"][0]["captions"]),
    "the head of classes knows less": pixels > other["ndcg5"],
}
failed = [name for name, holds in expected.items() if not holds]
sys.exit(f"does not hold: {', '.join(failed)}" if failed else 0)
