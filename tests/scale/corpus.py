"""Writes a synthetic corpus with the row counts, duplicates, URLs and captions of the real one, but tiny images.

Every value is a function of the seed and a row number, so files do not depend on the number of processes or on their order. A row is
assembled from byte strings in lookup tables: numpy computes the indices of a block of rows, and one `bytes.join` makes the text.
"""

import base64
import binascii
import concurrent.futures
import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import struct
import zlib

import numpy as np

BLOCK_ROWS = 40_000
PHRASES = 512
COLOURS = 256
URL_STEMS = 32
SIDE_PX = 8
COLUMNS = (
    "language page_url image_url page_title section_title hierarchical_section_title caption_reference_description "
    "caption_attribution_description caption_alt_text_description mime_type original_height original_width is_main_image "
    "attribution_passes_lang_id page_changed_recently context_page_description context_section_description "
    "caption_title_and_reference_description"
).split()

# Ten words of each script, and the languages that are written in it.
SCRIPTS = {
    "latin": ("church river view of the old town near bridge station portrait", None),
    "cyrillic": ("церковь река вид на старый город мост вокзал портрет карта", "ru uk sr bg be kk mk tt ky ba cv mn tg ce"),
    "arabic": ("كنيسة نهر منظر من المدينة القديمة جسر محطة صورة خريطة", "ar fa arz ur azb ckb ps sd"),
    "hebrew": ("כנסייה נהר מראה של העיר העתיקה גשר תחנה דיוקן מפה", "he yi"),
    "han": ("教堂 河流 旧城 景色 桥 车站 肖像 地图 山 湖", "zh ja zh-TW yue"),
    "hangul": ("교회 강 구시가지 전경 다리 역 초상화 지도 산 호수", "ko"),
    "devanagari": ("चर्च नदी दृश्य पुराना शहर पुल स्टेशन चित्र नक्शा पर्वत", "hi mr ne"),
    "other": ("εκκλησία ποταμός гора ეკლესია եկեղեցի தேவாலயம் చర్చి গির্জা โบสถ์ ಚರ್ಚ್", "el ka hy ta te bn th ml kn si my am pa gu"),
}
# 108 languages, the most frequent first.
LANGUAGES = (
    "en de fr es it ru pl nl pt ja sv zh uk ca cs hu ar ko fi fa no ro tr sr vi he id da bg eu et sk hr el sl hy lt eo gl be arz kk cy "
    "zh-TW ka ms hi th lv az mk ast ta bn bs la ur sq af te uz mr is ml tt nn ba cv br mn sw lb an ga fy io ia jv pa azb ne my si kn "
    "ceb ky gu ckb oc tg sco yi am ce mg war tl ku ps sd als bar nds lmo vec hsb qu yue"
).split()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Row counts and shares of a corpus. The defaults are the real corpus; those marked (assumed) are not published."""

    seed: int = 42
    pair_rows: int = 37_046_386
    pair_files: int = 5
    image_rows: int = 6_477_255
    image_files: int = 200
    captions: int = 16_500_000
    list_rows: int = 92_366
    urls: int = 11_500_000  # distinct image URLs of the pairs, with or without pixels (assumed)
    bad_images: int = 120
    context_bytes: int = 100  # mean; the real corpus has about 1,500
    captioned: float = 0.46  # share of the pair rows with a caption after the title
    with_pixels: float = 0.94  # share of those rows whose image has pixels
    bare_titles: float = 0.2  # share of the distinct captions that are a title alone (assumed)
    duplicate_images: float = 0.001  # share of the image rows that repeat a URL (assumed)
    list_overlap: float = 0.01  # share of the caption list that occurs in the pairs (assumed)
    list_duplicates: float = 0.03  # share of the caption list that repeats an earlier row (assumed)

    def scaled(self, scale):
        """These sizes times `scale`; the number of image files shrinks with its square root, so that files stay files."""
        counts = {name: max(1, round(getattr(self, name) * scale)) for name in ("pair_rows", "image_rows", "captions", "list_rows", "urls")}
        files = max(4, round(self.image_files * scale**0.5))
        return dataclasses.replace(self, **counts, image_files=files, bad_images=max(4, round(self.bad_images * scale)))

    def problem(self):
        """What makes these sizes impossible, or nothing."""
        rows = Rows(self)
        if rows.images < 100 or rows.list_distinct < 10:
            return "the corpus is too small: choose a larger --scale"
        if rows.others < 1 or rows.others > rows.bare_rows // 2:
            return f"--urls must be between {rows.images + 1} and {rows.images + rows.bare_rows // 2}"
        if rows.images > rows.captioned_pixels:
            return f"--images must be at most {rows.captioned_pixels}, the pair rows with a caption and pixels"
        if rows.full > rows.captioned or rows.titles > rows.bare_rows:
            return f"--captions is too large for {self.pair_rows} pair rows"
        if self.pair_rows >= 10**8 or self.urls >= 10**8:
            return "more than 10^8 rows or URLs are not supported"
        return None

    def estimated_bytes(self):
        """Size of the corpus on disk."""
        return self.pair_rows * (430 + self.context_bytes) + self.image_rows * 110


class Rows:
    """Which URL and which caption a row has.

    A pair row is mapped to a slot by a permutation. The slots are, in order: rows with a caption whose image has pixels, rows with a
    caption whose image has none, and rows with a title alone (half of them with pixels). The first slots of a kind name each URL once;
    the others repeat URLs, low numbers most often. Captions are dealt the same way.
    """

    def __init__(self, sizes):
        self.sizes = sizes
        self.images = sizes.image_rows - round(sizes.image_rows * sizes.duplicate_images)
        self.others = sizes.urls - self.images
        self.captioned = round(sizes.pair_rows * sizes.captioned)
        self.captioned_pixels = round(self.captioned * sizes.with_pixels)
        self.bare_rows = sizes.pair_rows - self.captioned
        self.titles = round(sizes.captions * sizes.bare_titles)
        self.full = sizes.captions - self.titles
        self.list_distinct = sizes.list_rows - round(sizes.list_rows * sizes.list_duplicates)
        self.list_overlap = min(self.full, max(4, round(self.list_distinct * sizes.list_overlap)))

    def hash(self, numbers, purpose):
        """Pseudo-random 64-bit integers (SplitMix64)."""
        with np.errstate(over="ignore"):
            z = numbers.astype(np.uint64) + np.uint64((self.sizes.seed * 1_000_003 + purpose) * 0x9E3779B97F4A7C15 % 2**64)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return z ^ (z >> np.uint64(31))

    def choose(self, numbers, purpose, count):
        """Numbers below `count`, all equally likely."""
        return (self.hash(numbers, purpose) % np.uint64(count)).astype(np.int64)

    def chance(self, numbers, purpose):
        """Numbers between 0 and 1."""
        return (self.hash(numbers, purpose) >> np.uint64(11)).astype(np.float64) / 2.0**53

    def skewed(self, numbers, purpose, count):
        """Numbers below `count`, low ones more often: number i with a likelihood of about 1 / √i."""
        return np.minimum((self.chance(numbers, purpose) ** 2 * count).astype(np.int64), count - 1)

    def list_ids(self):
        """The captions of the pairs that the list holds too."""
        return np.arange(self.list_overlap, dtype=np.int64) * (self.full // self.list_overlap)

    def pairs(self, start, end):
        """URL, caption and flags of pair rows."""
        slot = permute(np.arange(start, end, dtype=np.int64), self.sizes.pair_rows)
        captioned = slot < self.captioned
        bare = slot - self.captioned
        with_pixels = np.where(captioned, slot < self.captioned_pixels, bare >= (self.bare_rows + 1) // 2)
        new_url = np.where(captioned, slot < self.images, bare < self.others)
        url = np.where(with_pixels, self.skewed(slot, 1, self.images), self.images + self.skewed(slot, 2, self.others))
        url = np.where(new_url, np.where(captioned, slot, self.images + bare), url)
        order = np.where(captioned, permute(slot, self.captioned), permute(bare, self.bare_rows))
        distinct = np.where(captioned, self.full, self.titles)
        new_caption = order < distinct
        repeated = np.where(captioned, self.skewed(slot, 3, self.full), self.skewed(slot, 4, self.titles))
        caption = np.where(new_caption, order, repeated)
        # Defects hit only rows whose URL and caption occur elsewhere, so that the counts of distinct values stay exact.
        spare = ~new_url & ~new_caption
        defect = self.chance(slot, 5)
        no_url = spare & (defect < 0.001)
        no_target = spare & ~captioned & (defect > 0.998)
        return slot, url, captioned, caption, new_caption, no_url, no_target, with_pixels

    def variant(self, url):
        """URLs that repeat the URL of an image with the other scheme, as http and https both occur."""
        base = url - self.images
        return (base >= 0) & (base < self.images) & (self.choose(url, 6, 500) == 0)

    def colour(self, url):
        """Colour of an image."""
        return self.choose(url, 7, COLOURS)


def permute(numbers, count):
    """A permutation of the numbers below `count` (at most 2^31) that scatters neighbours."""
    step = max(1, int(count * 0.6180339887))
    while np.gcd(step, count) != 1:
        step += 1
    return (numbers * step + count // 3) % count


def table(values):
    """Byte strings that numpy can index."""
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result


def field(text):
    """Text as a field of a tab-separated file: quoted where it must be, quotes doubled."""
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in '"\t\n\r') else text


class Tables:
    """The byte strings that rows are made of."""

    def __init__(self, sizes):
        dice = random.Random(sizes.seed)
        self.digits = table([b"%04d" % number for number in range(10_000)])
        scripts = list(SCRIPTS)
        script_of = {code: number for number, (_, codes) in enumerate(SCRIPTS.values()) for code in (codes or "").split()}
        self.language_script = np.array([script_of.get(code, 0) for code in LANGUAGES])
        weights = 1.0 / np.arange(1, len(LANGUAGES) + 1) ** 0.9
        self.language_ends = np.cumsum(weights / weights.sum())
        self.page_heads = table([f"{code}\thttps://{code}.wikipedia.org/wiki/".encode() for code in LANGUAGES])

        titles, page_names, quotes, phrases, plain, middles, contexts = [], [], [], [], [], [], []
        for script in scripts:
            words = SCRIPTS[script][0].split()

            def text(characters, words=words):
                line = dice.choice(words)
                while len(line) < characters:
                    line += " " + dice.choice(words)
                return line[:1].upper() + line[1:]

            for number in range(PHRASES):
                title = text(dice.randint(3, 30))
                titles.append((title + " ").encode())
                page_names.append((title.replace(" ", "_") + "_").encode())
                phrase = text(min(780, dice.lognormvariate(3.7, 0.75)))
                # Exact shares of each script's phrases.
                kind = number / PHRASES
                if kind < 0.17:
                    phrase = phrase.replace(" ", ", ", 1) if " " in phrase else phrase + ","
                elif kind < 0.188:
                    phrase = '"' + phrase + '"'
                elif kind < 0.203:
                    phrase += "\n" + dice.choice(words)
                elif kind < 0.223:
                    phrase += "\u00a0" + dice.choice(words)
                phrase += " "
                plain.append(phrase)
                quoted = field(phrase)
                quotes.append(b'"' if quoted != phrase else b"")
                phrases.append((quoted[1:-1] if quoted != phrase else phrase).encode())
                section = text(dice.randint(0, 20)) if dice.random() < 0.7 else ""
                middles.append(f"\t{section}\t{section}\t".encode())
                context = text(dice.expovariate(1 / max(1, sizes.context_bytes)))
                if dice.random() < 0.3:
                    context = context.replace(" ", "\n", 1) + ' "' + dice.choice(words) + '"\tend'
                contexts.append(f"{field(context)}\t\t".encode())
        self.titles, self.page_names, self.quotes = table(titles), table(page_names), table(quotes)
        self.phrases, self.plain = table(phrases), plain
        self.middles, self.contexts = table(middles), table(contexts)
        self.title_bytes = np.array([len(title) for title in titles])
        self.phrase_bytes = np.array([len(phrase.encode()) for phrase in plain])
        self.line_ends = table([quote + b"\n" for quote in quotes])
        self.odd_titles, self.odd_title_bytes = table([b"NA", b"null", b"nan"]), np.array([2, 4, 3])

        details = []
        for _ in range(1024):
            attribution = field(
                dice.choice(["", "English: Own work", "English: Own work\nDeutsch: Eigenes Werk", 'from "Archive"', "Author"])
            )
            alt = dice.choice(["", "", "", "", "image"])
            mime = dice.choices(["image/jpeg", "image/png", "image/svg+xml", "image/tiff", "image/gif"], [80, 12, 5, 2, 1])[0]
            height, width = dice.randint(60, 6000), dice.randint(60, 6000)
            height = height if dice.random() < 0.999 else ""
            flags = "\t".join(dice.choice(["true", "false"]) for _ in range(3))
            details.append(f"\t{attribution}\t{alt}\t{mime}\t{height}\t{width}\t{flags}\t".encode())
        self.details = table(details)

        heads = []
        for number in range(URL_STEMS):
            project = dice.choice(["commons", "commons", "commons", "en", "de"])
            # 10 of 32 stems, 31 %, are percent-encoded.
            name = (
                "%D0%A6%D0%B5%D1%80%D0%BA%D0%BE%D0%B2%D1%8C_"
                if number < 10
                else dice.choice(["View_of_the_bridge_", "IMG_", "Church_(west)_", "Map,_"])
            )
            heads += [
                f"{scheme}://upload.wikimedia.org/wikipedia/{project}/{number % 16:x}/{number % 16:x}{number // 2:x}/{name}"
                for scheme in ("http", "https")
            ]
        self.url_heads = table([head.encode() for head in heads])
        self.url_ends = table([end.encode() for end in [".jpg"] * 11 + [".JPG"] * 3 + [".png"] * 3 + [".svg", ".tif", ".gif"]])

        self.images = table([base64.b64encode(png(colour)) for colour in range(COLOURS)])
        whole = png(0)
        broken = [whole[:40], b"<!DOCTYPE html><html>not found</html>", b"", b"\xff\xd8\xff\xe0"]
        self.broken_images = table([base64.b64encode(data) for data in broken])

    def number(self, numbers):
        """Two pieces of four digits."""
        return self.digits[numbers // 10_000], self.digits[numbers % 10_000]

    def caption(self, rows, caption):
        """Language, script and phrase numbers of captions; `caption` counts titles behind full captions."""
        language = np.searchsorted(self.language_ends, rows.chance(caption, 10)).clip(max=len(LANGUAGES) - 1)
        script = self.language_script[language] * PHRASES
        return language, script + rows.choose(caption, 11, PHRASES), script + rows.choose(caption, 12, PHRASES)

    def url(self, rows, url):
        """Four pieces of image URLs."""
        variant = rows.variant(url)
        name = np.where(variant, url - rows.images, url)
        head = rows.choose(name, 8, 2 * URL_STEMS) ^ variant
        return (self.url_heads[head], *self.number(name), self.url_ends[rows.choose(name, 9, len(self.url_ends))])


def rgb(colour):
    """The colour of an image, as three values."""
    return colour, colour * 37 % 256, colour * 101 % 256


def png(colour):
    """A constant image of 8 × 8 pixels."""

    def block(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", binascii.crc32(kind + data))

    lines = (b"\0" + bytes(rgb(colour)) * SIDE_PX) * SIDE_PX
    header = struct.pack(">IIBBBBB", SIDE_PX, SIDE_PX, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(lines, 9)) + block(b"IEND", b"")


def join(pieces, count):
    """Concatenates columns of byte strings row by row; a plain byte string is the same in all rows."""
    rows = np.empty((count, len(pieces)), dtype=object)
    for column, piece in enumerate(pieces):
        rows[:, column] = piece
    return b"".join(rows.ravel().tolist())


def pair_block(rows, tables, start, end):
    """The text of pair rows, and their counts."""
    slot, url, captioned, caption, new_caption, no_url, no_target, with_pixels = rows.pairs(start, end)
    number = np.where(captioned, caption, rows.full + caption)
    language, title, phrase = tables.caption(rows, number)
    high, low = tables.number(number)

    def where(condition, piece, other=b""):
        return np.where(condition, piece, other)

    odd = captioned & (rows.choose(caption, 13, 2000) == 0)
    title_text = where(odd, tables.odd_titles[caption % 3], tables.titles[title])
    title_pieces = (title_text, where(odd, b"", high), where(odd, b"", low))
    url_pieces = [where(no_url, b"", piece) for piece in tables.url(rows, url)]
    quote = where(captioned, tables.quotes[phrase])
    caption_pieces = (where(captioned, tables.phrases[phrase]), where(captioned, high), where(captioned, low))
    target = (quote, *title_pieces, b" [SEP] ", *caption_pieces)
    target = [where(no_target, b"", piece) for piece in target]
    end_of_line = where(captioned, tables.line_ends[phrase], b"\n")
    script = tables.language_script[language] * PHRASES
    pieces = [
        tables.page_heads[language], tables.page_names[title], high, low, b"\t",
        *url_pieces, b"\t",
        *title_pieces,
        tables.middles[script + rows.choose(slot, 14, PHRASES)],
        quote, *caption_pieces, quote,
        tables.details[rows.choose(slot, 15, len(tables.details))],
        tables.contexts[script + rows.choose(caption, 16, PHRASES)],
        *target, end_of_line,
    ]  # fmt: skip
    labelled = ~no_url & ~no_target
    in_list = labelled & captioned & np.isin(caption, rows.list_ids())
    title_bytes = np.where(odd, tables.odd_title_bytes[caption % 3], tables.title_bytes[title] + 8)
    target_bytes = title_bytes + len(" [SEP] ") + captioned * (tables.phrase_bytes[phrase] + 8)
    counts = {
        "caption_bytes": int(target_bytes[new_caption].sum()),
        "missing_url": int(no_url.sum()),
        "missing_caption": int((no_target & ~no_url).sum()),
        "labelled": int(labelled.sum()),
        "joined": int((labelled & with_pixels).sum()),
        "in_list": int(in_list.sum()),
    }
    return join(pieces, end - start), counts, url[in_list]


@functools.cache
def prepare(sizes):
    """Rows and tables of a corpus, made once in each process."""
    return Rows(sizes), Tables(sizes)


def share(total, parts, part):
    """First and last row of a part."""
    return total * part // parts, total * (part + 1) // parts


def write_pairs(sizes, folder, part):
    """Writes a file of pairs; returns its counts and the URLs of the rows whose caption is in the list."""
    rows, tables = prepare(sizes)
    start, end = share(sizes.pair_rows, sizes.pair_files, part)
    counts, in_list = {}, []
    with open(folder / f"train-{part:05}-of-{sizes.pair_files:05}.tsv", "wb", buffering=0) as out:
        out.write(("\t".join(COLUMNS) + "\n").encode())
        for first in range(start, end, BLOCK_ROWS):
            text, found, urls = pair_block(rows, tables, first, min(end, first + BLOCK_ROWS))
            write_all(out, text)
            in_list.append(np.unique(urls))
            for name, count in found.items():
                counts[name] = counts.get(name, 0) + count
    return counts, np.unique(np.concatenate(in_list)).tolist()


def write_all(out, text):
    """Writes all of a byte string to an unbuffered file."""
    view = memoryview(text)
    while view:
        view = view[out.write(view) :]


def write_images(sizes, folder, part):
    """Writes a gzipped file of images."""
    rows, tables = prepare(sizes)
    start, end = share(sizes.image_rows, sizes.image_files, part)
    with gzip.GzipFile(folder / f"train_image_pixels_part-{part:05}.csv.gz", "wb", compresslevel=1, mtime=0) as out:
        for first in range(start, end, BLOCK_ROWS):
            numbers = np.arange(first, min(end, first + BLOCK_ROWS), dtype=np.int64)
            url = permute(numbers, sizes.image_rows)
            repeated = sizes.bad_images + rows.choose(numbers, 17, rows.images - sizes.bad_images)
            url = np.where(url < rows.images, url, repeated)
            data = np.where(url < sizes.bad_images, tables.broken_images[url % len(tables.broken_images)], tables.images[rows.colour(url)])
            head, high, low, end_of_url = tables.url(rows, url)
            pieces = [head, high, low, end_of_url, b"\t", data, b"\thttps://commons.wikimedia.org/wiki/File:", high, low, b"\n"]
            out.write(join(pieces, len(numbers)))


def write_list(sizes, path):
    """Writes the caption list: mostly captions that no pair row has, some that occur in the pairs, some twice."""
    rows, tables = prepare(sizes)
    fresh = rows.list_distinct - rows.list_overlap
    # Numbers behind those of the pairs.
    numbers = np.concatenate([rows.list_ids(), sizes.captions + np.arange(fresh, dtype=np.int64)])
    _, title, phrase = tables.caption(rows, numbers)
    odd = (rows.choose(numbers, 13, 2000) == 0) & (numbers < rows.full)
    captions = []
    for number, t, p, is_odd in zip(numbers.tolist(), title.tolist(), phrase.tolist(), odd.tolist(), strict=True):
        head = tables.odd_titles[number % 3].decode() if is_odd else f"{tables.titles[t].decode()}{number:08}"
        captions.append(f"{head} [SEP] {tables.plain[p]}{number:08}")
    random.Random(sizes.seed).shuffle(captions)
    captions += captions[: sizes.list_rows - len(captions)]
    text = io.StringIO(newline="")
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["caption_title_and_reference_description"])
    out.writerows([caption] for caption in captions)
    path.write_bytes(text.getvalue().encode())


def write_corpus(sizes, folder, jobs):
    """Writes all files below a folder, unless they are there; returns the counts that a correct reader finds."""
    truth_path = folder / "truth.json"
    source = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()
    parameters = {**dataclasses.asdict(sizes), "source": source}
    if truth_path.exists():
        truth = json.loads(truth_path.read_text())
        if truth["sizes"] == parameters:
            return truth
        truth_path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("train-*.tsv"), *folder.glob("images/*.csv.gz")]:
        old.unlink()
    images = folder / "images"
    images.mkdir(exist_ok=True)
    rows = Rows(sizes)
    with concurrent.futures.ProcessPoolExecutor(max_workers=jobs) as pool:
        pairs = [pool.submit(write_pairs, sizes, folder, part) for part in range(sizes.pair_files)]
        others = [pool.submit(write_images, sizes, images, part) for part in range(sizes.image_files)]
        others.append(pool.submit(write_list, sizes, folder / "test_caption_list.csv"))
        results = [task.result() for task in pairs]
        for task in others:
            task.result()
    counts = {name: sum(found[name] for found, _ in results) for name in results[0][0]}
    in_list = set().union(*(urls for _, urls in results))
    truth = {
        "sizes": parameters,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "list_bytes": (folder / "test_caption_list.csv").stat().st_size,
        "caption_bytes": counts["caption_bytes"],
        "pair_rows": sizes.pair_rows,
        "missing_url": counts["missing_url"],
        "missing_caption": counts["missing_caption"],
        "image_rows": sizes.image_rows,
        "joined_rows": counts["joined"],
        "joined_images": rows.images,
        "train": {
            "classes": sizes.captions,
            "labelled_rows": counts["labelled"],
            "labelled_images": sizes.urls,
            "kept": rows.images - sizes.bad_images,
            "bad": sizes.bad_images,
        },
        "list": {
            "classes": rows.list_distinct,
            "labelled_rows": counts["in_list"],
            "labelled_images": len(in_list),
            "kept": sum(sizes.bad_images <= url < rows.images for url in in_list),
            "bad": sum(url < sizes.bad_images for url in in_list),
        },
    }
    temporary = truth_path.with_suffix(".tmp")
    temporary.write_text(json.dumps(truth, indent=1))
    os.replace(temporary, truth_path)
    return truth


def duplicate_rows(table):
    """Counts the rows of `duplicates.parquet`. Needs polars."""
    import polars

    return polars.read_parquet(table).height


def wrong_pixels(sizes, chunks):
    """Counts rows of Parquet pixel chunks, and those whose pixels are not the colour of their URL. Needs polars."""
    import polars

    rows = Rows(sizes)
    colours = np.array([rgb(colour) for colour in range(COLOURS)], dtype=np.uint8)
    seen = wrong = 0
    for path in sorted(pathlib.Path(chunks).glob("*.parquet")):
        frame = polars.read_parquet(path, columns=["image_url", "pixels"])
        names = frame["image_url"].str.extract(r"(\d{8})\.\w+$").cast(polars.Int64).to_numpy()
        pixels = np.frombuffer(b"".join(frame["pixels"].to_list()), dtype=np.uint8).reshape(len(frame), SIDE_PX * SIDE_PX, 3)
        wrong += int((pixels != colours[rows.colour(names)][:, None]).any(axis=(1, 2)).sum())
        seen += len(frame)
    return seen, wrong
