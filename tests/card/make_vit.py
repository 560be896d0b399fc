"""Writes a backbone with random weights in Hugging Face layout: make_vit.py DIR FAMILY HIDDEN LAYERS HEADS SIZE_PX PATCH_PX [SEED]

FAMILY is `vit`, `beit`, `clip` with a projection, `dinov2`, `dinov2-swiglu`, `dinov3` or `dinov3-gated`.
"""

import array
import json
import random
import struct
import sys
from pathlib import Path

REGISTERS = 4
PROJECTION = 64

# Names of modules that differ between families; those of a block follow its name.
VIT = {
    "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch": "embeddings.patch_embeddings.projection",
    "final_norm": "layernorm",
    "block": "encoder.layer",
    "norms": ["layernorm_before", "layernorm_after"],
    "scales": [],
    "attention": ["attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"],
    "mlp": ["intermediate.dense", "output.dense"],
}
DINOV2 = VIT | {
    "norms": ["norm1", "norm2"],
    "scales": ["layer_scale1.lambda1", "layer_scale2.lambda1"],
    "mlp": ["mlp.fc1", "mlp.fc2"],
}
DINOV3 = DINOV2 | {
    "patch": "embeddings.patch_embeddings",
    "final_norm": "norm",
    "block": "layer",
    "attention": ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"],
    "mlp": ["mlp.up_proj", "mlp.down_proj"],
}
CLIP = VIT | {
    "cls": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    "patch": "embeddings.patch_embedding",
    "final_norm": "post_layernorm",
    "block": "encoder.layers",
    "norms": ["layer_norm1", "layer_norm2"],
    "attention": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"],
    "mlp": ["mlp.fc1", "mlp.fc2"],
}
FAMILIES = {
    "clip": CLIP,
    "vit": VIT,
    "beit": VIT | {"final_norm": "pooler.layernorm", "scales": ["lambda_1", "lambda_2"]},
    "dinov2": DINOV2,
    "dinov2-swiglu": DINOV2 | {"mlp": ["mlp.weights_in", "mlp.weights_out"]},
    "dinov3": DINOV3,
    "dinov3-gated": DINOV3 | {"mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]},
}


def inner_width(family, hidden):
    """Returns the width of the hidden layer of the MLP."""
    return 4 * hidden if family != "dinov2-swiglu" else (8 * hidden // 3 + 7) // 8 * 8


def linears(family, hidden):
    """Yields name, outputs, inputs and whether there is a bias, for each linear layer of a block."""
    names, inner = FAMILIES[family], inner_width(family, hidden)
    keyless = family in ("beit", "dinov3", "dinov3-gated")
    for place, name in enumerate(names["attention"]):
        yield name, hidden, hidden, not (keyless and place == 1)
    *inputs, outer = names["mlp"]
    for name in inputs:
        yield name, 2 * inner if family == "dinov2-swiglu" else inner, hidden, True
    yield outer, hidden, inner, True


def shapes(family, hidden, layers, heads, grid, patch_px):
    """Yields name, shape, mean and scale of each tensor."""
    names = FAMILIES[family]
    batch = [] if family == "clip" else [1]
    yield names["cls"], [*batch, *batch, hidden], 0.0, 1.0
    if family.startswith("dinov3"):
        yield "embeddings.register_tokens", [1, REGISTERS, hidden], 0.0, 1.0
    elif family != "beit":
        yield names["positions"], [*batch, grid**2 + 1, hidden], 0.0, 0.5
    yield f"{names['patch']}.weight", [hidden, 3, patch_px, patch_px], 0.0, (3 * patch_px**2) ** -0.5
    if family == "clip":
        yield "pre_layrnorm.weight", [hidden], 1.0, 0.1
        yield "pre_layrnorm.bias", [hidden], 0.0, 0.1
        yield "visual_projection.weight", [PROJECTION, hidden], 0.0, hidden**-0.5
    else:
        yield f"{names['patch']}.bias", [hidden], 0.0, 0.1
    for layer in range(layers):
        at = f"{names['block']}.{layer}"
        for name, outputs, inputs, bias in linears(family, hidden):
            yield f"{at}.{name}.weight", [outputs, inputs], 0.0, inputs**-0.5
            if bias:
                yield f"{at}.{name}.bias", [outputs], 0.0, 0.1
        for name in names["norms"]:
            yield f"{at}.{name}.weight", [hidden], 1.0, 0.1
            yield f"{at}.{name}.bias", [hidden], 0.0, 0.1
        for name in names["scales"]:
            yield f"{at}.{name}", [hidden], 0.5, 0.2
        if family == "beit":
            table = "attention.attention.relative_position_bias.relative_position_bias_table"
            yield f"{at}.{table}", [(2 * grid - 1) ** 2 + 3, heads], 0.0, 0.5
    yield f"{names['final_norm']}.weight", [hidden], 1.0, 0.1
    yield f"{names['final_norm']}.bias", [hidden], 0.0, 0.1


def values(shape, mean, scale, noise):
    """Returns the values of a tensor."""
    count = 1
    for side in shape:
        count *= side
    return array.array("f", (noise.gauss(mean, scale) for _ in range(count)))


def config(family, hidden, layers, heads, size_px, patch_px):
    """Returns the content of config.json."""
    kind = family.partition("-")[0]
    own = {
        "vit": {"layer_norm_eps": 1e-12, "qkv_bias": True},
        "beit": {"layer_norm_eps": 1e-12, "use_relative_position_bias": True, "use_mean_pooling": True, "layer_scale_init_value": 0.1},
        "clip": {"layer_norm_eps": 1e-5, "projection_dim": PROJECTION, "architectures": ["CLIPVisionModelWithProjection"]},
        "dinov2": {"layer_norm_eps": 1e-6, "mlp_ratio": 4, "use_swiglu_ffn": family == "dinov2-swiglu"},
        "dinov3": {"layer_norm_eps": 1e-5, "num_register_tokens": REGISTERS, "rope_theta": 100.0, "use_gated_mlp": family == "dinov3-gated"},
    }[kind]
    return own | {
        "model_type": {"dinov3": "dinov3_vit", "clip": "clip_vision_model"}.get(kind, kind),
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner_width(family, hidden),
        "image_size": size_px,
        "patch_size": patch_px,
        "num_channels": 3,
        "hidden_act": {"clip": "quick_gelu", "dinov3-gated": "silu"}.get(family, "gelu"),
    }


def main():
    folder, family = Path(sys.argv[1]), sys.argv[2]
    hidden, layers, heads, size_px, patch_px, *seed = map(int, sys.argv[3:])
    folder.mkdir(parents=True, exist_ok=True)
    noise, head, body, at = random.Random(*seed or [7]), {"__metadata__": {"format": "pt"}}, [], 0
    for name, shape, mean, scale in shapes(family, hidden, layers, heads, size_px // patch_px, patch_px):
        data = values(shape, mean, scale, noise).tobytes()
        head[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(data)]}
        body.append(data)
        at += len(data)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(body))
    (folder / "config.json").write_text(json.dumps(config(family, hidden, layers, heads, size_px, patch_px), indent=1))
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
