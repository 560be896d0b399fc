#!/usr/bin/env python3
"""Turns Debian's `tuxpaint-stamps-default` into a corpus in the published layout: real pictures, captions in 77 locales.

    apt-get download tuxpaint-stamps-default && dpkg-deb -x tuxpaint-stamps-default_*.deb unpacked
    python3 stamps_corpus.py --stamps unpacked/usr/share/tuxpaint/stamps --out DIR [--holdout 0.2] [--ids-per-image 3]
                             [--trained 150] [--locales N] [--local-titles]

Standard library only; the same package and options give the same bytes. DIR must be absent or empty. Written below DIR:

    train-0000{0..4}-of-00005.tsv                       18 columns, one row for each (image, locale)
    image_data_train/image_pixels/*.csv.gz              eight shards: the images in train, SVG files among them
    image_data_test/image_pixels/*.csv                  two shards: the images held out, in no train file
    test.tsv, truth.csv, test_caption_list.csv          ids of held-out (image, locale) pairs, and their captions
    image_data_trained/image_pixels/*.csv               two shards: some PNG images of the train shards once more
    trained_test.tsv, trained_truth.csv                 ids of those: a score on images that were trained on
    summary.json                                        the counts, also printed

`NAME.txt` beside `NAME.png` or `NAME.svg` holds the captions: line 1 English, then `xx.utf8=caption`. A mirrored picture
(`NAME_mirror.png`) without a text of its own has the one of NAME. Locales are those of the texts; English, which has no
code there, comes as `en`, beside them. The page title is the English name: the caption's first words without its article,
cut before a clause. `--locales N` keeps English and the N most frequent locales. With `--local-titles` each caption has a title of
its own language, cut out of it in the same way, as pages of that language would; and the truths say each caption's language.

The caption list holds the captions of both truths, each as often as a truth names it, in an order of its own. The truth of
a held-out image names its own captions whether or not a train row has them; `summary.json` says for how many it does,
which bounds what a ranker of trained captions can reach.
"""

import argparse
import base64
import collections
import csv
import gzip
import hashlib
import json
import pathlib
import re
import struct
import sys
import urllib.parse

COLUMNS = [
    "language", "page_url", "image_url", "page_title", "section_title", "hierarchical_section_title",
    "caption_reference_description", "caption_attribution_description", "caption_alt_text_description", "mime_type",
    "original_height", "original_width", "is_main_image", "attribution_passes_lang_id", "page_changed_recently",
    "context_page_description", "context_section_description", "caption_title_and_reference_description",
]
TARGET = COLUMNS[-1]
TRAIN_FILES, TRAIN_SHARDS, TEST_SHARDS = 5, 8, 2


def digest(*parts):
    """A number in [0, 2^64) out of strings: what stands in for chance."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


def fraction(*parts):
    return digest(*parts) / 2**64


def captions_of(image):
    """{locale: caption} of an image, or {} where no text belongs to it."""
    names = [image.stem]
    if image.stem.endswith("_mirror"):
        names.append(image.stem.removesuffix("_mirror"))
    texts = [image.with_name(name + ".txt") for name in names]
    text = next((path for path in texts if path.is_file()), None)
    if text is None:
        return {}
    first, *rest = text.read_text(encoding="utf-8").split("\n")
    captions = {"en": first.strip()} if first.strip() else {}
    for line in rest:
        code, mark, caption = line.partition(".utf8=")
        if mark and caption.strip():
            captions.setdefault(code, caption.strip())
    return captions


def title_of(english, image):
    """`A US 25 cent piece ($.25) called a quarter.` gives `US 25 cent piece`."""
    words = re.split(r"[.,;:(!?]| which | that | called | is ", english, maxsplit=1)[0]
    words = re.sub(r"^(An?|The|Some|This)\s+", "", words.strip(), flags=re.IGNORECASE)
    words = words or image.stem.replace("_", " ")
    return words[:1].upper() + words[1:]


def size_of(image, payload):
    """(width, height) as text: from the PNG header; empty for SVG."""
    if payload[:8] == b"\x89PNG\r\n\x1a\n":
        return tuple(map(str, struct.unpack(">II", payload[16:24])))
    return ("", "")


class Image:
    def __init__(self, root, path, locales, local_titles):
        relative = path.relative_to(root).as_posix()
        self.path = path
        self.is_png = path.suffix == ".png"
        self.url = "https://upload.wikimedia.org/stamps/" + urllib.parse.quote(relative)
        self.captions = {code: text for code, text in sorted(captions_of(path).items()) if code in locales}
        english = captions_of(path).get("en", "")
        self.title = title_of(english, path)
        title = (lambda text: title_of(text, path)) if local_titles else (lambda text: self.title)
        self.targets = {code: f"{title(text)} [SEP] {text}" for code, text in self.captions.items()}

    def shard_row(self):
        encoded = base64.b64encode(self.path.read_bytes()).decode()
        return f"{self.url}\t{encoded}\thttps://commons.wikimedia.org/wiki/File:{urllib.parse.quote(self.path.name)}\n"

    def train_rows(self):
        width, height = size_of(self.path, self.path.read_bytes()[:32])
        mime = "image/png" if self.is_png else "image/svg+xml"
        page = urllib.parse.quote(self.title.replace(" ", "_"))
        section = self.path.parent.name
        for code, caption in self.captions.items():
            yield [
                code, f"https://{code}.wikipedia.org/wiki/{page}", self.url, self.title, section,
                f"{self.title} / {section}", caption, "", "", mime, height, width, "true", "true", "false",
                f"{self.title}.\n{caption}", "", self.targets[code],
            ]

    def asked(self, most):
        """The targets that become ids: distinct ones, chosen by hash."""
        chosen = sorted(set(self.targets.values()), key=lambda target: digest("id", self.url, target))
        return chosen[:most]


def write_table(path, delimiter, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_shards(folder, pattern, images, count):
    """Deals the images, in the order of a hash, to `count` shards; `.gz` in the pattern packs them."""
    folder.mkdir(parents=True)
    ordered = sorted(images, key=lambda image: digest("shard", image.url))
    for number in range(count):
        path = folder / pattern.format(number)
        with open(path, "wb") as raw:
            packed = gzip.GzipFile("", "wb", 1, raw, mtime=0) if pattern.endswith(".gz") else raw
            for image in ordered[number::count]:
                packed.write(image.shard_row().encode())
            if packed is not raw:
                packed.close()


def write_questions(out, prefix, images, most, languages):
    """`test.tsv` and `truth.csv`, ids in the order of a hash. Returns [(url, target)]."""
    asked = [(image.url, target) for image in images for target in image.asked(most)]
    asked.sort(key=lambda pair: digest("order", prefix, *pair))
    of = {(image.url, target): code for image in images for code, target in reversed(image.targets.items())}
    write_table(out / f"{prefix}test.tsv", "\t", ["id", "image_url"], [(i, url) for i, (url, _) in enumerate(asked)])
    rows = [(i, target, of[url, target])[: 3 if languages else 2] for i, (url, target) in enumerate(asked)]
    write_table(out / f"{prefix}truth.csv", ",", ["id", TARGET, "language"][: 3 if languages else 2], rows)
    return asked


def arguments():
    parser = argparse.ArgumentParser(description="tuxpaint-stamps-default as a corpus in the published layout")
    parser.add_argument("--stamps", type=pathlib.Path, required=True, help="the unpacked usr/share/tuxpaint/stamps")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder that is absent or empty")
    parser.add_argument("--holdout", type=float, default=0.2, help="share of the images in no train file (by URL)")
    parser.add_argument("--ids-per-image", type=int, default=3, help="most ids of one image")
    parser.add_argument("--trained", type=int, default=150, help="train images to ask for once more")
    parser.add_argument("--local-titles", action="store_true", help="titles in the captions' own languages")
    parser.add_argument("--locales", type=int, default=0, help="keep English and N locales; 0: all")
    args = parser.parse_args()
    if not 0 <= args.holdout < 1 or args.ids_per_image < 1 or args.trained < 0 or args.locales < 0:
        parser.error("--holdout lies in [0, 1), --ids-per-image is at least 1, --trained and --locales at least 0")
    if not args.stamps.is_dir():
        parser.error(f"`{args.stamps}` is not a folder: unpack the package with dpkg-deb -x first")
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"`{args.out}` is not empty: give another folder")
    return args


def main():
    args = arguments()
    paths = sorted(path for path in args.stamps.rglob("*") if path.suffix in (".png", ".svg") and path.is_file())
    counts = collections.Counter(code for path in paths for code in captions_of(path))
    others = sorted((code for code in counts if code != "en"), key=lambda code: (-counts[code], code))
    locales = {"en", *(others[: args.locales] if args.locales else others)}
    images = [Image(args.stamps, path, locales, args.local_titles) for path in paths]
    if not any(image.captions for image in images):
        sys.exit(f"`{args.stamps}` holds no captioned image: is it usr/share/tuxpaint/stamps?")

    held = [image for image in images if fraction("holdout", image.url) < args.holdout]
    train = [image for image in images if fraction("holdout", image.url) >= args.holdout]
    # Asked for again are only images that a reader can use and that have a caption; SVG is in the shards to be refused.
    usable = [image for image in train if image.is_png and image.captions]
    trained = sorted(usable, key=lambda image: digest("trained", image.url))[: args.trained]

    args.out.mkdir(parents=True, exist_ok=True)
    rows = [row for image in train for row in image.train_rows()]
    rows.sort(key=lambda row: digest("row", row[2], row[0]))
    for number in range(TRAIN_FILES):
        path = args.out / f"train-{number:05}-of-{TRAIN_FILES:05}.tsv"
        write_table(path, "\t", COLUMNS, rows[number::TRAIN_FILES])
    write_shards(args.out / "image_data_train/image_pixels", "train_image_pixels_part-{:05}.csv.gz", train, TRAIN_SHARDS)
    write_shards(args.out / "image_data_test/image_pixels", "test_image_pixels_part-{:05}.csv", held, TEST_SHARDS)
    write_shards(args.out / "image_data_trained/image_pixels", "trained_image_pixels_part-{:05}.csv", trained, TEST_SHARDS)
    held_ids = write_questions(args.out, "", held, args.ids_per_image, args.local_titles)
    trained_ids = write_questions(args.out, "trained_", trained, args.ids_per_image, args.local_titles)
    listed = [target for _, target in held_ids + trained_ids]
    order = sorted(range(len(listed)), key=lambda place: digest("list", str(place), listed[place]))
    write_table(args.out / "test_caption_list.csv", ",", [TARGET], [[listed[place]] for place in order])

    taught = {row[-1] for row in rows}
    taught_png = {target for image in usable for target in image.targets.values()}
    summary = {
        "images": len(images),
        "png": sum(image.is_png for image in images),
        "svg": sum(not image.is_png for image in images),
        "images_without_caption": sum(not image.captions for image in images),
        "locales": len(locales),
        "train_images": len(train),
        "train_png": sum(image.is_png for image in train),
        "train_rows": len(rows),
        "train_captions_distinct": len(taught),
        "train_captions_of_png_distinct": len(taught_png),
        "held_out_images": len(held),
        "held_out_png": sum(image.is_png for image in held),
        "held_out_ids": len(held_ids),
        "held_out_ids_whose_caption_is_in_train": sum(target in taught for _, target in held_ids),
        "held_out_ids_of_png_whose_caption_is_in_train": sum(
            target in taught_png for image in held if image.is_png for target in image.asked(args.ids_per_image)
        ),
        "held_out_ids_of_svg": sum(len(image.asked(args.ids_per_image)) for image in held if not image.is_png),
        "trained_images": len(trained),
        "trained_ids": len(trained_ids),
        "listed_captions": len(listed),
        "listed_captions_distinct": len(set(listed)),
    }
    text = json.dumps(summary, indent=2)
    (args.out / "summary.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
