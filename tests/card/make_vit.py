"""Writes a ViT with random weights in Hugging Face layout: make_vit.py DIR HIDDEN LAYERS HEADS SIZE_PX PATCH_PX"""

import array
import json
import random
import struct
import sys
from pathlib import Path


def shapes(hidden, layers, size_px, patch_px):
    """Yields name, shape and scale of each tensor; a scale of 0 means ones for weights and zeros for biases."""
    tokens = (size_px // patch_px) ** 2 + 1
    yield "embeddings.cls_token", [1, 1, hidden], 1.0
    yield "embeddings.position_embeddings", [1, tokens, hidden], 0.5
    patch = "embeddings.patch_embeddings.projection"
    yield f"{patch}.weight", [hidden, 3, patch_px, patch_px], (3 * patch_px**2) ** -0.5
    yield f"{patch}.bias", [hidden], 0.1
    for layer in range(layers):
        at = f"encoder.layer.{layer}"
        names = [f"attention.attention.{part}" for part in ("query", "key", "value")] + ["attention.output.dense"]
        linears = [(name, hidden, hidden) for name in names]
        linears += [("intermediate.dense", 4 * hidden, hidden), ("output.dense", hidden, 4 * hidden)]
        for name, outputs, inputs in linears:
            yield f"{at}.{name}.weight", [outputs, inputs], inputs**-0.5
            yield f"{at}.{name}.bias", [outputs], 0.1
        for norm in ("layernorm_before", "layernorm_after"):
            yield f"{at}.{norm}.weight", [hidden], 0.0
            yield f"{at}.{norm}.bias", [hidden], 0.0
    yield "layernorm.weight", [hidden], 0.0
    yield "layernorm.bias", [hidden], 0.0


def values(name, shape, scale, noise):
    """Returns the values of a tensor."""
    count = 1
    for side in shape:
        count *= side
    if scale == 0.0:
        return array.array("f", [1.0 if name.endswith("weight") else 0.0]) * count
    return array.array("f", (noise.gauss(0.0, scale) for _ in range(count)))


def main():
    folder = Path(sys.argv[1])
    hidden, layers, heads, size_px, patch_px = map(int, sys.argv[2:])
    folder.mkdir(parents=True, exist_ok=True)
    noise, head, body, at = random.Random(7), {"__metadata__": {"format": "pt"}}, [], 0
    for name, shape, scale in shapes(hidden, layers, size_px, patch_px):
        data = values(name, shape, scale, noise).tobytes()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(data)]}
        body.append(data)
        at += len(data)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(body))
    config = {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "image_size": size_px,
        "patch_size": patch_px,
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "qkv_bias": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size_px, "width": size_px},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))


main()
