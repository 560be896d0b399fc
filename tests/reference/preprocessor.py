"""Prints how transformers reads `preprocessor_config.json`: class defaults, null, lists, names and NaN.

    pip install transformers==5.24.0 pillow
    python3 tests/reference/preprocessor.py

The tests of `src/model/preprocessor.rs` hold these values. The Pillow backend is used, because it needs no torch. It reads every
string as `resample` as bilinear; the torchvision backend, which AutoImageProcessor prefers, reads the names of torchvision's
InterpolationMode.
"""

import importlib

import numpy as np

CLASSES = {
    "vit": "ViT",
    "bit": "Bit",
    "clip": "CLIP",
    "chinese_clip": "ChineseCLIP",
    "deit": "DeiT",
    "beit": "Beit",
    "siglip": "Siglip",
    "blip": "Blip",
    "pvt": "Pvt",
    "mobilenet_v1": "MobileNetV1",
    "convnext": "ConvNext",
}
KEYS = ["do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize"]
KEYS += ["image_mean", "image_std"]


def load(module, name):
    """Returns the class of a processor."""
    return getattr(importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}"), f"{name}ImageProcessorPil")


def show(size):
    """Returns the keys of a size that are set."""
    return {key: value for key, value in dict(size).items() if value} if size else None


def run(processor, config):
    """Returns the shape and the mean magnitude of a preprocessed image, or the error."""
    image = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    try:
        pixels = processor.from_dict(config)(image, return_tensors="np").pixel_values[0]
    except ValueError as error:
        return f"ValueError: {error}"
    return f"{pixels.shape}, {np.abs(pixels).mean():.4f}"


for module, name in CLASSES.items():
    defaults = load(module, name).from_dict({})
    number = load(module, name).from_dict({"size": 192})
    print(f"{name}: size {show(defaults.size)}, 192 is {show(number.size)}, crop {defaults.do_center_crop} {show(defaults.crop_size)},",
          f"resample {int(defaults.resample)}, mean {defaults.image_mean}, std {defaults.image_std},",
          f"crop_pct {getattr(defaults, 'crop_pct', None)}")
for name in ("vit", "bit"):
    processor = load(name, CLASSES[name])
    cases = [{}, *({key: None} for key in KEYS), {"do_center_crop": True}, {"size": [192, 256]}, {"resample": 3}]
    for config in [*cases, {"resample": "bicubic"}, {"image_mean": float("nan")}]:
        print(f"{CLASSES[name]} {config}: {run(processor, config)}")
