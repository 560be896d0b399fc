"""Draws small images in every format and mode, and writes them with the pixels that Pillow decodes.

Run: python tests/reference/decode.py        (Pillow 13, NumPy, transformers for its centre crop)

Writes beside itself, into decode/:
  *.jpg, *.png, …   the encoded images
  cases.tsv         file, spec (JSON), largest and mean difference allowed, offset into expected.bin or `-`, reason or `-`
  expected.bin      the expected RGB outputs, one after another
"""

import io
import json
import pathlib
import shutil
import struct
import zlib

import numpy as np
from PIL import Image
from transformers.image_transforms import center_crop

HERE = pathlib.Path(__file__).parent / "decode"
shutil.rmtree(HERE, ignore_errors=True)
HERE.mkdir()
CODES = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
SQUASH = {"squash": {"size_px": 16}}
rows, expected = [], bytearray()


def drawing(width=47, height=39, channels=3, noise=12, seed=7):
    """Gradients, a disc with a hard edge and some noise, so that every error of geometry or colour shows."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 5) * np.cos(y / 4), 255 * (x + y) / (width + height)]
    image = np.stack(planes[:channels], -1)
    disc = (x - width * 0.6) ** 2 + (y - height * 0.4) ** 2 < (height * 0.25) ** 2
    image[disc] = np.array([230, 30, 60, 90])[:channels]
    return np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)


def reference(data, geometry, resample, alpha):
    with Image.open(io.BytesIO(data)) as source:
        if alpha == "white":
            rgba = source.convert("RGBA")
            image = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            image.alpha_composite(rgba)
            image = image.convert("RGB")
        else:
            image = source.convert("RGB")
    kind, sizes = next(iter(geometry.items()))
    if kind == "shortest_edge":
        edge, (width, height) = sizes["edge_px"], image.size
        long = int(edge * max(width, height) / min(width, height))
        size = (edge, long) if width <= height else (long, edge)
    else:
        size = (sizes["size_px"], sizes["size_px"])
    pixels = np.array(image.resize(size, CODES[resample]))
    if kind != "squash":
        pixels = center_crop(pixels, (sizes["crop_px"], sizes["crop_px"]))
    return np.ascontiguousarray(pixels)


def case(name, data, *, geometry=SQUASH, resample="bilinear", alphas=("white", "drop"), largest=0, mean=0, reason=None):
    (HERE / name).write_bytes(data)
    seen = {}
    for alpha in alphas:
        spec = {"geometry": geometry, "resample": resample, "alpha": alpha, "max_encoded_bytes": 100000, "max_pixels": 10000}
        offset = "-"
        if reason is None:
            pixels = reference(data, geometry, resample, alpha).tobytes()
            if pixels not in seen:
                seen[pixels] = len(expected)
                expected.extend(pixels)
            offset = seen[pixels]
        rows.append([name, json.dumps(spec, separators=(",", ":")), str(largest), str(mean), str(offset), reason or "-"])


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, lines, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def packed(values, depth):
    """Rows of samples of 1, 2 or 4 bits."""
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth:].reshape(len(values), -1)
    return [line.tobytes() for line in np.packbits(bits, axis=-1)]


def gif(screen, frame, indices, colours, transparent=None, local=False, bits=4, tail=b";"):
    """Returns a GIF whose codes never grow, because clear codes keep the table small."""
    clear, codes = 1 << bits, []
    for at, index in enumerate(indices):
        if at % ((1 << bits) - 2) == 0:
            codes.append(clear)
        codes.append(int(index))
    number = 0
    for at, code in enumerate(codes + [clear + 1]):
        number |= code << (at * (bits + 1))
    stream = number.to_bytes(((len(codes) + 1) * (bits + 1) + 7) // 8, "little")
    blocks = b"".join(bytes([len(part)]) + part for part in (stream[at:at + 255] for at in range(0, len(stream), 255)))
    table, flag = bytes(colours), 0x80 | (bits - 1)
    out = b"GIF89a" + struct.pack("<HHBBB", *screen, 0 if local else flag, 5, 0) + (b"" if local else table)
    if transparent is not None:
        out += b"!\xf9\x04" + bytes([1, 0, 0, transparent]) + b"\0"
    out += b"," + struct.pack("<HHHHB", *frame, flag if local else 0) + (table if local else b"")
    return out + bytes([bits]) + blocks + b"\0" + tail


rgb = Image.fromarray(drawing())
rgba_array = drawing(channels=4, noise=0)
rgba = Image.fromarray(rgba_array)
grey = Image.fromarray(drawing(channels=1)[..., 0])
# Another inverse DCT and another upsampling of the colours; 2 and 0.33 were measured.
JPEG = {"largest": 2, "mean": 0.4, "alphas": ("white",)}

# JPEG: every subsampling, progressive, grey, restart markers, the colour models of Adobe.
for sampling, label in ((0, "444"), (1, "422"), (2, "420")):
    case(f"baseline-{label}.jpg", saved(rgb, "JPEG", quality=85, subsampling=sampling), **JPEG)
case("progressive.jpg", saved(rgb, "JPEG", quality=85, progressive=True), **JPEG)
case("grey.jpg", saved(grey, "JPEG", quality=85), **JPEG)
case("restart.jpg", saved(rgb, "JPEG", quality=85, restart_marker_blocks=2), **JPEG)
case("narrow.jpg", saved(rgb.crop((0, 0, 9, 39)), "JPEG", quality=90), **JPEG)
kept_rgb = saved(rgb, "JPEG", quality=90, keep_rgb=True)
case("rgb-ids.jpg", kept_rgb, **JPEG)
frame, scan = kept_rgb.index(b"\xff\xc0"), kept_rgb.index(b"\xff\xda")
renamed = bytearray(kept_rgb)
for number in range(3):
    renamed[frame + 10 + 3 * number] = number + 1
    renamed[scan + 5 + 2 * number] = number + 1
case("rgb-adobe.jpg", bytes(renamed), **JPEG)
cmyk = Image.frombytes("CMYK", (47, 39), drawing(channels=4, noise=4).tobytes())
inks = saved(cmyk, "JPEG", quality=90)
case("cmyk.jpg", inks, **JPEG)
adobe = inks.index(b"Adobe")
ycck = bytearray(inks)
ycck[adobe + 11] = 2
case("ycck.jpg", bytes(ycck), **JPEG)
case("cmyk-no-adobe.jpg", inks[:adobe - 4] + inks[adobe + 12:], **JPEG)
case("cmyk-progressive.jpg", saved(cmyk, "JPEG", quality=90, progressive=True), **JPEG)
whole = saved(rgb, "JPEG", quality=85)
case("exif-turned.jpg", saved(rgb, "JPEG", quality=85, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"), **JPEG)
case("trailing.jpg", whole + b"\0trailing", **JPEG)
for name, data in (("cut.jpg", whole[:-200]), ("no-end.jpg", whole[:-2]), ("cut-progressive.jpg", saved(rgb, "JPEG", progressive=True)[:-100])):
    case(name, data, alphas=("white",), reason="truncated")

# PNG: every depth and colour type, transparency by key and by channel.
levels = drawing(channels=1, noise=30)[..., 0]
case("rgb8.png", saved(rgb, "PNG"))
passes = [drawing()[y::dy, x::dx] for x, y, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))]
woven = png(47, 39, 8, 2, [line.tobytes() for part in passes for line in part])
header = woven[12:28] + b"\1"
case("interlaced.png", woven[:12] + header + struct.pack(">I", zlib.crc32(header)) + woven[33:])
case("rgba8.png", saved(rgba, "PNG"))
case("la8.png", saved(rgba.convert("LA"), "PNG"))
case("grey8.png", saved(grey, "PNG"))
for depth in (1, 2, 4):
    small = levels >> (8 - depth)
    case(f"grey{depth}.png", png(47, 39, depth, 0, packed(small, depth)))
    key = {1: 1, 2: 85, 4: 3}[depth]
    case(f"grey{depth}-key.png", png(47, 39, depth, 0, packed(small, depth), chunk(b"tRNS", struct.pack(">H", key))))
    table = bytes(np.random.default_rng(depth).integers(0, 256, 3 * (1 << depth), dtype=np.uint8))
    alphas = bytes([0, 128, 200][: 1 << depth])
    case(f"palette{depth}.png", png(47, 39, depth, 3, packed(small, depth), chunk(b"PLTE", table) + chunk(b"tRNS", alphas)))
case("palette8.png", saved(rgb.quantize(200), "PNG"))
short = chunk(b"PLTE", bytes(range(30, 180)))
case("palette8-short.png", png(47, 39, 8, 3, [line.tobytes() for line in levels // 4], short + chunk(b"tRNS", bytes(range(0, 250, 5)))))
case("grey8-key.png", png(47, 39, 8, 0, [line.tobytes() for line in levels & 0xf0], chunk(b"tRNS", b"\0\x70")))
flat = drawing(noise=0) & 0xc0
case("rgb8-key.png", png(47, 39, 8, 2, [line.tobytes() for line in flat], chunk(b"tRNS", b"\0\x40\0\x80\0\x80")))
small = drawing(width=31, height=21, channels=4, noise=3).astype(">u2") * 257 + 19
case("grey16.png", png(31, 21, 16, 0, [(line // 100).astype(">u2").tobytes() for line in small[..., 0]], chunk(b"tRNS", b"\0\x40")))
case("la16.png", png(31, 21, 16, 4, [np.ascontiguousarray(line).tobytes() for line in small[..., [0, 3]]]))
case("rgb16.png", png(31, 21, 16, 2, [np.ascontiguousarray(line).tobytes() for line in small[..., :3]]))
keyed = (small[..., :3] & 0xc000) | 7
case("rgb16-key.png", png(31, 21, 16, 2, [np.ascontiguousarray(line).tobytes() for line in keyed], chunk(b"tRNS", b"\0\x40\0\x80\0\x80")))
case("rgba16.png", png(31, 21, 16, 6, [line.tobytes() for line in small]))
tiny = rgb.resize((31, 23))
good = saved(tiny, "PNG")
case("no-iend.png", good[:-12])
case("no-checksum.png", good[:-20])
flipped = bytearray(good)
flipped[len(good) // 2] ^= 1
case("flipped.png", bytes(flipped), alphas=("white",), reason="corrupt")
case("trailing.png", good + b"trailing")
case("cut.png", good[: len(good) // 2], alphas=("white",), reason="truncated")

# GIF: frames that do not cover the screen, transparency, local colours.
colours = np.random.default_rng(5).integers(0, 256, 48, dtype=np.uint8)
index = (levels >> 4)
case("plain.gif", gif((47, 39), (0, 0, 47, 39), index.ravel(), colours))
case("offset.gif", gif((60, 50), (9, 6, 47, 39), index.ravel(), colours))
case("offset-clear.gif", gif((60, 50), (9, 6, 47, 39), index.ravel(), colours, transparent=4))
case("over.gif", gif((40, 30), (3, 2, 47, 39), index.ravel(), colours, transparent=4, local=True))
case("interlaced.gif", saved(rgb.quantize(16), "GIF", interlace=1))
frames = [rgb.quantize(32), Image.fromarray(255 - drawing()).quantize(32)]
case("animated.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
case("no-trailer.gif", gif((47, 39), (0, 0, 47, 39), index.ravel(), colours, tail=b""))
case("cut.gif", gif((47, 39), (0, 0, 47, 39), index.ravel(), colours)[:400], alphas=("white",), reason="truncated")

# WebP, BMP, TIFF.
case("lossless.webp", saved(rgb, "WEBP", lossless=True))
case("lossless-alpha.webp", saved(rgba, "WEBP", lossless=True, exact=True))
case("lossy.webp", saved(rgb, "WEBP", quality=80))
case("lossy-alpha.webp", saved(rgba, "WEBP", quality=80))
canvas = Image.new("RGBA", (47, 39))
canvas.paste(rgb.crop((0, 0, 20, 18)), (10, 8))
case("animated.webp", saved(canvas, "WEBP", save_all=True, append_images=[rgba], lossless=True, background=(9, 9, 200, 255)))
lossless = saved(tiny, "WEBP", lossless=True)
case("cut.webp", lossless[:-300], alphas=("white",), reason="truncated")
case("rgb.bmp", saved(rgb, "BMP"))
case("grey.bmp", saved(grey, "BMP"))
case("palette.bmp", saved(rgb.quantize(60), "BMP"))
case("one.bmp", saved(grey.convert("1"), "BMP"))
case("rgba.bmp", saved(rgba.resize((31, 23)), "BMP"))
case("cut.bmp", saved(tiny, "BMP")[:-900], alphas=("white",), reason="truncated")
for label, compression in (("raw", None), ("lzw", "tiff_lzw"), ("deflate", "tiff_adobe_deflate"), ("packbits", "packbits")):
    case(f"{label}.tif", saved(tiny, "TIFF", compression=compression))
case("rgba.tif", saved(rgba.resize((31, 23)), "TIFF", compression="tiff_lzw"))
case("grey.tif", saved(grey.resize((31, 23)), "TIFF", compression="tiff_lzw"))
case("one.tif", saved(grey.resize((31, 23)).convert("1"), "TIFF", compression="raw"))
case("cmyk.tif", saved(cmyk.resize((31, 23)), "TIFF", compression="tiff_lzw"))
case("turned.tif", saved(tiny, "TIFF", compression="tiff_lzw", tiffinfo={274: 6}))
case("grey16.tif", saved(Image.fromarray((small[..., 0] // 100).astype(np.uint16)), "TIFF"))

# Kernels and geometries, on a file without loss.
sharp = saved(Image.fromarray(np.random.default_rng(3).choice([0, 255], (57, 83, 3)).astype(np.uint8)), "PNG", optimize=True)
for resample in CODES:
    case("sharp.png", sharp, resample=resample, alphas=("drop",))
    case("sharp-small.png", saved(Image.fromarray(np.random.default_rng(4).choice([0, 255], (11, 13, 3)).astype(np.uint8)), "PNG"), resample=resample, alphas=("drop",))
for name, geometry in (
    ("edge", {"shortest_edge": {"edge_px": 20, "crop_px": 16}}),
    ("edge-up", {"shortest_edge": {"edge_px": 70, "crop_px": 17}}),
    ("edge-pad", {"shortest_edge": {"edge_px": 13, "crop_px": 17}}),
    ("edge-same", {"shortest_edge": {"edge_px": 57, "crop_px": 16}}),
    ("crop", {"squash_then_crop": {"size_px": 21, "crop_px": 16}}),
    ("crop-pad", {"squash_then_crop": {"size_px": 13, "crop_px": 16}}),
    ("copy", {"squash_then_crop": {"size_px": 57, "crop_px": 16}}),
):
    for resample in ("nearest", "bilinear", "bicubic"):
        case("sharp.png", sharp, geometry=geometry, resample=resample, alphas=("drop",))

# Lines of pixels, upright images (Pillow convolves their columns first), and centres on borders.
for width, height in ((1, 3000), (3000, 1), (3, 301), (41, 97), (16, 97), (41, 16)):
    slim = Image.fromarray(np.random.default_rng(width).choice([0, 255], (height, width, 3)).astype(np.uint8))
    slim = saved(slim, "PNG", optimize=True)
    for resample in CODES:
        case(f"slim-{width}-{height}.png", slim, resample=resample, alphas=("drop",))
    case(f"slim-{width}-{height}.png", slim, geometry={"shortest_edge": {"edge_px": 19, "crop_px": 16}}, alphas=("drop",))
ties = saved(Image.fromarray(drawing(24, 32)), "PNG")
for geometry in ({"squash": {"size_px": 25}}, {"squash": {"size_px": 28}}, {"shortest_edge": {"edge_px": 28, "crop_px": 20}}, {"shortest_edge": {"edge_px": 21, "crop_px": 20}}):
    case("ties.png", ties, geometry=geometry, resample="nearest", alphas=("drop",))

(HERE / "cases.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
(HERE / "expected.bin").write_bytes(expected)
print(len(rows), "cases,", sum(f.stat().st_size for f in HERE.iterdir()), "bytes")
