"""Decodes each file in images/ with Pillow and writes it at 64 x 64 pixels, resized with the bilinear kernel.

Run: python tests/reference/images.py        (Pillow 13.0.0)

The files are legal but unusual, or damaged in a way that Pillow tolerates; their names say how. Each is the output of an
encoder (Pillow, tifffile or cjpeg) with bytes changed by hand, and 3 KB or smaller.

  expected/NAME.png        composited on white
  expected/NAME-drop.png   as by convert("RGB"), where that differs
"""

import pathlib

from PIL import Image

HERE = pathlib.Path(__file__).parent / "images"
SIZE = (64, 64)


def on_white(image):
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    white.alpha_composite(rgba)
    return white.convert("RGB")


for path in sorted(HERE.glob("*.*")):
    with Image.open(path) as image:
        image.load()
        white = on_white(image).resize(SIZE, Image.Resampling.BILINEAR)
        drop = image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
    white.save(HERE / "expected" / f"{path.stem}.png", optimize=True)
    if drop.tobytes() != white.tobytes():
        drop.save(HERE / "expected" / f"{path.stem}-drop.png", optimize=True)
