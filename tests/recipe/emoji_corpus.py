#!/usr/bin/env python3
"""Makes a corpus of emoji: drawings by four hands, captions in 18 languages.

    npm pack cldr-annotations-full@48.2.0 emoji-datasource-{apple,twitter,google,facebook}@16.0.0
    python3 emoji_corpus.py PACKAGES OUT

Standard library only; the same packages give the same bytes. PACKAGES holds the files of `npm pack`. 750 things are chosen by hash:
600 seen and 150 unseen. The drawings of three hands of the seen things are the training images, with captions in ten languages.
The drawings of the fourth hand (apple) are the test images, with captions in eight other languages. If PACKAGES/more has the files of
emoji-datasource-messenger@4.1.0, emojione-assets@4.5.0 and emoji-datasource-google@3.0.0, what these three hands drew of the seen things
is among the training images too.

    train.tsv, train_image_pixels/*.csv      pairs and images in the published layout
    seen.*, unseen.*                         .csv images, .tsv ids, .truth.csv right captions with language, .list.csv captions to rank
"""

import base64
import csv
import hashlib
import json
import pathlib
import sys
import tarfile

HANDS, TEST_HAND = ["twitter", "google", "facebook"], "apple"
TAUGHT = ["en", "de", "fr", "es", "ja", "ru", "el", "pl", "nl", "pt"]
ASKED = ["it", "tr", "ko", "ar", "hi", "sv", "vi", "fi"]
# Things need names in these languages, too.
OTHERS = ["zh", "cs", "th", "hu", "id", "uk", "ro", "fa", "bn", "he", "da", "sw"]
SEEN, UNSEEN, SHARDS = 600, 150, 6
# Older packages, in PACKAGES/more: the hand, the package, and the folder of the drawings in it.
MORE_HANDS = [
    ("messenger", "emoji-datasource-messenger", "/64/"),
    ("emojione", "emojione-assets", "png/64/"),
    ("google-old", "emoji-datasource-google", "/64/"),
]
TARGET = "caption_title_and_reference_description"


def digest(*parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read(packages, name, wanted):
    """The files of a package whose names `wanted` maps to a key, by that key."""
    (path,) = packages.glob(f"{name}-[0-9]*.tgz")
    with tarfile.open(path) as archive:
        return {wanted(own.name): archive.extractfile(own).read() for own in archive if wanted(own.name)}


def captions_of(packages):
    """{language: {emoji: name}} with names that no two emoji of a language share."""
    languages = TAUGHT + ASKED + OTHERS
    name_of = lambda path: path.split("/")[-2] if path.endswith("/annotations.json") and path.split("/")[-2] in languages else None
    captions = {}
    for language, text in read(packages, "cldr-annotations-full", name_of).items():
        found = json.loads(text)["annotations"]["annotations"]
        names = {emoji: own["tts"][0] for emoji, own in found.items() if own.get("tts")}
        often = {}
        for name in names.values():
            often[name.lower()] = often.get(name.lower(), 0) + 1
        captions[language] = {emoji: name for emoji, name in names.items() if often[name.lower()] == 1}
    missing = set(languages) - set(captions)
    if missing:
        sys.exit(f"the package has no captions in {sorted(missing)}")
    return captions


def things(packages, captions):
    """Things that all hands drew and that all languages name, in the order of a hash: (file name, emoji)."""
    listed = json.loads(read(packages, f"emoji-datasource-{TEST_HAND}", lambda name: name.endswith("package/emoji.json") or None)[True])
    found = []
    for own in listed:
        if own["category"] in ("Flags", "Component") or not all(own[f"has_img_{hand}"] for hand in HANDS + [TEST_HAND]):
            continue
        codes = [int(code, 16) for code in own["unified"].split("-")]
        emoji = "".join(map(chr, codes)).replace("\ufe0f", "")
        if all(emoji in names for names in captions.values()):
            found.append((own["image"], emoji))
    return sorted(found, key=lambda thing: digest("thing", thing[1]))


def write(path, delimiter, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def url(hand, image):
    return f"https://emoji.invalid/{hand}/{image}"


def row(hand, image, drawings):
    return f"{url(hand, image)}\t{base64.b64encode(drawings[hand, image]).decode()}\tm\n"


def main():
    packages, out = map(pathlib.Path, sys.argv[1:3])
    captions = captions_of(packages)
    chosen = things(packages, captions)[: SEEN + UNSEEN]
    if len(chosen) < SEEN + UNSEEN:
        sys.exit(f"only {len(chosen)} things have drawings and captions")
    images = {image for image, _ in chosen}
    drawings = {}
    for hand in HANDS + [TEST_HAND]:
        own = lambda name: name.split("/")[-1] if f"img/{hand}/64/" in name and name.split("/")[-1] in images else None
        for image, data in read(packages, f"emoji-datasource-{hand}", own).items():
            drawings[hand, image] = data
    hands = list(HANDS)
    plain = {image.replace("-fe0f", ""): image for image in images}
    for hand, package, folder in MORE_HANDS if (packages / "more").is_dir() else []:
        known = lambda name: plain.get(name.split("/")[-1].replace("-fe0f", "")) if folder in name else None
        drawings |= {(hand, image): data for image, data in read(packages / "more", package, known).items()}
        hands.append(hand)
    (out / "train_image_pixels").mkdir(parents=True)
    seen, unseen = chosen[:SEEN], chosen[SEEN:]
    drawn = ((hand, *thing) for hand in hands for thing in seen if (hand, thing[0]) in drawings)
    training = sorted(drawn, key=lambda own: digest("shard", *own))
    for number in range(SHARDS):
        rows = (row(hand, image, drawings) for hand, image, _ in training[number::SHARDS])
        (out / f"train_image_pixels/part-{number:05}.csv").write_text("".join(rows))
    pairs = [(language, url(hand, image), captions[language][emoji]) for hand, image, emoji in training for language in TAUGHT]
    write(out / "train.tsv", "\t", [("language", "image_url", TARGET), *sorted(pairs, key=lambda pair: digest("pair", *pair))])
    for name, part in [("seen", seen), ("unseen", unseen)]:
        (out / f"{name}.csv").write_text("".join(row(TEST_HAND, image, drawings) for image, _ in part))
        asked = [(url(TEST_HAND, image), captions[language][emoji], language) for image, emoji in part for language in ASKED]
        asked.sort(key=lambda own: digest("id", *own))
        write(out / f"{name}.tsv", "\t", [("id", "image_url"), *((number, own[0]) for number, own in enumerate(asked))])
        truth = ((number, text, language) for number, (_, text, language) in enumerate(asked))
        write(out / f"{name}.truth.csv", ",", [("id", TARGET, "language"), *truth])
        listed = sorted({own[1] for own in asked}, key=lambda text: digest("list", text))
        write(out / f"{name}.list.csv", ",", [(TARGET,), *((text,) for text in listed)])
    print(f"{len(training)} training images, {len(pairs)} pairs, {len(seen)} seen and {len(unseen)} unseen things")


if __name__ == "__main__":
    main()
