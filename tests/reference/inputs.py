"""Writes small input files with the writers that people use, and what a reader must find in them.

    pip install pyarrow datasets duckdb polars webdataset pillow
    python tests/reference/inputs.py

Needs GNU tar. The files are in tests/reference/inputs, and the expected content in expected.json: for each file, the name and the
first half of the SHA-1 digest of each image, and the (name, language, caption) of each caption.
"""

import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile

import datasets
import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

OUT = pathlib.Path(__file__).parent / "inputs"
ROWS = 12
EXPECTED = {}


def image(row):
    picture = Image.new("RGB", (9 + row, 8), (row * 20, 255 - row * 20, 40))
    picture.putpixel((row % 8, 3), (255, 255, 255))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


IMAGES = [image(row) for row in range(ROWS)]
URLS = [f"https://example.org/Bild_{row}_ü.png" for row in range(ROWS)]
TEXTS = [f"caption of {row}, with \"quotes\" – und Ümlaut" for row in range(ROWS)]
LANGUAGES = [["en", "de", "sr-ec"][: row % 4] for row in range(ROWS)]


def digest(data):
    return hashlib.sha1(data).hexdigest()[:20]


def expect(name, urls, captions, images=IMAGES):
    EXPECTED[name] = {
        "images": [[url, digest(data) if data else None] for url, data in zip(urls, images)],
        "captions": [list(caption) for caption in captions],
    }


def plain(urls):
    return [(url, "", text) for url, text in zip(urls, TEXTS)]


def listed():
    return [
        (url, language, f"{language}: {text}")
        for url, languages, text in zip(URLS, LANGUAGES, TEXTS)
        for language in languages
    ]


def structs():
    return [
        [
            {"language": language, "page_title": "T", "caption_title_and_reference_description": f"{language}: {text}"}
            for language in languages
        ]
        for languages, text in zip(LANGUAGES, TEXTS)
    ]


def parquet_by_datasets():
    features = datasets.Features(
        {"image": datasets.Image(), "image_url": datasets.Value("string"), "text": datasets.Value("string")}
    )
    rows = {"image": [{"bytes": data, "path": "x.png"} for data in IMAGES], "image_url": URLS, "text": TEXTS}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(OUT / "datasets.parquet", batch_size=5)
    expect("datasets.parquet", URLS, plain(URLS))
    # As wikimedia/wit_base: a sequence of objects is stored as an object of sequences.
    wit = datasets.Features(
        {
            "image": datasets.Image(),
            "image_url": datasets.Value("string"),
            "embedding": datasets.Sequence(datasets.Value("float64")),
            "wit_features": datasets.Sequence(
                {
                    "language": datasets.Value("string"),
                    "page_title": datasets.Value("string"),
                    "caption_title_and_reference_description": datasets.Value("string"),
                }
            ),
        }
    )
    rows = {
        "image": [{"bytes": data, "path": None} for data in IMAGES],
        "image_url": URLS,
        "embedding": [[row / 8, -1.0, 2.5e-3] for row in range(ROWS)],
        "wit_features": [
            {key: [entry[key] for entry in entries] for key in wit["wit_features"]} for entries in structs()
        ],
    }
    datasets.Dataset.from_dict(rows, features=wit).to_parquet(OUT / "wit_base.parquet", batch_size=4)
    expect("wit_base.parquet", URLS, listed())


def parquet_by_pyarrow():
    table = pa.table(
        {
            "url": pa.array(URLS).dictionary_encode(),
            "jpg": pa.array(IMAGES, pa.large_binary()),
            "caption": pa.array(TEXTS, pa.large_string()),
        }
    )
    pq.write_table(table, OUT / "pyarrow.parquet", row_group_size=5)
    expect("pyarrow.parquet", URLS, plain(URLS))
    with_null = [None if row == 4 else data for row, data in enumerate(IMAGES)]
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": None} for data in with_null]),
            "image_url": URLS,
            "wit_features": pa.array(structs()),
        }
    )
    pq.write_table(table, OUT / "pyarrow-zstd.parquet", compression="zstd", data_page_version="2.0", row_group_size=7)
    expect("pyarrow-zstd.parquet", URLS, listed(), with_null)
    table = pa.table({"id": list(range(ROWS)), "image": IMAGES, "text": TEXTS})
    encodings = {"id": "DELTA_BINARY_PACKED", "image": "DELTA_LENGTH_BYTE_ARRAY", "text": "DELTA_BYTE_ARRAY"}
    pq.write_table(
        table, OUT / "pyarrow-delta.parquet", compression="gzip", use_dictionary=False, column_encoding=encodings,
        data_page_size=200, write_batch_size=2,
    )
    ids = [str(row) for row in range(ROWS)]
    expect("pyarrow-delta.parquet", ids, plain(ids))


def parquet_by_duckdb():
    table = pa.table({"image_url": URLS, "image": IMAGES, "caption": TEXTS})  # noqa: F841, read by the query
    for codec in ["snappy", "zstd"]:
        name = f"duckdb-{codec}.parquet"
        duckdb.sql(f"COPY (SELECT * FROM \"table\") TO '{OUT / name}' (FORMAT parquet, COMPRESSION {codec})")
        expect(name, URLS, plain(URLS))
    duckdb.sql(f"COPY (SELECT * FROM \"table\") TO '{OUT / 'duckdb-v2.parquet'}' (FORMAT parquet, PARQUET_VERSION v2)")
    expect("duckdb-v2.parquet", URLS, plain(URLS))


def parquet_by_polars():
    frame = polars.DataFrame(
        {"image_url": URLS, "image": IMAGES, "captions": [[text, f"{row}"] for row, text in enumerate(TEXTS)]}
    )
    frame.write_parquet(OUT / "polars.parquet", row_group_size=5)
    both = [caption for row, (url, text) in enumerate(zip(URLS, TEXTS)) for caption in [(url, "", text), (url, "", f"{row}")]]
    expect("polars.parquet", URLS, both)


def tars():
    for name in ["webdataset.tar", "webdataset.tar.gz"]:
        with webdataset.TarWriter(str(OUT / name), mtime=0) as sink:
            for row, data in enumerate(IMAGES):
                sample = {"__key__": f"{row:06}", "png": data, "txt": TEXTS[row]}
                if row % 3 == 0:
                    sample["json"] = {"url": URLS[row], "caption": TEXTS[row], "key": f"{row:06}"}
                sink.write(sample)
        names = [URLS[row] if row % 3 == 0 else f"{name}/{row:06}" for row in range(ROWS)]
        expect(name, names, plain(names))
    files = OUT / "files"
    long = "a long folder name" * 9
    for row, data in enumerate(IMAGES):
        folder = files / (long if row % 4 == 3 else f"f{row % 2}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{row:03}.png").write_bytes(data)
        (folder / f"{row:03}.txt").write_text(TEXTS[row] + "\n")
    paths = sorted(str(path.relative_to(files)) for path in files.rglob("*.png"))
    rows = [int(path[-7:-4]) for path in paths]

    def expect_tar(name):
        names = [f"{name}/{path[:-4]}" for path in paths]
        captions = [(key, "", TEXTS[row]) for key, row in zip(names, rows)]
        expect(name, names, captions, [IMAGES[row] for row in rows])

    for kind in ["gnu", "pax"]:
        name = f"gnu-tar-{kind}.tar"
        subprocess.run(
            ["tar", f"--format={kind}", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "-C", files, "-cf", OUT / name, "."],
            check=True,
        )
        expect_tar(name)
    members = sorted(str(path.relative_to(files)) for path in files.rglob("*") if path.is_file())
    for kind, label in [(tarfile.PAX_FORMAT, "pax"), (tarfile.GNU_FORMAT, "gnu")]:
        name = f"tarfile-{label}.tar"
        with tarfile.open(OUT / name, "w", format=kind) as archive:
            for member in members:
                archive.add(files / member, member, filter=lambda info: info.replace(deep=False, mtime=0.5, uid=0, gid=0, uname="", gname=""))
        expect_tar(name)
    sparse = OUT / "sparse.png"
    with open(sparse, "wb") as file:
        file.truncate(1 << 20)
        file.write(b"x")
    for kind in ["gnu", "pax"]:
        subprocess.run(
            ["tar", f"--format={kind}", "--sparse", "--mtime=@0", "--owner=0", "--group=0", "-C", OUT, "-cf",
             OUT / f"sparse-{kind}.tar", "sparse.png"],
            check=True,
        )
    sparse.unlink()
    shutil.rmtree(files)


def json_lines():
    import base64

    with open(OUT / "joined.json", "w", encoding="utf-8") as file:
        for row, data in enumerate(IMAGES):
            record = {
                "b64_bytes": base64.b64encode(data).decode(),
                "embedding": [row / 8, -1.0, 2.5e-3],
                "image_url": URLS[row],
                "metadata_url": "http://commons",
                "wit_features": structs()[row],
            }
            file.write(json.dumps(record, ensure_ascii=row % 2 == 0).replace("/", "\\/") + "\n")
    expect("joined.json", URLS, listed())


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    os.umask(0o022)
    parquet_by_datasets()
    parquet_by_pyarrow()
    parquet_by_duckdb()
    parquet_by_polars()
    tars()
    json_lines()
    # A row without a caption is no caption.
    (OUT / "expected.json").write_text(json.dumps(EXPECTED, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


main()
