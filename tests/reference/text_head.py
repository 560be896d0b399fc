"""Runs fifty steps of contrastive training in PyTorch, for a linear projection head and one with a hidden layer.

    pip install torch==2.15.0
    python3 tests/reference/text_head.py

Writes tests/reference/text_head.safetensors: features, caption embeddings, the captions of each image and the pairs of each step;
for both heads the initial weights, all losses and the final weights. A step has two micro-batches of 24 pairs.
"""

import math
import pathlib

import torch
from safetensors.torch import save_file

IMAGES, CAPTIONS, INPUT, HIDDEN, OUTPUT, STEPS, MICRO = 40, 60, 10, 14, 8, 50, 24
RATE, DECAY, CLIP, BETAS = 0.02, 0.05, 0.8, (0.9, 0.999)


def unit(values):
    return values / values.norm(dim=1, keepdim=True).clamp_min(1e-12)


def loss_of(head, log_scale, features, vectors, has, images, captions):
    logits = log_scale.exp() * unit(head(features[images])) @ vectors[captions].T
    masked = has[images][:, captions].clone()
    masked.fill_diagonal_(False)
    logits = logits.masked_fill(masked, -math.inf)
    diagonal = torch.arange(len(images))
    cross = torch.nn.functional.cross_entropy
    return (cross(logits, diagonal) + cross(logits.T, diagonal)) / 2


def train(head, features, vectors, has, pairs):
    log_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    matrices = [value for value in head.parameters() if value.dim() == 2]
    others = [value for value in head.parameters() if value.dim() < 2] + [log_scale]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=1e-8)
    losses = []
    for step in pairs:
        optimizer.zero_grad()
        total = 0.0
        for part in step.split(MICRO):
            loss = loss_of(head, log_scale, features, vectors, has, part[:, 0], part[:, 1])
            (loss * len(part) / len(step)).backward()
            total += loss.item() * len(part) / len(step)
        torch.nn.utils.clip_grad_norm_(matrices + others, CLIP)
        optimizer.step()
        log_scale.data.clamp_(max=math.log(100))
        losses.append(total)
    return torch.tensor(losses), log_scale.detach().reshape(1)


def main():
    torch.manual_seed(3)
    features, vectors = torch.randn(IMAGES, INPUT) * 2 + 1, unit(torch.randn(CAPTIONS, OUTPUT))
    has = torch.rand(IMAGES, CAPTIONS) < 0.06
    has[torch.arange(IMAGES), torch.arange(IMAGES)] = True
    mean, std = features.mean(0), features.std(0, correction=0)
    every = has.nonzero()
    pairs = torch.stack([every[torch.randint(len(every), (2 * MICRO,))] for _ in range(STEPS)])
    out = {"features": features, "vectors": vectors, "has": has.to(torch.float32), "mean": mean, "std": std}
    out["pairs"] = pairs.to(torch.float32)
    standard = (features - mean) / std
    for name, head in {
        "linear": torch.nn.Sequential(torch.nn.Linear(INPUT, OUTPUT)),
        "hidden": torch.nn.Sequential(torch.nn.Linear(INPUT, HIDDEN), torch.nn.GELU(), torch.nn.Linear(HIDDEN, OUTPUT)),
    }.items():
        first = [value.detach().clone() for value in head.parameters()]
        losses, log_scale = train(head, standard, vectors, has, pairs)
        last = [value.detach() for value in head.parameters()]
        for number, (one, other) in enumerate(zip(first, last)):
            out[f"{name}.first.{number}"], out[f"{name}.last.{number}"] = one, other
        out[f"{name}.losses"], out[f"{name}.log_scale"] = losses, log_scale
    path = pathlib.Path(__file__).with_suffix(".safetensors")
    save_file({key: value.contiguous() for key, value in out.items()}, path)


if __name__ == "__main__":
    main()
