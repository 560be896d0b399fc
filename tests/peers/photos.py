"""Creates shards of crops of real photos, 300 px wide like the images of the corpus, for measurements.

    pip install pillow
    python tests/peers/photos.py 'PHOTOS/**/*.jpg' OUT_DIR [COUNT [QUALITY]]

Uses photos of at least 900 px, crops them at random, skips crops without detail, and writes four gzipped shards with COUNT images
in total (8,000). The same photos give the same crops. The figures in README.md use the 39 such photos of Debian 12's packages
gnome-backgrounds, mate-backgrounds, plasma-workspace-wallpapers, ukui-wallpapers and lomiri-wallpapers at quality 93, which gives
22 kB an image.
"""

import base64
import glob
import gzip
import io
import os
import random
import sys

from PIL import Image, ImageStat

PATTERN, OUT = sys.argv[1:3]
COUNT, QUALITY = [int(given) for given in sys.argv[3:]] + [8000, 93][len(sys.argv) - 3 :]
SHARDS, WIDTH, FLAT = 4, 300, 18
ASPECTS = [3 / 2, 3 / 2, 4 / 3, 4 / 3, 3 / 4, 2 / 3, 1, 16 / 9]


def photos():
    """Opens the photos; of a picture in several sizes only the largest."""
    largest = {}
    for path in sorted(glob.glob(PATTERN, recursive=True)):
        with Image.open(path) as image:
            size = image.width * image.height if min(image.size) >= 900 else 0
        picture = path.split("/contents/")[0]
        if "screenshot" not in path and size > largest.get(picture, (0, ""))[0]:
            largest[picture] = (size, path)
    return [Image.open(path).convert("RGB") for _, path in sorted(largest.values())]


def crop(photos):
    """Returns a random crop with detail."""
    while True:
        photo, aspect = random.choice(photos), random.choice(ASPECTS)
        width = random.randint(400, min(photo.width, int(photo.height * aspect), 2400))
        height = int(width / aspect)
        if height > photo.height:
            continue
        x, y = random.randint(0, photo.width - width), random.randint(0, photo.height - height)
        cut = photo.resize((WIDTH, round(WIDTH / aspect)), Image.LANCZOS, box=(x, y, x + width, y + height))
        if ImageStat.Stat(cut.convert("L")).stddev[0] > FLAT:
            return cut


random.seed(7)
sources, total = photos(), 0
if not sources:
    sys.exit(f"no photo of at least 900 px matches {PATTERN}")
os.makedirs(OUT, exist_ok=True)
shards = [gzip.open(f"{OUT}/part-{number:05}.csv.gz", "wt", compresslevel=6) for number in range(SHARDS)]
for number in range(COUNT):
    data = io.BytesIO()
    crop(sources).save(data, "JPEG", quality=QUALITY)
    total += len(data.getvalue())
    text = base64.b64encode(data.getvalue()).decode()
    shards[number % SHARDS].write(f"http://x/{number}.jpg\t{text}\thttp://x/m/{number}\n")
for shard in shards:
    shard.close()
print(f"{len(sources)} photos, {COUNT} crops of {total / COUNT:.0f} bytes")
