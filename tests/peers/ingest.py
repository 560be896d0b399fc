"""Preprocesses the same shards with torchvision or Pillow, to compare the rates on one machine.

    pip install torch torchvision pillow numpy pyarrow
    python tests/peers/ingest.py torchvision 'SHARDS/*.csv.gz'
    python tests/peers/ingest.py pillow 'SHARDS/*.csv.gz' OUT.parquet

`torchvision` decodes with libjpeg-turbo, resizes tensors with antialiasing and writes nothing. `pillow` decodes and resizes like
transformers' image processors and writes pixels to a Parquet file. Both read gzipped TSV in a DataLoader whose two workers share
the shards, and print images/s.
"""

import base64
import glob
import gzip
import io
import sys
import time

import torch

KIND, PATTERN = sys.argv[1:3]
SIDE, WORKERS, BATCH = 224, 2, 128


def rows(paths):
    for path in paths:
        with gzip.open(path, "rt", newline="") as lines:
            for line in lines:
                url, data, *_ = line.split("\t", 2)
                yield url, base64.b64decode(data)


def by_torchvision(url, data):
    import torchvision
    from torchvision.transforms.v2.functional import resize

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image = torchvision.io.decode_image(encoded, mode=torchvision.io.ImageReadMode.RGB)
    return resize(image, [SIDE, SIDE], antialias=True)


def by_pillow(url, data):
    import numpy
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return url, numpy.asarray(image)


class Shards(torch.utils.data.IterableDataset):
    def __init__(self, paths, decode):
        self.paths, self.decode = paths, decode

    def __iter__(self):
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        for url, data in rows(self.paths[worker.id :: worker.num_workers]):
            yield self.decode(url, data)


def parquet(path):
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([("image_url", pyarrow.string()), ("pixels", pyarrow.binary(3 * SIDE * SIDE))])
    writer = pyarrow.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False)

    def write(batch):
        urls = pyarrow.array([url for url, _ in batch])
        pixels = pyarrow.array([image.tobytes() for _, image in batch], schema.field("pixels").type)
        writer.write_batch(pyarrow.record_batch([urls, pixels], schema=schema))

    return write, writer.close


def main():
    paths = sorted(glob.glob(PATTERN))
    decode = by_pillow if KIND == "pillow" else by_torchvision
    write, close = parquet(sys.argv[3]) if KIND == "pillow" else (lambda batch: None, lambda: None)
    collate = list if KIND == "pillow" else torch.stack
    loader = torch.utils.data.DataLoader(Shards(paths, decode), batch_size=BATCH, num_workers=WORKERS, collate_fn=collate)
    started, count = time.perf_counter(), 0
    for batch in loader:
        write(batch)
        count += len(batch)
    close()
    print(f"{KIND}: {count} images, {count / (time.perf_counter() - started):.0f} images/s")


if __name__ == "__main__":
    main()
