"""Creates tiny checkpoints of every family of image backbones, and reference features for the tests of `model`.

Run from the repository root, with torch, torchvision, transformers (5.24), safetensors and numpy from PyPI:

    python tests/reference/families.py             # writes tests/reference/families/
    python tests/reference/families.py NAME…       # only these

Each folder holds a checkpoint and `expected.safetensors`: for each SIZE the tensors `SIZE.pixels` and `SIZE.BLOCK.POOL`, the feature
of a block (-1 is the last) under a pool, and `SIZE.logits` if the checkpoint has a classifier. All parameters are random with a large
variance, so that an omitted one is detected. Features are computed in f32 on the CPU from the saved files.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

OUT = pathlib.Path("tests/reference/families")
CLIPS = ("clip_vision_model", "metaclip_2_vision_model", "altclip_vision_model")


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = 0.3 * torch.randn(value.shape, generator=generator)
            part = name.lower()
            centred = ("norm" in part or "layrnorm" in part) and not name.endswith("bias") or "lambda" in part
            if name.endswith(("attention.logit_scale", "self.logit_scale")):
                value.copy_(1.5 + noise)
            elif not value.requires_grad:
                continue  # the fixed positions of an MAE
            else:
                value.copy_(noise + (0.8 if centred else 0.0))
    return model.eval()


def vision(model):
    """Returns the module with the blocks, for a model that may have more around it."""
    for name in ("vision_model", "vit", "deit", "beit", "swin", "swinv2", "dinov2_with_registers"):
        model = getattr(model, name, model)
    return model


def blocks_of(model):
    if hasattr(model, "layers"):
        return list(model.layers)
    if model.config.model_type in ("swin", "swinv2"):
        return [block for stage in model.encoder.layers for block in stage.blocks]
    if hasattr(model, "model"):
        return list(model.model.layer)
    return list(getattr(model.encoder, "layer", None) or model.encoder.layers)


def pools(whole, model, states, number, count):
    """Returns the feature of each pool from the output of a block."""
    kind, config = model.config.model_type, model.config
    if kind in ("swin", "swinv2"):
        last = number >= count - config.depths[-1]
        return {"mean": (model.layernorm(states) if last else states).mean(1)}
    if kind == "siglip_vision_model":
        normed = model.post_layernorm(states)
        found = {"mean": normed.mean(1)}
        if config.vision_use_head:
            found["head"] = model.head(normed)
        return found
    if kind in CLIPS:
        normed = model.post_layernorm(states)
        found = {"cls": normed[:, 0], "mean": normed[:, 1:].mean(1), "default": states[:, 1:].mean(1)}
        if hasattr(whole, "visual_projection"):
            found["head"] = whole.visual_projection(normed[:, 0])
        return found
    if kind == "beit" and config.use_mean_pooling:
        norm = model.pooler.layernorm
        found = {"cls": norm(states[:, 0]), "mean": norm(states[:, 1:].mean(1))}
        return {**found, "default": found["mean"], "cls+mean": torch.cat([found["cls"], found["mean"]], 1)}
    prefix = {"deit": 2, "dinov2_with_registers": 1 + getattr(config, "num_register_tokens", 0),
              "dinov3_vit": 1 + getattr(config, "num_register_tokens", 0)}.get(kind, 1)
    normed = (model.norm if kind == "dinov3_vit" else model.layernorm)(states)
    found = {"cls": normed[:, 0], "mean": normed[:, prefix:].mean(1)}
    return {**found, "cls+mean": torch.cat([found["cls"], found["mean"]], 1)}


def forward(whole, inputs):
    """Runs the image side; returns the outputs of all blocks, and the output of the model."""
    model, outputs = vision(whole), []
    keep = lambda _module, _input, out: outputs.append(out if torch.is_tensor(out) else out[0])
    hooks = [block.register_forward_hook(keep) for block in blocks_of(model)]
    extra = {}
    if model.config.model_type not in ("dinov2_with_registers", "dinov3_vit"):
        extra["interpolate_pos_encoding"] = True
    if model.config.model_type == "vit_mae":
        patches = (inputs.shape[-1] // model.config.patch_size) ** 2
        extra["noise"] = torch.arange(patches, dtype=torch.float32).expand(len(inputs), -1)
    with torch.no_grad():
        result = model(inputs, **extra)
    for hook in hooks:
        hook.remove()
    return outputs, result


def reference(folder, cls, sizes, inner):
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    random = np.random.default_rng(7)
    tensors = {}
    for size in sizes:
        # Swin keeps its smallest window, so each size gets a model of its own.
        model = cls.from_pretrained(folder, dtype=torch.float32).eval()
        pixels = random.integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        # The first image gets a gradient, because all patches of noise have similar means.
        pixels[0] = (pixels[0] // 4 + np.linspace(0, 190, size).astype(np.uint8)[:, None, None]).astype(np.uint8)
        inputs = processor(list(pixels), do_resize=False, do_center_crop=False, return_tensors="pt").pixel_values
        outputs, result = forward(model, inputs)
        tensors[f"{size}.pixels"] = torch.from_numpy(pixels)
        with torch.no_grad():
            for block in [-1, *inner]:
                number = block % len(outputs)
                found = pools(model, vision(model), outputs[number], number, len(outputs))
                for pool, value in found.items():
                    tensors[f"{size}.{block}.{pool}"] = value
            pooled = getattr(result, "pooler_output", None)
            known = [value for name, value in tensors.items() if name.startswith(f"{size}.-1")]
            kind = vision(model).config.model_type
            if pooled is not None and kind not in ("vit", "deit", *CLIPS):
                assert any(value.shape == pooled.shape and torch.allclose(value, pooled, atol=1e-5) for value in known), folder
            if hasattr(model, "classifier"):
                extra = {} if kind == "dinov2_with_registers" else {"interpolate_pos_encoding": True}
                tensors[f"{size}.logits"] = model(inputs, **extra).logits
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, folder / "expected.safetensors")


def checkpoint(name, model, processor, sizes, inner=(0,), dtype=torch.float32, edit=None, **save):
    if len(sys.argv) > 1 and name not in sys.argv[1:]:
        return
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    randomise(model, len(name)).to(dtype).save_pretrained(folder, **save)
    if edit is not None:
        edit(folder)
    processor.save_pretrained(folder)
    for file in folder.glob("*.json"):
        if file.stat().st_mode & 0o111:
            file.chmod(0o644)
    reference(folder, type(model), sizes, inner)
    print(name, sum(file.stat().st_size for file in folder.iterdir()) // 1024, "KiB")


def add_indices(folder):
    """Adds an integer buffer that older versions of transformers saved."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tables = [name for name in tensors if name.endswith("relative_position_bias_table")]
    assert tables
    for name in tables:
        tensors[name.replace("bias_table", "index")] = torch.arange(25, dtype=torch.int64).reshape(5, 5)
    save_file(tensors, path, {"format": "pt"})


def drop(folder, *names):
    path = folder / "model.safetensors"
    tensors = {name: value for name, value in load_file(path).items() if name not in names}
    save_file(tensors, path, {"format": "pt"})


def main():
    odd = dict(image_mean=[0.2, 0.5, 0.9], image_std=[0.3, 0.5, 0.7])
    tiny = dict(num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=48, image_size=32, patch_size=8)
    slim = dict(num_hidden_layers=3, num_attention_heads=2, hidden_size=16, intermediate_size=24, image_size=16, patch_size=4)
    siglip, clip = hf.SiglipImageProcessor(**odd), hf.CLIPImageProcessor(**odd)

    checkpoint("siglip", hf.SiglipVisionModel(hf.SiglipVisionConfig(**tiny)), siglip, [32, 48, 24])
    checkpoint("siglip_bf16", hf.SiglipVisionModel(hf.SiglipVisionConfig(
        **slim | dict(image_size=18), vision_use_head=False)), siglip, [18, 28],
               (1,), torch.bfloat16)
    paired = hf.SiglipConfig(vision_config=slim, text_config=dict(
        vocab_size=20, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8))
    checkpoint("siglip_paired", hf.SiglipModel(paired), siglip, [16, 20])
    paired.num_labels = 3
    checkpoint("siglip_classifier", hf.SiglipForImageClassification(paired), siglip, [16])

    checkpoint("clip", hf.CLIPVisionModel(hf.CLIPVisionConfig(**tiny)), clip, [32, 48, 24])
    checkpoint("clip_projection", hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**slim, projection_dim=12, hidden_act="gelu")),
               clip, [16, 28], (1,))
    text = dict(vocab_size=20, hidden_size=16, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8)
    paired = hf.CLIPConfig(vision_config=slim, text_config=text, projection_dim=20)
    checkpoint("clip_paired", hf.CLIPModel(paired), clip, [16, 20], dtype=torch.float16)
    paired.num_labels = 3
    checkpoint("clip_classifier", hf.CLIPForImageClassification(paired), clip, [16])
    checkpoint("altclip", hf.AltCLIPVisionModel(hf.AltCLIPVisionConfig(**slim)), clip, [16])
    paired = hf.MetaClip2Config(vision_config=slim, text_config=text, projection_dim=12)
    checkpoint("metaclip_2", hf.MetaClip2Model(paired), clip, [16])

    bit = hf.BitImageProcessor(**odd)
    registers = dict(num_hidden_layers=2, num_attention_heads=2, num_register_tokens=3)
    checkpoint("dinov2_registers", hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(
        **registers, hidden_size=32, mlp_ratio=2, image_size=30, patch_size=7)), bit, [28, 49, 21])
    checkpoint("dinov2_registers_classifier", hf.Dinov2WithRegistersForImageClassification(hf.Dinov2WithRegistersConfig(
        **registers, hidden_size=16, mlp_ratio=4, image_size=16, patch_size=4, use_swiglu_ffn=True, num_labels=3)), bit, [16, 28])

    deit = hf.DeiTImageProcessor(**odd)
    checkpoint("deit", hf.DeiTModel(hf.DeiTConfig(**tiny)), deit, [32, 40])
    checkpoint("deit_classifier", hf.DeiTForImageClassification(hf.DeiTConfig(**slim, num_labels=3)), deit, [16])
    checkpoint("deit_teacher", hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**slim, num_labels=3)), deit, [16])
    vit = hf.ViTImageProcessor(**odd)
    dino = dict(num_hidden_layers=3, num_attention_heads=6, hidden_size=24, intermediate_size=36, image_size=32, patch_size=8)
    checkpoint("dino", hf.ViTModel(hf.ViTConfig(**dino), add_pooling_layer=False), vit, [32, 48])
    mae = hf.ViTMAEConfig(**tiny, mask_ratio=0.0, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_intermediate_size=16,
                          decoder_num_attention_heads=2)
    checkpoint("mae", hf.ViTMAEModel(mae), vit, [32, 48])
    checkpoint("mae_pretraining", hf.ViTMAEForPreTraining(mae), vit, [32])

    beit = hf.BeitImageProcessor(**odd)
    checkpoint("beit", hf.BeitModel(hf.BeitConfig(**tiny, use_relative_position_bias=True)), beit, [32, 48, 24], edit=add_indices)
    checkpoint("beit_shared", hf.BeitModel(hf.BeitConfig(
        **slim, use_shared_relative_position_bias=True, use_mean_pooling=False, use_absolute_position_embeddings=True,
        use_mask_token=True, layer_scale_init_value=0.0)), beit, [16, 28])
    checkpoint("beit_classifier", hf.BeitForImageClassification(hf.BeitConfig(
        **slim, use_relative_position_bias=True, num_labels=3)), beit, [16, 20])

    windows = dict(image_size=32, patch_size=2, embed_dim=8, depths=[2, 3, 2], num_heads=[1, 2, 4], window_size=4, mlp_ratio=2.0)
    checkpoint("swin", hf.SwinModel(hf.SwinConfig(**windows)), vit, [32, 36, 28], (0, 1, 3, -2), edit=add_indices)
    checkpoint("swin_classifier", hf.SwinForImageClassification(hf.SwinConfig(
        **windows | dict(use_absolute_embeddings=True, qkv_bias=False, layer_norm_eps=1e-3, num_labels=3))), vit, [32, 40])
    checkpoint("swinv2", hf.Swinv2Model(hf.Swinv2Config(**windows)), vit, [32, 36, 20], (0, 1, 3, -2))
    checkpoint("swinv2_classifier", hf.Swinv2ForImageClassification(hf.Swinv2Config(
        **windows | dict(pretrained_window_sizes=[6, 6, 3], layer_norm_eps=1e-3, num_labels=3))), vit, [32])

    dinov3 = dict(num_hidden_layers=2, num_attention_heads=2, hidden_size=32, intermediate_size=48, image_size=32, patch_size=8)
    processor = hf.DINOv3ViTImageProcessor(**odd)
    checkpoint("dinov3", hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**dinov3, num_register_tokens=3)), processor, [32, 48, 24])
    checkpoint("dinov3_gated", hf.DINOv3ViTModel(hf.DINOv3ViTConfig(
        **dinov3, use_gated_mlp=True, hidden_act="silu", key_bias=True, mlp_bias=False, proj_bias=False)), processor, [32])


if __name__ == "__main__":
    main()
