"""Checks a synthetic corpus independently: transformers loads its checkpoint, Pillow its images, and a linear head learns it.

    python sample_check.py SAMPLE [--epochs 20] [--batch 64] [--rate 0.05] [--seeds 1 2 3]

SAMPLE is a folder written by `wikicap-pipeline sample --out SAMPLE`. Prints counts of the input and, for each seed, NDCG@5
on the test ids and its maximum. The head is softmax regression on the frozen CLS feature after the final LayerNorm. It is
trained with SGD, momentum 0.9, warm-up over a tenth of the steps and linear decay; each (image, caption) pair is an
example. Exits with 1 if a score is below 0.95 of the maximum.

PyPI: torch transformers pillow numpy
"""
import argparse, base64, collections, csv, glob, gzip, io, math, sys, time

import numpy as np
import torch
from PIL import Image
from transformers import ViTModel

parser = argparse.ArgumentParser()
parser.add_argument("sample")
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--rate", type=float, default=0.05)
parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
args = parser.parse_args()
csv.field_size_limit(1 << 30)
data = args.sample + "/data/"
began = time.time()


def table(path, delimiter):
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.reader(file, delimiter=delimiter))


captions = [row[0].strip() for row in table(data + "test_caption_list.csv", ",")[1:]]
classes = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
labels = collections.defaultdict(set)
for path in sorted(glob.glob(data + "train-*.tsv")):
    for row in table(path, "\t")[1:]:
        if len(row) == 18 and row[17].strip() in classes:
            labels[row[2]].add(classes[row[17].strip()])


def pixels(payload):
    picture = Image.open(io.BytesIO(payload))
    picture.load()
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    elif picture.mode.startswith("I;16") or picture.mode == "I":
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8))
    return np.asarray(picture.convert("RGB").resize((64, 64), Image.BILINEAR))


lost = collections.Counter()
formats = collections.Counter()


def images(pattern, wanted):
    found = {}
    for path in sorted(glob.glob(pattern)):
        opened = gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")
        for line in opened:
            fields = line.rstrip(b"\n").split(b"\t")
            try:
                url = fields[0].decode()
            except UnicodeDecodeError:
                lost["url"] += 1
                continue
            if len(fields) != 3:
                lost["fields"] += 1
            elif url in wanted and url not in found:
                try:
                    payload = base64.b64decode(fields[1], validate=True)
                    found[url] = pixels(payload)
                    with Image.open(io.BytesIO(payload)) as picture:
                        formats[picture.format + " " + picture.mode] += 1
                except Exception as error:
                    lost[type(error).__name__] += 1
    return found


train = images(data + "image_data_train/image_pixels/*.csv.gz", labels)
ids = table(data + "test.tsv", "\t")[1:]
test = images(data + "image_data_test/image_pixels/*.csv", {url for _, url in ids})
truth = {row[0]: classes[row[1].strip()] for row in table(data + "truth.csv", ",")[1:]}
print(f"{len(labels)} labelled URLs, {len(train)} train images, {len(test)} test images, {len(classes)} classes, {len(ids)} ids")
print("lost:", dict(lost), " formats:", dict(formats))

model, loading = ViTModel.from_pretrained(args.sample + "/models/vit-tiny", add_pooling_layer=False, output_loading_info=True)
print("loading:", {key: value for key, value in loading.items() if value})
assert not any(loading.values()), loading
model = model.eval()


def features(found):
    batch = torch.tensor(np.stack(list(found.values()))).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    with torch.no_grad():
        return torch.cat([model(pixel_values=part).last_hidden_state[:, 0] for part in batch.split(256)])


train_features, test_features = features(train), features(test)
place_of = {url: place for place, url in enumerate(test)}
pairs = [(place, label) for place, url in enumerate(train) for label in sorted(labels[url])]
inputs = train_features[[place for place, _ in pairs]]
wanted = torch.tensor([label for _, label in pairs])
between = (inputs - inputs.mean(0)).pow(2).sum(1).mean() / inputs.pow(2).sum(1).mean()
print(f"{len(pairs)} pairs; variance share of the feature energy: {between:.3f}; {time.time() - began:.1f} s so far")

discount = [1 / math.log2(rank + 1) for rank in range(1, 6)]
per_image = collections.Counter(url for _, url in ids if url in place_of)
ceiling = sum(sum(discount[:count]) for count in per_image.values()) / len(ids)
failed = False
for seed in args.seeds:
    started = time.time()
    torch.manual_seed(seed)
    head = torch.nn.Linear(inputs.shape[1], len(classes))
    torch.nn.init.normal_(head.weight, std=0.02)
    torch.nn.init.zeros_(head.bias)
    optimiser = torch.optim.SGD(head.parameters(), args.rate, momentum=0.9)
    steps = args.epochs * math.ceil(len(pairs) / args.batch)
    warm = max(1, round(0.1 * steps))
    step = 0
    for _ in range(args.epochs):
        for part in torch.randperm(len(pairs)).split(args.batch):
            optimiser.param_groups[0]["lr"] = args.rate * min(step / warm, (steps - step) / max(1, steps - warm))
            step += 1
            loss = torch.nn.functional.cross_entropy(head(inputs[part]), wanted[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        best = head(test_features).topk(5).indices.tolist()
    score = 0.0
    for number, url in ids:
        if url in place_of and truth[number] in best[place_of[url]]:
            score += discount[best[place_of[url]].index(truth[number])]
    score /= len(ids)
    failed |= score < 0.95 * ceiling
    print(f"seed {seed}: NDCG@5 {score:.4f} of {ceiling:.4f} ({score / ceiling:.4f}), last loss {loss.item():.3f}, {time.time() - started:.1f} s")
sys.exit(failed)
