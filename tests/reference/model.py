"""Creates tiny checkpoints and reference features for the tests of `model`.

Run from the repository root, with torch, torchvision, transformers (5.x), safetensors and numpy from PyPI:

    python tests/reference/model.py            # writes tests/reference/model/
    python tests/reference/model.py DIR SIZE…  # writes DIR/expected.safetensors for a checkpoint of any size

All parameters, including norms, biases and layer scales, are random with a large variance, so that an omitted one is detected.
Features are computed in f32 on the CPU from the saved files, with the normalisation of the checkpoint's image processor.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessor,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

OUT = pathlib.Path("tests/reference/model")


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = 0.3 * torch.randn(value.shape, generator=generator)
            centred = any(part in name for part in ("norm", "lambda")) and not name.endswith("bias")
            value.copy_(noise + (0.8 if centred else 0.0))
    return model.eval()


def tokens(model, inputs, block):
    """Returns the output of `block` (None: the last one) after the final LayerNorm."""
    blocks = model.layers if hasattr(model, "layers") else model.encoder.layer
    outputs = []
    hook = blocks[block if block is not None else -1].register_forward_hook(lambda _m, _i, out: outputs.append(out))
    extra = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    with torch.no_grad():
        last = model(inputs, **extra).last_hidden_state
        hook.remove()
        result = model.layernorm(outputs[0] if torch.is_tensor(outputs[0]) else outputs[0][0])
    if block is None:
        assert torch.equal(result, last)
    return result


def reference(folder, sizes, rows, inner_layer=0):
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    random = np.random.default_rng(7)
    tensors = {}
    for size in sizes:
        pixels = random.integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
        # The first image gets a gradient, because all patches of noise have similar means.
        pixels[0] = (pixels[0] // 4 + np.linspace(0, 190, size).astype(np.uint8)[:, None, None]).astype(np.uint8)
        inputs = processor(list(pixels), do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
        states = tokens(model, inputs, None)
        inner = tokens(model, inputs, inner_layer)
        join = lambda states: torch.cat([states[:, 0], states[:, 1:].mean(1)], 1)
        tensors[f"{size}.pixels"] = torch.from_numpy(pixels)
        tensors[f"{size}.cls_mean"] = join(states)
        tensors[f"{size}.inner"] = join(inner)
        config = json.loads((folder / "config.json").read_text())
        if "ForImageClassification" in config["architectures"][0]:
            classifier = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
            extra = {"interpolate_pos_encoding": True} if config["model_type"] == "vit" else {}
            with torch.no_grad():
                tensors[f"{size}.logits"] = classifier(inputs, **extra).logits
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "expected.safetensors")


def checkpoint(name, model, processor, sizes, dtype=torch.float32, **save):
    folder = OUT / name
    randomise(model, len(name)).to(dtype).save_pretrained(folder, **save)
    if processor is not None:
        processor.save_pretrained(folder)
    reference(folder, sizes, rows=2)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    vit = dict(num_hidden_layers=2, num_attention_heads=4, layer_norm_eps=1e-12)
    wide = dict(hidden_size=32, intermediate_size=48, image_size=32, patch_size=8)
    slim = dict(hidden_size=16, intermediate_size=32, image_size=16, patch_size=4)
    odd = ViTImageProcessor(image_mean=[0.2, 0.5, 0.9], image_std=[0.3, 0.5, 0.7])
    plain = ViTImageProcessor()
    bit = BitImageProcessor(
        size={"shortest_edge": 256}, crop_size=224, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    checkpoint("vit", ViTModel(ViTConfig(**vit, **wide)), odd, [32, 48, 24])
    checkpoint(
        "vit_prefix", ViTForImageClassification(ViTConfig(**vit, **slim, num_labels=3)), plain, [16, 28]
    )
    checkpoint("vit_f16", ViTModel(ViTConfig(**vit, **slim, hidden_act="gelu_new")), plain, [16, 20], torch.float16)
    checkpoint("vit_bf16", ViTModel(ViTConfig(**vit, **slim, hidden_act="quick_gelu")), plain, [16, 20], torch.bfloat16)
    checkpoint(
        "vit_sharded",
        ViTModel(ViTConfig(**vit, **slim, hidden_act="relu", qkv_bias=False), add_pooling_layer=False),
        plain,
        [16, 20],
        max_shard_size="8KB",
    )
    dinov2 = dict(num_hidden_layers=2, num_attention_heads=2)
    checkpoint(
        "dinov2",
        Dinov2Model(Dinov2Config(**dinov2, hidden_size=32, mlp_ratio=2, image_size=30, patch_size=7)),
        bit,
        [28, 49],
    )
    checkpoint(
        "dinov2_swiglu",
        Dinov2ForImageClassification(
            Dinov2Config(**dinov2, hidden_size=16, mlp_ratio=4, image_size=16, patch_size=4, use_swiglu_ffn=True,
                         num_labels=3)
        ),
        bit,
        [16, 24],
    )


if len(sys.argv) > 2:
    reference(pathlib.Path(sys.argv[1]), [int(size) for size in sys.argv[2:]], rows=2, inner_layer=-2)
else:
    main()
