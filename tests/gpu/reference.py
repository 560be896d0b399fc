"""Creates checkpoints, and reference features and heads with transformers and PyTorch.

Run as `reference.py JOB ANSWER`.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from common import job_main

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def exact_f32():
    """Disables TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def randomise(model, seed):
    """Randomises every parameter, so that an omitted one is detected, with activations as large as in trained models."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.2 * noise)
            elif "lambda" in name:
                value.copy_(0.5 + 0.1 * noise)
            elif value.dim() in (2, 4):
                value.copy_(noise / value[0].numel() ** 0.5)
            else:
                value.copy_(0.2 * noise)
    return model.eval()


def checkpoint(folder, family, size_px, patch_px, hidden, layers, heads):
    """Saves a random checkpoint in Hugging Face layout with the image processor keys that the binary reads."""
    sizes = dict(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, image_size=size_px, patch_size=patch_px
    )
    if family == "vit":
        model = ViTModel(ViTConfig(**sizes, intermediate_size=4 * hidden, layer_norm_eps=1e-12), add_pooling_layer=False)
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": size_px, "width": size_px}}
    else:
        model = Dinov2Model(Dinov2Config(**sizes))
        square = {"height": size_px, "width": size_px}
        processor = {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": size_px},
            "do_center_crop": True,
            "crop_size": square,
        }
    randomise(model, seed=1).save_pretrained(folder)
    processor |= {"do_resize": True, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255}
    processor |= {"do_normalize": True, "image_mean": MEAN, "image_std": STD}
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor))


def load(folder, device, dtype=torch.float32):
    """Loads a checkpoint with PyTorch's fused attention."""
    family = json.loads((Path(folder) / "config.json").read_text())["model_type"]
    model = ViTModel if family == "vit" else Dinov2Model
    extra = {"add_pooling_layer": False} if family == "vit" else {}
    return model.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **extra).eval().to(device)


def normalise(pixels, dtype):
    """Normalises u8 pixels `[rows, size, size, 3]` to the model's input `[rows, 3, size, size]`."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).to(dtype)


def pooled(model, states):
    """Pools the last hidden states as the family's classifier does."""
    if model.config.model_type == "vit":
        return states[:, 0]
    return torch.cat([states[:, 0], states[:, 1:].mean(1)], 1)


def draw_pixels(rows, size_px):
    """Returns distinct images, coarse random patches with fine noise, as u8 RGB."""
    random = np.random.default_rng(7)
    coarse = random.integers(0, 216, (rows, 4, 4, 3))
    side = -(-size_px // 4)
    pixels = coarse.repeat(side, 1).repeat(side, 2)[:, :size_px, :size_px] + random.integers(
        0, 40, (rows, size_px, size_px, 3)
    )
    return pixels.astype(np.uint8)


def features_of(model, pixels, batch_size, device, dtype):
    """Returns the features of all images as f32 on the host."""
    parts = []
    with torch.inference_mode():
        for batch in torch.from_numpy(pixels).split(batch_size):
            states = model(normalise(batch.to(device), dtype)).last_hidden_state
            parts.append(pooled(model, states).float().cpu())
    return torch.cat(parts).numpy()


def features(folder, config, rows, batch_size, device):
    """Creates a checkpoint and pixels; saves their features in f32 and in bf16, which gives PyTorch's bf16 error."""
    exact_f32()
    folder = Path(folder)
    checkpoint(folder / "model", **config)
    pixels = draw_pixels(rows, config["size_px"])
    pixels.tofile(folder / "pixels.u8")
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        model = load(folder / "model", device, dtype)
        np.save(folder / f"{name}.npy", features_of(model, pixels, batch_size, device, dtype))
    return {}


def head(folder, start, steps, batch_size, learning_rate, momentum, weight_decay, device):
    """Trains the head in `start` in f32 and with bf16 autocast; saves the weights, returns the losses."""
    exact_f32()
    folder = Path(folder)
    first = load_file(Path(start) / "head.safetensors")
    classes, dim = first["classifier.weight"].shape
    values = torch.from_numpy(np.fromfile(folder / "features.f32", np.float32)).view(-1, dim).to(device)
    labels = torch.from_numpy(np.fromfile(folder / "labels.u32", np.uint32).astype(np.int64)).to(device)
    losses = {}
    for precision in ("f32", "bf16"):
        layer = torch.nn.Linear(dim, classes, device=device)
        layer.load_state_dict({"weight": first["classifier.weight"], "bias": first["classifier.bias"]})
        sgd = torch.optim.SGD(layer.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
        losses[precision] = []
        for step in range(steps):
            start_row = step * batch_size % len(values)
            rows = slice(start_row, start_row + batch_size)
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                logits = layer(values[rows])
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            losses[precision].append(loss.item())
        trained = {name: value.detach().cpu().numpy() for name, value in layer.named_parameters()}
        np.savez(folder / f"torch-{precision}.npz", **trained)
    return losses


if __name__ == "__main__":
    job_main({"features": features, "head": head})
